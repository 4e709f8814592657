r"""What an answer's text says without any algebra: exact numbers, words, and whether algebra may be asked at all.

Numbers are read as exact fractions, so 0.333 is not 1/3 and 1e-20 is not 2e-20. A percent sign, a degree sign, a
currency and a trailing ``\text{unit}`` are units and are dropped: 50% is 50, not 0.5.
"""

# ruff: noqa: SIM905  (word lists read better as text)

from __future__ import annotations

import re
from fractions import Fraction

MAX_LENGTH, MAX_DEPTH, MAX_DIGITS = 400, 12, 60
MAGNITUDES = ("hundred", "thousand", "million", "billion", "trillion", "dozen", "half", "double")

_SPACES = re.compile(r"(?<!\\)\\[!,;: ]|\\q?quad\b|~|[\s\u00a0\u2000-\u200b\u202f\u205f]+")
_DROPPED = re.compile(r"\\(?:left|right|displaystyle|[()\[\]])(?![A-Za-z])|\\?[$\u20ac\u00a3\u00a5]")
_UNIT = re.compile(r"(?<=[\d}\)])\s*\\(?:text|mbox|mathrm|textrm)\{([A-Za-z .]*)\}(?:\^\{?\d\}?)?$")
_UNIT_SIGN = re.compile(r"(?<=[\d}\)])\s*(?:\\?%|\^\{?\\circ\}?|\\degree|\u00b0)$")
_WRAPPED = re.compile(r"\\(?:text|mbox|mathrm|textbf|textit|textrm)\{([^{}\\]*)\}")

_DECIMAL = r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)"
_PLAIN = re.compile(rf"([+-]?) ?({_DECIMAL})(?:[eE]([+-]?\d{{1,3}}))?", re.ASCII)
_SLASH = re.compile(rf"([+-]?) ?({_DECIMAL}) ?/ ?({_DECIMAL})", re.ASCII)
_FRAC = re.compile(r"([+-]?) ?\\[dt]?frac ?(?:\{ ?(-? ?\d+) ?\}|(\d)) ?(?:\{ ?(\d+) ?\}|(\d))", re.ASCII)
_MIXED = re.compile(r"([+-]?) ?(\d+)(?: (\d+) ?/ ?(\d+)| ?(\\[dt]?frac.*))", re.ASCII)


def tidy(answer: str) -> str:
    r"""The text without layout, delimiters, currency and units; signs stay.

    >>> tidy(r"\$-1{,}234.50 \text{ dollars}.")
    '-1,234.50'
    """
    text = answer.replace("\u2212", "-").replace("{,}", ",")
    text = re.sub(r",\\!\s*", ",", text)
    text = _SPACES.sub(" ", _DROPPED.sub("", text)).strip()
    text = text.removesuffix(".").rstrip()
    unit = _UNIT.search(text)
    if unit and unit[1].strip().lower() not in MAGNITUDES:
        text = text[: unit.start()]
    return _UNIT_SIGN.sub("", text).strip()


def rational(text: str) -> Fraction | None:
    r"""The exact value of a tidied number: integer, decimal, fraction or mixed number; None if it is none of these.

    >>> rational("023"), rational("8,000"), rational("11 5/6"), rational(r"-1\frac12"), rational("1,2")
    (Fraction(23, 1), Fraction(8000, 1), Fraction(71, 6), Fraction(-3, 2), None)
    """
    if len(text) > MAX_DIGITS:
        return None
    if match := _PLAIN.fullmatch(text):
        return _signed(match[1], _decimal(match[2]) * Fraction(10) ** int(match[3] or 0))
    if match := _SLASH.fullmatch(text):
        bottom = _decimal(match[3])
        return _signed(match[1], _decimal(match[2]) / bottom) if bottom else None
    if match := _FRAC.fullmatch(text):
        top, bottom = (match[2] or match[3]).replace(" ", ""), int(match[4] or match[5])
        return _signed(match[1], Fraction(int(top), bottom)) if bottom else None
    if match := _MIXED.fullmatch(text):
        part = rational(match[5] or f"{match[3]}/{match[4]}")
        return _signed(match[1], int(match[2]) + part) if part is not None and 0 < part < 1 else None
    return None


def word(text: str, *, single: bool = False) -> str:
    r"""An answer in words, lower-case and without wrapping; empty if it is not one.

    A run of letters counts when it stands in ``\text{}`` or parentheses or has at least four letters: ``xy`` is a
    product. With ``single``, any letters count.

    >>> word(r"\text{(C)}"), word("Evelyn"), word("xy"), word("C", single=True)
    ('c', 'evelyn', '', 'c')
    """
    bare = _WRAPPED.sub(r"\1", text).strip()
    wrapped = bare != text.strip() or bare.startswith("(")
    bare = bare.removeprefix("(").removesuffix(")").strip()
    if not re.fullmatch(r"[A-Za-z]+(?:[ '-][A-Za-z]+)*", bare):
        return ""
    longest = max(map(len, re.split(r"[ '-]", bare)))
    return bare.casefold() if wrapped or single or longest >= 4 else ""


def in_base(text: str) -> tuple[str, str]:
    r"""The digits and the base of ``4210_{5}``; an empty base where none is named.

    >>> in_base("4210_{5}"), in_base("4210")
    (('4210', '5'), ('4210', ''))
    """
    match = re.fullmatch(r"(\d+) ?_ ?(?:\{ ?(\d+) ?\}|(\d))", text, re.ASCII)
    return (match[1], match[2] or match[3]) if match else (text, "")


COMMANDS = frozenset(
    "frac dfrac tfrac sqrt cdot times div pm mp pi infty circ cup cap in notin le leq ge geq lt gt ne neq to "
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp binom begin end alpha beta gamma delta "
    "epsilon theta lambda mu nu rho sigma tau phi varphi omega chi psi eta zeta kappa xi emptyset varnothing setminus "
    "mathbb mathbf vec overline lfloor rfloor lceil rceil lvert rvert langle rangle".split()
)
WORDS = frozenset("sin cos tan cot sec csc log exp sqrt pi matrix pmatrix bmatrix vmatrix cases".split())
_TOKEN = re.compile(
    r"\\(?P<command>[A-Za-z]+)|\\[{}\\|%]|(?P<number>\d+(?:\.\d+)?|\.\d+)|(?P<word>[A-Za-z]+)|[{}()\[\]^_+\-*/=<>,!|& ]",
    re.ASCII,
)
_FORBIDDEN = re.compile(
    r"\*\*|__|!\s*!|(?<![\dA-Za-z])\s*!|\d{4,}\s*!"  # towers by another name, double and huge factorials
    r"|\^\s*(?:\{[^{}]*\}|\\?\w+)\s*\^"  # a^b^c
    r"|\^\s*\{[^{}]*\^"  # a power in an exponent
    r"|\^\s*\{?\s*\(?\s*[+-]?\d{5,}"  # an exponent of five digits
)


def admits(text: str) -> bool:
    r"""Whether a tidied answer is short, shallow mathematics that symbolic code may see.

    Tokens are numbers, one to two letters in a row, and commands from a fixed list; towers of powers, large
    exponents and large factorials are out. Anything else (words, quotes, dots, underscored names) never reaches a
    parser.

    >>> admits(r"\frac{3\sqrt{3}}{4}"), admits("__import__('os').system('x')"), admits("9^{9^{9^9}}")
    (True, False, False)
    """
    if not text or len(text) > MAX_LENGTH or _FORBIDDEN.search(text):
        return False
    depth = position = equals = 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None or not _admits_token(token):
            return False
        depth += (token[0] in "{([") - (token[0] in "})]")
        equals += token[0] == "="
        if abs(depth) > MAX_DEPTH or equals > 1:  # a chain a = b = c has no one value
            return False
        position = token.end()
    return True


def _admits_token(token: re.Match[str]) -> bool:
    if token["command"]:
        return token["command"] in COMMANDS
    if token["number"]:
        return len(token[0]) <= MAX_DIGITS
    return not token["word"] or len(token[0]) <= 2 or token[0] in WORDS


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", "").rstrip(".") if text != "." else "0")


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value

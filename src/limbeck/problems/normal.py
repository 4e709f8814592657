r"""What an answer's text says without any algebra: exact numbers, words, and whether algebra may be asked at all.

Numbers are read as exact fractions, so 0.333 is not 1/3 and 1e-20 is not 2e-20. A percent sign, a degree sign, a
currency and a trailing unit, bare or in ``\text{}``, are units and are dropped: 50% is 50, not 0.5. What follows an
approximation sign is a reading aid and is dropped too, so the exact side is what counts.
"""

# ruff: noqa: SIM905  (word lists read better as text)

from __future__ import annotations

import re
from fractions import Fraction

MAX_LENGTH, MAX_DEPTH, MAX_DIGITS = 400, 12, 60
NOT_UNITS = frozenset(
    "hundred hundreds thousand thousands million millions billion billions trillion trillions dozen dozens half halves "
    "double third thirds quarter fourth fourths fifth fifths tenth tenths hundredth hundredths and or to times plus "
    "minus over squared cubed factorial less below negative mod choose base infinity sin cos tan cot sec csc log exp "
    "sqrt pi alpha beta gamma delta epsilon theta lambda sigma tau phi omega".split()
)
"""Words after a number that change its value, so that the number alone is not the answer."""
UPRIGHT = frozenset("i e x y z n".split())
r"""Letters that are factors also where they are set upright, as in ``5\mathrm{i}``; other single letters are units."""

_SPACES = re.compile(r"(?<!\\)\\[!,;: ]|\\q?quad\b|~|[\s\u00a0\u2000-\u200b\u202f\u205f]+")
_DROPPED = re.compile(r"\\(?:left|right|displaystyle|[()\[\]])(?![A-Za-z])|\\?[$\u20ac\u00a3\u00a5\u20b9]")
_TEXT = r"\\(?:text|mbox|mathrm|textbf|textit|textrm|mathit|mathbf|operatorname)"
_POWER = r"(?:\^\{?[23]\}?|[\u00b2\u00b3])?"
_UNIT = re.compile(rf"(?<=[\d}})])\s*{_TEXT}\{{([A-Za-z ./-]*)\}}{_POWER}$")
_BARE_UNIT = re.compile(
    rf"(?<=\d) ((?:[A-Za-z]{{3,}}|cm|mm|km|kg|mg|ml|mL|ft|mi|lb|oz|hr)(?:[ /-][A-Za-z]+){{0,3}}){_POWER}$"
)
_PERCENT = re.compile(r"(?<=[\d}\)])\s*\\?%")
_DEGREE = re.compile(r"(?<=[\d}\)])\s*(?:\^\{?\\circ\}?|\\degree|\u00b0)$")
_APPROXIMATE = re.compile(r"(?<=\S)\s*(?:\\approx|\u2248).*$", re.DOTALL)
_ABOUT = re.compile(r"(?:\\approx|\u2248)\s*")
_NAMED = re.compile(
    r"(?:[A-Za-z]+|\\[a-z]+|[A-Za-z]_\{?\w\}?|[A-Za-z]\([a-z]\)|\([a-z](?:, ?[a-z])+\)|\\text\{[^{}]*\}) ?"
    r"(?:=|\\approx|\u2248) ?(?P<value>[^=]*)"
)
LISTED = re.compile(r",|\\(?:text|mbox|mathrm|textrm)\{ ?(?:and|or) ?\}|\b(?:and|or)\b")
_WRAPPED = re.compile(_TEXT + r"\{([^{}\\]*)\}")
_WRAPPED_NUMBER = re.compile(_TEXT + r"\{([-+]?[\d.][^{}]*)\}")
_LABEL = re.compile(r"\(([A-J])\) (?=\S)")
_LETTER = re.compile(r"\(?([A-J])\)?")

_DECIMAL = r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)"
_PLAIN = re.compile(rf"([+-]?) ?({_DECIMAL}|\d{{1,3}}(?: \d{{3}})+)(?:[eE]([+-]?\d{{1,3}}))?", re.ASCII)
_SLASH = re.compile(rf"([+-]?) ?({_DECIMAL}) ?/ ?({_DECIMAL})", re.ASCII)
_FRAC = re.compile(r"([+-]?) ?\\[cdt]?frac ?(?:\{ ?(-? ?\d+) ?\}|(\d)) ?(?:\{ ?(\d+) ?\}|(\d))", re.ASCII)
_MIXED = re.compile(r"([+-]?) ?(\d+)(?: (\d+) ?/ ?(\d+)| ?(\\[cdt]?frac.*))", re.ASCII)
_REPEATING = re.compile(r"([+-]?) ?(\d*)\.(\d*)\\overline ?\{? ?(\d+) ?\}?", re.ASCII)


def tidy(answer: str) -> str:
    r"""The text without layout, delimiters, currency and units; signs stay.

    >>> tidy(r"\$-1{,}234.50 \text{ dollars}."), tidy("18 eggs"), tidy("5 million"), tidy(r"\sqrt{2} \approx 1.41")
    ('-1,234.50', '18', '5 million', '\\sqrt{2}')
    """
    text = answer.replace("\u2212", "-").replace("{,}", ",")
    text = re.sub(r",\\!\s*", ",", text)
    text = _SPACES.sub(" ", _DROPPED.sub("", text)).strip()
    text = text.removesuffix(".").rstrip()
    if text.startswith("**") and text.endswith("**"):
        text = text.strip("* ")
    if match := _WRAPPED_NUMBER.fullmatch(text):
        text = match[1].strip()
    if match := _ABOUT.match(text):
        text = text[match.end() :]
    if not _NAMED.fullmatch(text):
        text = _APPROXIMATE.sub("", text)
    for unit in (_UNIT, _BARE_UNIT):
        found = unit.search(text)
        words = set(re.split(r"[ ./-]", found[1])) if found else set()
        if found and not (UPRIGHT & words or NOT_UNITS & {name.lower() for name in words}):
            text = text[: found.start()]
    return _DEGREE.sub("", _PERCENT.sub("", text)).strip()


def named_value(text: str, other: str) -> str:
    """What an answer assigns to one name, where the other side assigns nothing: ``x = 5`` answers 5.

    >>> named_value("x = 5", "5"), named_value("x = 1, x = -2", "1,-2"), named_value("x = 5", "x = 5")
    ('5', '1, -2', 'x = 5')
    """
    if "=" in other or "\\approx" in other:
        return text
    if match := _NAMED.fullmatch(text):
        return match["value"].strip()
    parts = [part.strip() for part in LISTED.split(text)]
    names = {part.partition("=")[0].strip() for part in parts}
    if len(parts) > 1 and len(names) == 1 and re.fullmatch(r"[A-Za-z]", names.pop()):
        return ", ".join(part.partition("=")[2].strip() for part in parts)
    return text


def choice(text: str) -> str:
    r"""The letter of a multiple choice, A to J, in whatever dress; empty if it is none.

    >>> choice(r"\textbf{(C)}"), choice("C"), choice("(B) 12"), choice("x"), choice("CAT")
    ('C', 'C', 'B', '', '')
    """
    bare = _WRAPPED.sub(r"\1", text).strip()
    match = _LETTER.fullmatch(bare) or _LABEL.match(bare)
    return match[1] if match else ""


def unlabeled(text: str) -> str:
    r"""An answer without the letter of the choice before it.

    >>> unlabeled(r"\textbf{(C)} 12"), unlabeled("(C)")
    ('12', '(C)')
    """
    bare = _WRAPPED.sub(r"\1", text).strip()
    return bare[match.end() :] if (match := _LABEL.match(bare)) else text


def numbers(text: str) -> tuple[str, tuple[Fraction, ...]] | None:
    r"""A list of exact numbers and its brackets; a set is sorted and without repeats. None if it is no such list.

    A bare list is a set. Commas between digits group them where other commas are followed by a space.

    >>> numbers("(1, 1/2)"), numbers(r"\{3,1,3\}") == numbers("1, 3"), numbers("1,000, 2") == numbers("2, 1000")
    (('()', (Fraction(1, 1), Fraction(1, 2))), True, True)
    """
    if len(text) > MAX_LENGTH:
        return None
    brackets, inside = "{}", text
    if text.startswith("\\{") and text.endswith("\\}"):
        inside = text[2:-2]
    elif text[:1] in "([" and text[-1:] in ")]":
        brackets, inside = text[:1] + text[-1:], text[1:-1]
    parts = re.split(r", " if ", " in inside else ",", inside)
    values = [rational(part.strip()) for part in parts]
    found = [value for value in values if value is not None]
    if len(parts) < 2 or len(found) < len(parts):
        return None
    return brackets, tuple(sorted(set(found)) if brackets == "{}" else found)


def rational(text: str) -> Fraction | None:
    r"""The exact value of a tidied number: integer, decimal, fraction or mixed number; None if it is none of these.

    >>> rational("023"), rational("8,000"), rational("11 5/6"), rational(r"-1\frac12"), rational("1,2")
    (Fraction(23, 1), Fraction(8000, 1), Fraction(71, 6), Fraction(-3, 2), None)
    >>> rational("12 345"), rational(r"0.1\overline{6}")
    (Fraction(12345, 1), Fraction(1, 6))
    """
    if len(text) > MAX_DIGITS:
        return None
    if match := _PLAIN.fullmatch(text):
        return _signed(match[1], _decimal(match[2]) * Fraction(10) ** int(match[3] or 0))
    if match := _REPEATING.fullmatch(text):
        fixed, cycle = match[2] + match[3], match[4]
        ninths = (10 ** len(cycle) - 1) * 10 ** len(match[3])
        return _signed(match[1], Fraction(int(fixed + cycle) - int(fixed or "0"), ninths))
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
        if not 0 <= depth <= MAX_DEPTH or equals > 1:  # a chain a = b = c has no one value
            return False
        position = token.end()
    return depth == 0


def _admits_token(token: re.Match[str]) -> bool:
    if token["command"]:
        return token["command"] in COMMANDS
    if token["number"]:
        return len(token[0]) <= MAX_DIGITS
    return not token["word"] or len(token[0]) <= 2 or token[0] in WORDS


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", "").replace(" ", "").rstrip("."))


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value

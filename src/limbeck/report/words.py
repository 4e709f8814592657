"""Numbers as they stand in a sentence or a table cell: one style for signs, units, p-values and lists."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

NONE = "–"
MINUS = "\u2212"


def number(value: object) -> float:
    """A JSON number as a float; null, text and booleans are NaN.

    >>> number(2), number(None), number("x")
    (2.0, nan, nan)
    """
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def fixed(value: float, digits: int = 2) -> str:
    """Fixed digits with a true minus; a dash where there is no number.

    >>> fixed(-0.0312), fixed(math.nan), fixed(-0.001)
    ('−0.03', '–', '0.00')
    """
    if not math.isfinite(value):
        return NONE
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def short(value: float) -> str:
    """Three significant digits, powers of ten where plain digits would be long.

    >>> short(0.00031), short(2.6), short(51234.0), short(0.0), short(300.0)
    ('3.1e−4', '2.60', '51 234', '0', '300')
    """
    if not math.isfinite(value):
        return NONE
    size = abs(value)
    if size >= 1000 or value == round(value):
        return f"{value:,.0f}".replace(",", " ").replace("-", MINUS)
    if size < 0.001:
        digits, power = f"{value:.2e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}".replace("-", MINUS)
    return f"{value:#.3g}".rstrip(".").replace("-", MINUS)


def compact(value: float) -> str:
    """Three significant digits without trailing zeros, for settings.

    >>> compact(0.002), compact(2e-5), compact(3200.0)
    ('0.002', '2e−5', '3 200')
    """
    if not math.isfinite(value) or abs(value) < 0.0001 or abs(value) >= 1000:
        return short(value)
    return f"{value:.3g}".replace("-", MINUS)


def percent(value: float, digits: int = 1) -> str:
    """A fraction as a percentage.

    >>> percent(0.8731)
    '87.3 %'
    """
    return f"{fixed(100 * value, digits)} %" if math.isfinite(value) else NONE


def gain(value: float) -> str:
    """A difference of fractions as a number of percentage points, its sign told.

    >>> gain(0.042), gain(-0.01), gain(0.0)
    ('+4.2', '−1.0', '0.0')
    """
    return f"{'+' if round(100 * value, 1) > 0 else ''}{fixed(100 * value, 1)}"


def points(value: float, *, signed: bool = True) -> str:
    """A difference of fractions in percentage points.

    >>> points(0.042), points(-0.01), points(0.042, signed=False)
    ('+4.2 points', '−1.0 points', '4.2 points')
    """
    if not math.isfinite(value):
        return NONE
    return f"{gain(value) if signed else fixed(100 * value, 1)} points"


def bounds(low: float, high: float, digits: int = 1, scale: float = 1.0) -> str:
    """The ends of an interval.

    >>> bounds(-0.012, 0.03, scale=100.0)
    '−1.2 to 3.0'
    """
    return f"{fixed(scale * low, digits)} to {fixed(scale * high, digits)}" if math.isfinite(low + high) else NONE


def span(values: Sequence[float], digits: int = 2) -> str:
    """From the least to the largest of some values, which may be one.

    >>> span([0.5, 0.25]), span([0.5])
    ('0.25 to 0.50', '0.50')
    """
    ends = dict.fromkeys(fixed(value, digits) for value in (min(values), max(values)))
    return " to ".join(ends)


def p_value(p: float) -> str:
    """With its relation sign.

    >>> p_value(0.0123), p_value(1e-9), p_value(1.0)
    ('p = 0.012', 'p < 0.001', 'p = 1')
    """
    if not math.isfinite(p):
        return f"p {NONE}"
    if p < 0.001:
        return "p < 0.001"
    return f"p = {1 if p > 0.9995 else format(p, '.2g')}"


def listed(words: Sequence[str]) -> str:
    """Words with commas and a last "and".

    >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"]), listed(["a, fast", "b", "c"])
    ('a', 'a and b', 'a, b and c', 'a, fast; b and c')
    """
    return " and ".join(words) if len(words) < 3 else f"{in_a_row(words[:-1])} and {words[-1]}"


def in_a_row(words: Sequence[str]) -> str:
    """Words with commas between them; with semicolons where one has a comma of its own outside of brackets.

    >>> in_a_row(["a (1, 2)", "b"]), in_a_row(["a, fast (1)", "b"])
    ('a (1, 2), b', 'a, fast (1); b')
    """
    bare = (re.sub(r"\([^)]*\)", "", word) for word in words)
    return ("; " if any("," in word for word in bare) else ", ").join(words)


def slug(text: str) -> str:
    """Letters and digits of a text, for the name of a file or folder; may be empty.

    >>> slug("TRRD 0.5 → ../SFT"), slug("→")
    ('trrd-0-5-sft', '')
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:40].strip("-")


def count(n: int, word: str) -> str:
    """A number with its noun.

    >>> count(1, "pair"), count(3, "pair")
    ('1 pair', '3 pairs')
    """
    return f"{n} {word}" if n == 1 else f"{n} {word}s"

r"""From a response to its final answer, as text: outside the thinking, the last box, else the last ``####`` line.

Our own rules, because a parser that gathers every box of a text grades ``\boxed{5} ... wait, \boxed{25}`` as both.
Nothing here judges an answer, and every step is linear in the length of the text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

THINK_TAG = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
NUMBER = r"[-+\u2212]?\s?(?:\\?[$\u20ac\u00a3])?\s?[-+\u2212]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?"
MARKER = re.compile(rf"####[ \t]*({NUMBER})(?![.):]?[ \t]*[\w:])", re.ASCII)
LAST_NUMBER = re.compile(NUMBER, re.ASCII)


class Extraction(NamedTuple):
    """The answer's text (empty if none), the rule that found it, and whether the thinking never ended."""

    answer: str
    rule: str
    truncated: bool = False


def extract(response: str, *, last_number: bool = False) -> Extraction:
    r"""The final answer of a response.

    In order: the content of the last ``\boxed{}`` outside the thinking, where one that is never closed means no
    answer; the number on the last ``####`` line; and only if asked, the last number of all.

    Args:
        response: what the model wrote, without the prompt.
        last_number: fall back to the last number. Lenient, off by default.

    >>> extract(r"<think>\boxed{10}</think> It is \boxed{5}, no: \boxed{\frac{1}{2}}.").answer
    '\\frac{1}{2}'
    >>> extract("3 + 4 = 7\n#### 7")
    Extraction(answer='7', rule='marker', truncated=False)
    """
    text, truncated = strip_thinking(response)
    if truncated:
        return Extraction("", "", True)
    boxes = list(BOX.finditer(text))
    if boxes:
        content = _balanced(text, boxes[-1].end())
        return Extraction(content.strip() if content else "", "boxed")
    for rule, pattern, active in (("marker", MARKER, True), ("last_number", LAST_NUMBER, last_number)):
        found = list(pattern.finditer(text)) if active else []
        if found:
            return Extraction(found[-1][found[-1].lastindex or 0].strip().rstrip(","), rule)
    return Extraction("", "")


def strip_thinking(response: str) -> tuple[str, bool]:
    """The text outside think tags, and whether a think tag was left open.

    A closing tag without an opening one closes what the prompt's template opened: all before it is thinking.

    >>> strip_thinking("plan</think>done<think>more</think>.")
    ('done.', False)
    >>> strip_thinking("so <think>hm")
    ('so ', True)
    """
    kept: list[str] = []
    depth, position = 0, 0
    for tag in THINK_TAG.finditer(response):
        if depth == 0:
            kept.append(response[position : tag.start()])
        if not tag[1]:
            depth += 1
        elif depth:
            depth -= 1
        else:
            kept.clear()
        position = tag.end()
    if depth == 0:
        kept.append(response[position:])
    return "".join(kept), depth > 0


def _balanced(text: str, begin: int) -> str | None:
    r"""What stands between the brace at ``begin`` and the one that closes it; ``\{`` and ``\}`` do not count."""
    depth = 0
    for token in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, begin):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return text[begin + 1 : token.start()]
    return None

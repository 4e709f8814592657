r"""From a response to its final answer, as text: outside the thinking, the last box, else the last ``####`` line.

Our own rules, because a parser that gathers every box of a text grades ``\boxed{5} ... wait, \boxed{25}`` as both.
Nothing here judges an answer, and every step is linear in the length of the text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

THINK_TAG = re.compile(r"(?i:<(/?)(?:think(?:ing)?|thought|reasoning)>)|\[(/?)THINK\]")
BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:(?=\{)|(?<=\s)(?P<bare>[^\s{}$\\][^{}$\\\n]{0,40})\$)")

_DIGITS = r"(?>(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?)"
_SIGN = "[-+\u2212]"
_CURRENCY = "\\\\?[$\u20ac\u00a3]"
_LINE_END = r"(?=[.,;!*$%]*[ \t]*(?:<[|/]|[\r\n]|\Z))"
_TRAILING_WORDS = r"(?=(?:[ \t]++[A-Za-z]++){1,3}+[.!*]*\s*\Z)"
MARKER = re.compile(  # not "#### 3. Check", a heading, nor "#### 9^9", which is more than its 9
    rf"####[ \t]*(?:\*\*)?({_SIGN}?\s?(?:{_CURRENCY})?\s?{_SIGN}?{_DIGITS})(?:{_LINE_END}|{_TRAILING_WORDS})",
    re.ASCII,
)
LAST_NUMBER = re.compile(
    rf"(?:(?<![\w)\]}}]){_SIGN})?(?:{_CURRENCY}\s?{_SIGN}?)?{_DIGITS}",  # in 10-3 and "10 - 3" the sign is an operation
    re.ASCII,
)


class Extraction(NamedTuple):
    """The answer's text (empty if none), the rule that found it, and whether the thinking never ended."""

    answer: str
    rule: str
    truncated: bool = False


def extract(response: str, *, prompt: str = "", last_number: bool = False) -> Extraction:
    r"""The final answer of a response.

    In order: the content of the last ``\boxed{}`` outside the thinking, where one that is never closed means no
    answer; the number after the last ``####``, alone on its line or with a unit as the last line of all; and only
    if asked, the last number of all.

    Args:
        response: what the model wrote, without the prompt.
        prompt: what it read. One that ends in an opening think tag makes the response begin inside the thinking.
        last_number: fall back to the last number. Lenient, off by default.

    >>> extract(r"<think>\boxed{10}</think> It is \boxed{5}, no: \boxed{\frac{1}{2}}.").answer
    '\\frac{1}{2}'
    >>> extract("3 + 4 = 7\n#### 7")
    Extraction(answer='7', rule='marker', truncated=False)
    >>> extract(r"so \boxed{7}, let me check", prompt="What is 3 + 4?<think>\n").truncated
    True
    """
    text, truncated = strip_thinking(response, opened=opens_thinking(prompt))
    if truncated:
        return Extraction("", "", True)
    boxes = list(BOX.finditer(text))
    if boxes:
        content = boxes[-1]["bare"] or _balanced(text, boxes[-1].end())
        return Extraction(content.strip() if content else "", "boxed")
    for rule, pattern, active in (("marker", MARKER, True), ("last_number", LAST_NUMBER, last_number)):
        found = list(pattern.finditer(text)) if active else []
        if found:
            return Extraction(found[-1][found[-1].lastindex or 0].strip().rstrip(","), rule)
    return Extraction("", "")


def opens_thinking(prompt: str) -> bool:
    """Whether a prompt as the model reads it ends in an opening think tag, as the templates of some models do.

    >>> opens_thinking("<|user|>2 + 2?<|assistant|><think>\\n"), opens_thinking("<think>\\n\\n</think>\\n\\n")
    (True, False)
    """
    tail = prompt[-100:].rstrip()
    tags = list(THINK_TAG.finditer(tail))
    return bool(tags) and tags[-1].end() == len(tail) and not _closes(tags[-1])


def strip_thinking(response: str, *, opened: bool = False) -> tuple[str, bool]:
    """The text outside think tags, and whether a think tag was left open.

    A closing tag without an opening one closes what the prompt's template opened: all before it is thinking.

    Args:
        response: what the model wrote.
        opened: it begins inside the thinking; a tag that opens it once more right away changes nothing.

    >>> strip_thinking("plan</think>done<think>more</think>.")
    ('done.', False)
    >>> strip_thinking("so <think>hm")
    ('so ', True)
    >>> strip_thinking("so it is 7", opened=True)
    ('', True)
    """
    tags = list(THINK_TAG.finditer(response))
    repeated = bool(tags) and not response[: tags[0].start()].strip() and not _closes(tags[0])
    kept: list[str] = []
    depth, position = int(opened and not repeated), 0
    for tag in tags:
        if depth == 0:
            kept.append(response[position : tag.start()])
        if not _closes(tag):
            depth += 1
        elif depth:
            depth -= 1
        else:
            kept.clear()
        position = tag.end()
    if depth == 0:
        kept.append(response[position:])
    return "".join(kept), depth > 0


def _closes(tag: re.Match[str]) -> bool:
    return bool(tag[1] or tag[2])


def _balanced(text: str, begin: int) -> str | None:
    r"""What stands between the brace at ``begin`` and the one that closes it; ``\{`` and ``\}`` do not count."""
    depth = 0
    for token in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, begin):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return text[begin + 1 : token.start()]
    return None

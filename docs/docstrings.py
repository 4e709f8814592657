"""Docstrings as the site shows them: they are plain text, so marks are escaped, roles become code, doctests blocks of code."""

from __future__ import annotations

import re
from typing import Any

import griffe

CODE = re.compile(r"(``.+?``|`[^`\n]+`)", re.DOTALL)
ROLE = re.compile(r":(?:func|class|mod|data|meth):`~?([^`]+)`")


class PlainText(griffe.Extension):
    """Named in `mkdocs.yml`; sees every object before its docstring is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """A docstring as Markdown that reads as it does in the source."""
    return "\n\n".join(_block(block) for block in text.split("\n\n"))


def _block(block: str) -> str:
    if block.lstrip().startswith(">>>"):
        return f"```python\n{block}\n```"
    parts = CODE.split(ROLE.sub(r"`\1`", block))
    return "".join(part if i % 2 else _escaped(part) for i, part in enumerate(parts))


def _escaped(text: str) -> str:
    return re.sub(r"([*\[\]])", r"\\\1", text).replace("<", "&lt;")

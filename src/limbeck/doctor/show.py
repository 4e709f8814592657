"""Findings as tables for a terminal, a section each."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from limbeck.doctor.finding import SECTIONS, Finding
from limbeck.errors import printable

WIDTH = 150


def shown(findings: Sequence[Finding]) -> str:
    """Every section that has findings, then how many problems there are."""
    console = Console(file=io.StringIO(), width=WIDTH)
    for section in SECTIONS:
        own = [finding for finding in findings if finding.about == section]
        if own:
            table = Table("", section, "found", "what to do")
            for finding in own:
                table.add_row(
                    finding.level, *(escape(printable(t)) for t in (finding.name, finding.says, finding.remedy))
                )
            console.print(table)
    levels = [finding.level for finding in findings]
    problems, notes = levels.count("problem"), levels.count("note")
    console.print(f"problems: {problems}; notes: {notes}; as it should be: {levels.count('ok')} of {len(levels)}")
    return console.file.getvalue().rstrip("\n")  # type: ignore[attr-defined]

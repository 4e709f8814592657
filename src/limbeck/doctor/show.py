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
    console.print(_summed(findings))
    return console.file.getvalue().rstrip("\n")  # type: ignore[attr-defined]


def _summed(findings: Sequence[Finding]) -> str:
    """How many problems and notes; notes on objectives speak of what else these rollouts could be used for, and count apart."""
    levels = [finding.level for finding in findings]
    others = sum(finding.level == "note" and finding.about == "objectives" for finding in findings)
    apart = f" and {others} on objectives" if others else ""
    return (
        f"problems: {levels.count('problem')}; notes: {levels.count('note') - others}{apart}; as it should be: "
        f"{levels.count('ok')} of {len(levels)}"
    )

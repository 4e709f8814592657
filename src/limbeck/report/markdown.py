"""The report's sentences and tables as Markdown, for a page of results that is kept beside the code."""

from __future__ import annotations

from pathlib import Path

from limbeck.report import answer
from limbeck.report.load import load
from limbeck.report.page import compose
from limbeck.report.parts import Cell, Table
from limbeck.report.view import View
from limbeck.report.words import bounds, number, p_value, points, short


def markdown(results: Path) -> str:
    """A results folder as one page: where it comes from, what it says, every table, every pair. Figures are left out."""
    view = View(load(Path(results)))
    study = view.results.study
    parts = [f"# {study.get('name', 'results')}", str(study.get("question", "")), _origin(view), "## What it says"]
    parts.append("\n".join(f"- {_escape(sentence.text)}" for sentence in answer.sentences(view)))
    for section in compose(view):
        body = [_table(part) for part in section.parts if isinstance(part, Table)]
        body += [_pairs(view)] if section.id == "pairs" and view.results.comparison.get("pairs") else []
        if body:
            parts += [f"## {section.title}", *([section.lead] if section.lead else []), *body]
    return "\n\n".join(parts) + "\n"


def _origin(view: View) -> str:
    provenance, rollouts = view.results.provenance, view.results.rollouts
    host = ", ".join(f"{key} {value}" for key, value in sorted((provenance.get("host") or {}).items()))
    versions = ", ".join(f"{key} {value}" for key, value in sorted((provenance.get("versions") or {}).items()))
    lines = [
        ("command", f"`{provenance.get('command')}`"),
        ("started", provenance.get("started")),
        ("took", f"{short(number(provenance.get('seconds')))} s"),
        ("machine", host),
        ("versions", versions),
        ("rollouts", f"`{rollouts.get('digest')}`"),
        ("problems", f"`{view.results.comparison.get('problems_digest')}`"),
    ]
    return "\n".join(f"- {name}: {value}" for name, value in lines if value)


def _table(table: Table) -> str:
    rows = [_row([_cell(cell) for cell in row]) for row in table.rows]
    rule = _row(["---"] * len(table.head))
    return "\n".join([f"**{_escape(table.title)}**", "", _row(list(table.head)), rule, *rows, "", table.caption])


def _pairs(view: View) -> str:
    head = ["a", "b", "both right", "a only", "b only", "both wrong", "a - b, points", "95 %", "p (Holm)"]
    rows = [_row(_pair(view, pair)) for pair in view.results.comparison["pairs"]]
    title = ["**Every pair at its first seed**", ""] if view.results.comparison.get("over_seeds") else []
    return "\n".join([*title, _row(head), _row(["---"] * len(head)), *rows])


def _pair(view: View, pair: dict) -> list[str]:
    counts = [short(number(pair[name])) for name in ("both_right", "a_only", "b_only", "both_wrong")]
    labels = [_escape(view.label(pair[name])) for name in ("a", "b")]
    return [
        *labels,
        *counts,
        points(number(pair["difference"])).removesuffix(" points"),
        bounds(number(pair["low"]), number(pair["high"]), scale=100.0),
        p_value(number(pair["p_holm"])).removeprefix("p ").removeprefix("= "),
    ]


def _cell(cell: Cell) -> str:
    return _escape(f"{cell.text} ({cell.note})" if cell.note else cell.text)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")

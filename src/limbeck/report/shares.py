"""A factorial's variance among its factors: of where updates point, over how many directions, how far, and what it is worth."""

from __future__ import annotations

from typing import Any

from limbeck.report.figures import axis, named_axis, rows_size
from limbeck.report.parts import Cell, Figure, Panel, Sheet, Table, label_text
from limbeck.report.tables import column
from limbeck.report.view import View
from limbeck.report.words import bounds, number, p_value, percent

NAMES = {"log norm": "length"}  # what a response is called on the page
KEYS = ("df", "share", "chance", "unbiased", "low", "high", "p", "p_holm")


def shares(view: View) -> dict[str, list[dict[str, Any]]]:
    """Response to its terms; empty for a study without factors, or with one seed."""
    return view.results.factorial.get("shares") or {}


def table(view: View) -> Table | None:
    """One row a term, one column a response."""
    found = shares(view)
    if not found:
        return None
    rows = []
    for place, term in enumerate(next(iter(found.values()))):
        cells = [_cell(terms[place], view.alpha) for terms in found.values()]
        rows.append([Cell(term["term"], term["term"]), Cell(str(term["df"]), term["df"]), *cells])
    raw = [[name, t["term"], *(t[key] for key in KEYS)] for name, terms in found.items() for t in terms]
    level = f"{100 * (1 - view.alpha):g}"
    return Table(
        title="Shares of the variance",
        caption=(
            "Of each response's sum of squares over all cells and seeds, the share of a factor, of factors together beyond what "
            "each does alone, of the seeds, and of what cell and seed leave; what its own change from seed to seed would give a "
            "term is taken out (omega squared), so that a share may be below 0. Direction is split by the cosines of whole "
            "updates; the stable rank is the mean over matrices; length is the logarithm of the norm. In brackets the "
            f"{level} % interval over seeds (jackknife, Student's t): other seeds of these very cells and problems. p by "
            "permuting the cells' names within each seed, Holm over the terms of a column; strong where it is below "
            f"{view.alpha:g}."
        ),
        head=["term", "df", *(NAMES.get(name, name) for name in found)],
        rows=rows,
        sheet=Sheet("variance_shares", ["response", "term", *KEYS], raw),
    )


def _cell(term: dict[str, Any], alpha: float) -> Cell:
    value, low, high, p = (number(term[key]) for key in ("unbiased", "low", "high", "p_holm"))
    notes = [f"({bounds(low, high, scale=100.0)})" if low == low else "", p_value(p) if p == p else ""]
    return Cell(percent(value), value, note=" ".join(filter(None, notes)), tone="strong" if p < alpha else "")


def figure(view: View) -> Figure | None:
    """Each response a panel, each term a dot with its interval; an open diamond is what names of cells without meaning get."""
    found = shares(view)
    if not found:
        return None
    terms = [term["term"] for term in next(iter(found.values()))]
    places = list(range(len(terms)))[::-1]
    panels = []
    for name, given in found.items():
        value, low, high, chance = (
            [100 * number(t[key]) for t in given] for key in ("unbiased", "low", "high", "chance")
        )
        reach = {
            "type": "data", "symmetric": False, "color": "@ink", "thickness": 2, "width": 0,
            "array": column([h - v for h, v in zip(high, value, strict=True)]),
            "arrayminus": column([v - x for v, x in zip(value, low, strict=True)]),
        }  # fmt: skip
        text = [label_text(f"{term}: {percent(v / 100)}", 120) for term, v in zip(terms, value, strict=True)]
        dots = {
            "type": "scatter", "mode": "markers", "x": column(value), "y": places, "error_x": reach, "text": text,
            "hoverinfo": "text", "marker": {"color": "@ink", "symbol": "circle", "size": 8}, "meta": "",
        }  # fmt: skip
        luck = {
            "type": "scatter", "mode": "markers", "x": column(chance), "y": places, "hoverinfo": "skip", "meta": "",
            "marker": {"color": "@muted", "symbol": "diamond-open", "size": 7},
        }  # fmt: skip
        layout = {
            "xaxis": axis("share, %"),
            "yaxis": named_axis(terms[::-1], 26, range=[-0.6, len(terms) - 0.4]),
            "showlegend": False,
        }
        panels.append(Panel(NAMES.get(name, name), [luck, dots], layout))
    raw = [[name, t["term"], *(t[key] for key in KEYS)] for name, given in found.items() for t in given]
    return Figure(
        title="What decides",
        caption=(
            "Share of the variance by term with its interval over seeds; an open diamond is the mean share that a term has "
            "where the cells' names are permuted and mean nothing."
        ),
        panels=panels,
        sheet=Sheet("variance_shares_drawn", ["response", "term", *KEYS], raw),
        size=rows_size(len(terms)),
    )

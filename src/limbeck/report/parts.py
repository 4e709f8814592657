"""What a page is made of: sentences, and sections of tables and figures, each with a caption and a sheet that becomes a CSV.

Plain values without layout or HTML; every text in them is data to the templates, which escape it.
"""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from limbeck.errors import inert
from limbeck.report.words import NONE

MAX_ROWS = 150  # of a table on the page, so that a study of fifty arms still opens on a phone


class Sentence(NamedTuple):
    """A sentence and what it speaks of: "named", "decides", "answer", "limit", "geometry", "path" or "published".

    ``brief`` stands for one that names very many arms until a reader opens it.
    """

    about: str
    text: str
    brief: str = ""


class Sheet(NamedTuple):
    """The numbers behind a table or a figure, unrounded. ``name`` is one of the program's own, never from data."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]

    def csv(self) -> str:
        """RFC 4180 text; NaN and null are empty, and no cell can be read as a formula."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\r\n")
        writer.writerow(self.columns)
        writer.writerows([_csv_cell(value) for value in row] for row in self.rows)
        return out.getvalue()


def _csv_cell(value: object) -> object:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return inert(value)


class Cell(NamedTuple):
    """A table cell. ``tone`` is a class of the style sheet; ``note`` stands small under the text; ``arms`` are those it names."""

    text: str = NONE
    sort: float | str | None = None
    note: str = ""
    tone: str = ""
    arms: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table with its caption.

    ``words`` counts the leading columns of text, which are aligned left; rows after the ``first`` (0: none) are
    folded away until asked for.
    """

    title: str
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    sheet: Sheet
    words: int = 1
    first: int = 0
    kind: str = "table"

    @property
    def shown(self) -> Sequence[Sequence[Cell]]:
        """The rows of the page; the sheet has them all."""
        return self.rows[:MAX_ROWS]

    @property
    def folded(self) -> int:
        """How many of them are shown only when asked for."""
        return max(0, len(self.shown) - self.first) if self.first else 0

    @property
    def left(self) -> int:
        """How many rows are in the sheet alone."""
        return len(self.rows) - len(self.shown)


class Panel(NamedTuple):
    """One plot of a figure: plotly's ``data`` and ``layout``, colors as names of the theme ("@arm0", "@ink").

    A trace names its arm in ``meta``; a panel that belongs to arms as a whole names them in ``arms``.
    """

    title: str
    data: Sequence[dict[str, Any]]
    layout: dict[str, Any]
    arms: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One or more plots with one caption and one sheet. ``size`` and the first word of a legend name style classes."""

    title: str
    caption: str
    panels: Sequence[Panel]
    sheet: Sheet
    size: str = "medium"
    legend: Sequence[tuple[str, str]] = ()
    kind: str = "figure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page; ``missing`` says in one sentence what is not there, and why, when it is empty."""

    id: str
    title: str
    lead: str = ""
    parts: Sequence[Table | Figure | Widget] = ()
    missing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Widget:
    """A part with a template of its own (matrix, sample browser) and the data that it shows."""

    kind: str
    title: str
    caption: str
    data: dict[str, Any] = field(default_factory=dict)
    sheets: Sequence[Sheet] = ()


def label_text(text: str, limit: int = 60) -> str:
    """Text for a plot: plotly reads tags in labels, so they become entities, which it shows as characters.

    >>> label_text("<b>x</b>")
    '&lt;b&gt;x&lt;/b&gt;'
    """
    cut = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return html.escape(cut, quote=False)


def sheets_of(part: Table | Figure | Widget) -> Sequence[Sheet]:
    """The sheets that lie beside a part."""
    return part.sheets if isinstance(part, Widget) else (part.sheet,)

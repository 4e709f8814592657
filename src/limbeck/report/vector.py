"""The report's figures as vector files for a paper: one file a panel, from the same traces as the page.

One column (3.4 in) wide, or two (7 in) where cells or names need it; light theme, fonts embedded, no dates: the same results give
the same bytes. ``captions.md`` says what each file shows. Drawing needs matplotlib, which is an extra of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import ConfigError
from limbeck.leftovers import whole
from limbeck.progress import bar
from limbeck.report.figures import SYMBOLS
from limbeck.report.load import load
from limbeck.report.page import compose
from limbeck.report.parts import Figure, Panel, Section
from limbeck.report.several import results_of, sections_of
from limbeck.report.view import View
from limbeck.report.words import slug

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D

COLUMN, PAGE = 3.4, 7.0  # inches
FORMATS = ("pdf", "svg")
METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "Creator": "limbeck"},
    "svg": {"Date": None, "Creator": "limbeck"},
}
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 7, "axes.labelsize": 7, "axes.titlesize": 7.5, "legend.fontsize": 6.5,
    "xtick.labelsize": 6.5, "ytick.labelsize": 6.5, "axes.linewidth": 0.5, "xtick.major.width": 0.5,
    "ytick.major.width": 0.5, "xtick.major.size": 2, "ytick.major.size": 2, "axes.spines.top": False,
    "axes.spines.right": False, "axes.axisbelow": True, "pdf.fonttype": 42, "svg.fonttype": "path",
    "svg.hashsalt": "limbeck", "figure.constrained_layout.use": True,
}  # fmt: skip
ROW = 0.155  # inches of a row with a name


def figures(folders: Sequence[Path], out: Path, file_format: str = "pdf") -> Path:
    """Every panel of every figure of a study as a file of its own, and ``captions.md``.

    Args:
        folders: a study folder or its results folder; of several each has a folder in ``out``. Only read.
        out: the folder to write into, made if needed; files of other names in it stay.
        file_format: "pdf" or "svg".

    Returns:
        ``out``.

    Raises:
        ConfigError: another format, or matplotlib is not installed.
        FolderError: one of ``folders`` has no results.
        DataError: one of their files is malformed.
    """
    if file_format not in FORMATS:
        raise ConfigError(f"--format must be {' or '.join(FORMATS)}, received {file_format!r}.")
    _need_matplotlib()
    one = len(folders) == 1
    return write(compose(View(load(results_of(folders[0])))) if one else sections_of(folders), out, file_format)


def write(sections: Sequence[Section], out: Path, file_format: str) -> Path:
    """The figures of some sections."""
    chosen = [part for section in sections for part in section.parts if isinstance(part, Figure)]
    out.mkdir(parents=True, exist_ok=True)
    captions = []
    with bar("figures", sum(len(figure.panels) for figure in chosen)) as advance:
        for figure in chosen:
            names = [f"{name}.{file_format}" for name in file_names(figure)]
            captions.append(f"## {figure.title}\n\n{', '.join(f'`{name}`' for name in names)}\n\n{figure.caption}\n")
            for panel, name in zip(figure.panels, names, strict=True):
                _save(figure, panel, out / name)
                advance(1)
    (out / "captions.md").write_bytes("\n".join(captions).encode("utf-8", "replace"))
    return out


def _need_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "figures for print need matplotlib, which is not installed. pip install 'limbeck[figures]' brings it."
        ) from error


def file_names(figure: Figure) -> list[str]:
    """A name for each panel: the figure's sheet, and where there are several a number and what can be kept of the title."""
    if len(figure.panels) == 1:
        return [figure.sheet.name]
    return ["-".join(filter(None, (figure.sheet.name, str(i), slug(p.title)))) for i, p in enumerate(figure.panels, 1)]


def _save(figure: Figure, panel: Panel, path: Path) -> None:
    """Whole or not at all."""
    from matplotlib import style

    path.parent.mkdir(parents=True, exist_ok=True)
    file_format = path.suffix.removeprefix(".")
    with whole(path) as temporary, style.context(STYLE, after_reset=True):
        render(figure, panel).savefig(temporary, format=file_format, metadata=METADATA[file_format])


def render(figure: Figure, panel: Panel) -> Canvas:
    """One panel with its legend below it, sized for a column or a page."""
    from matplotlib.figure import Figure as Canvas

    from limbeck.report import drawing

    marks = legend(figure, panel)
    lengths = [len(label) for _, label in marks]
    width = _width(panel, lengths)
    columns, rows = legend_grid(lengths, width)
    canvas = Canvas(figsize=(width, min(9.2, _height(figure, panel, width) + 0.13 * rows)))
    axes = canvas.add_subplot()
    for side in ("left", "bottom"):
        axes.spines[side].set_color(drawing.color("@muted"))
    axes.tick_params(color=drawing.color("@muted"))
    drawing.draw(axes, panel)
    if panel.title:
        axes.set_title(drawing.plain(panel.title), parse_math=False, wrap=True)
    if marks:
        found = canvas.legend(
            [handle for handle, _ in marks], [label for _, label in marks], loc="outside lower center", ncols=columns,
            frameon=False, borderaxespad=0.2, columnspacing=1.2, handletextpad=0.5, labelspacing=0.25,
        )  # fmt: skip
        for text in found.get_texts():
            text.set_parse_math(False)
    return canvas


def _cells(panel: Panel) -> tuple[int, int]:
    """Columns and rows of a heatmap; none of another panel."""
    first = panel.data[0]
    return (len(first["x"]), len(first["y"])) if first["type"] == "heatmap" else (0, 0)


def _width(panel: Panel, lengths: Sequence[int]) -> float:
    """Inches: a page's where a column has no room for the cells, the names of rows, or the legend."""
    names = panel.layout.get("yaxis", {}).get("names", [])
    narrow = _cells(panel)[0] <= 9 and max(map(len, names), default=0) <= 30
    return COLUMN if narrow and len(lengths) <= 8 and _inches(max(lengths, default=0)) <= COLUMN else PAGE


def _height(figure: Figure, panel: Panel, width: float) -> float:
    """Inches without the legend: by rows where an axis names rows, else by the figure's size on the page."""
    columns, rows = _cells(panel)
    if rows:
        return 1.1 + rows * min(0.32, max(ROW, (width - 2) / columns))
    names = panel.layout.get("yaxis", {}).get("names")
    if names:
        return 0.65 + max(4, len(names)) * ROW
    small = figure.size == "small"
    return (1.9 if small else 2.5) if width == COLUMN else (2.5 if small else 3.6)


def legend_grid(lengths: Sequence[int], width: float) -> tuple[int, int]:
    """Columns and rows of a legend that is filled column by column, as many columns as names of these lengths let fit.

    >>> legend_grid([10, 10, 10, 60], 3.4), legend_grid([10, 10, 10, 10], 3.4), legend_grid([], 3.4)
    ((1, 4), (2, 2), (1, 0))
    """
    for columns in range(len(lengths), 1, -1):
        rows = -(-len(lengths) // columns)
        widest = [max(lengths[i : i + rows]) for i in range(0, len(lengths), rows)]
        if len(widest) == columns and sum(map(_inches, widest)) <= width:
            return columns, rows
    return 1, len(lengths)


def _inches(length: int) -> float:
    """Room for an entry of a legend with a name of this length."""
    return 0.42 + 0.049 * length


def legend(figure: Figure, panel: Panel) -> list[tuple[Line2D, str]]:
    """A mark and a name for each arm that the panel shows; further seeds share one entry.

    The page's legend has an entry a run; in print the look of further seeds (open, dotted) is said once.
    """
    from limbeck.report.drawing import color, plain

    drawn = [trace for trace in panel.data if "marker" in trace and any(y is not None for y in trace["y"])]
    shown = {(trace["marker"]["color"], trace["marker"].get("symbol")) for trace in drawn}
    lined = any("lines" in trace.get("mode", "") for trace in panel.data)
    marks, further = [], False
    for kind, label in figure.legend:
        look = _look(kind)
        if look not in shown:
            continue
        if look[1].endswith("-open"):
            further = True
        else:
            marks.append((_handle(color(look[0]), look[1], "-" if lined else "none"), plain(label)))
    if further:
        dots = ":" if lined else "none"
        marks.append((_handle(color("@muted"), "circle-open" if not lined else "none", dots), "further seeds"))
    return marks


def _look(kind: str) -> tuple[str, str]:
    """Color and symbol of a legend's style class, as traces have them.

    >>> _look("swatch-3 shape-2 later"), _look("swatch-base")
    (('@arm3', 'diamond-open'), ('@base', 'diamond-tall'))
    """
    swatch, *rest = kind.split()
    name = swatch.removeprefix("swatch-")
    if not rest:
        return f"@{name}", "diamond-tall"
    symbol = SYMBOLS[int(rest[0].removeprefix("shape-"))]
    return f"@arm{name}", f"{symbol}-open" if "later" in rest else symbol


def _handle(ink: Any, symbol: str, line: Any) -> Line2D:
    from matplotlib.lines import Line2D

    from limbeck.report.drawing import LARGER, MARKERS

    is_open, form = symbol.endswith("-open"), MARKERS.get(symbol.removesuffix("-open"), "none")
    return Line2D(
        [], [], color=ink, linestyle=line, linewidth=1, marker=form, markersize=4.5 * LARGER.get(form, 1),
        markerfacecolor="white" if is_open else ink, markeredgewidth=0.7 if is_open else 0,
    )  # fmt: skip

"""Every figure of a results folder as it is drawn for print, each panel held against the traces that it was made from."""

import html
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer

from limbeck.report import vector
from limbeck.report.drawing import color
from limbeck.report.load import load
from limbeck.report.page import compose
from limbeck.report.parts import Figure, Panel
from limbeck.report.view import View


def figures_of(folder: Path, only: Collection[str] = ()) -> list[Figure]:
    parts = [part for section in compose(View(load(folder))) for part in section.parts]
    return [part for part in parts if isinstance(part, Figure) and (not only or part.sheet.name in only)]


def check_figures(folder: Path, only: Collection[str] = ()) -> int:
    """How many panels were drawn as their traces say."""
    panels = [(figure, panel) for figure in figures_of(folder, only) for panel in figure.panels]
    for figure, panel in panels:
        check(panel, vector.render(figure, panel).axes[0])
    return len(panels)


def check(panel: Panel, axes: Any) -> None:
    marks = [(np.asarray(c.get_offsets()), c) for c in axes.collections if isinstance(c, PathCollection)]
    lines = [(np.column_stack(line.get_data()), line) for line in axes.lines]
    bars = 0
    for trace in panel.data:
        if trace["type"] == "heatmap":
            mesh = next(c for c in axes.collections if isinstance(c, QuadMesh))
            shown = np.ma.filled(mesh.get_array(), np.nan).reshape(np.shape(trace["z"]))
            np.testing.assert_array_equal(shown, np.array(trace["z"], dtype=float))
            assert [t.get_text() for t in axes.texts] == [t for row in trace.get("text", ()) for t in row]
            continue
        points = np.column_stack([np.array(trace[side], dtype=float) for side in ("x", "y")])
        if "markers" in trace["mode"]:
            assert any(same(seen, points) and inked(mark, trace["marker"]) for seen, mark in marks)
        if "lines" in trace["mode"] and trace["line"].get("width", 2):
            dashed = trace["line"].get("dash", "solid") != "solid"
            ink = to_hex(color(trace["line"]["color"]))
            found = [line for seen, line in lines if same(seen, points) and to_hex(line.get_color()) == ink]
            assert any((line.get_linestyle() != "-") == dashed for line in found)
        bars += sum(f"error_{side}" in trace for side in ("x", "y"))
    assert sum(isinstance(container, ErrorbarContainer) for container in axes.containers) == bars
    assert sum("fill" in trace for trace in panel.data) == sum(
        "FillBetween" in type(c).__name__ for c in axes.collections
    )
    assert axes.get_title() == html.unescape(panel.title)
    for name in ("x", "y"):
        spec = panel.layout.get(f"{name}axis", {})
        assert getattr(axes, f"get_{name}label")() == html.unescape(spec.get("title", {}).get("text", ""))
        assert getattr(axes, f"get_{name}scale")() == spec.get("type", "linear")
        if "names" in spec:
            labels = [label.get_text() for label in getattr(axes, f"get_{name}ticklabels")()]
            assert labels == spec["names"]


def same(seen: np.ndarray, points: np.ndarray) -> bool:
    return seen.shape == points.shape and np.array_equal(np.ma.filled(seen, np.nan), points, equal_nan=True)


def inked(mark: PathCollection, marker: dict[str, Any]) -> bool:
    is_open = marker.get("symbol", "").endswith("-open")
    shown = mark.get_edgecolor() if is_open else mark.get_facecolor()
    return to_hex(np.asarray(shown)[0]) == to_hex(color(marker["color"]))

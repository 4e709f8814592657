"""Figures for print: every panel as its traces say, nothing cut, the same bytes again, fonts inside."""

from __future__ import annotations

import builtins
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.text import Text
from tests.drawings import check_figures, figures_of
from tests.unit.report.test_page import changed
from typer.testing import CliRunner

from limbeck import cli
from limbeck.errors import ConfigError, DataError
from limbeck.report import drawing, vector
from limbeck.report.parts import Figure, Panel, Section

LONG = "an objective whose name nobody would want to read aloud"


def test_every_panel_of_every_figure_is_drawn_as_its_traces_say(results: Path):
    assert check_figures(results) == sum(len(figure.panels) for figure in figures_of(results)) >= 30


def sections(results: Path, names: list[str]) -> list[Section]:
    """The first panel of some figures."""
    chosen = [replace(figure, panels=figure.panels[:1]) for figure in figures_of(results, names)]
    return [Section(id="x", title="x", parts=chosen)]


def test_pdf_has_fonts_and_no_dates_and_is_the_same_again(results: Path, tmp_path: Path):
    for name in ("one", "two"):
        vector.write(sections(results, ["path_ce_bare"]), tmp_path / name, "pdf")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["captions.md", "path_ce_bare.pdf"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    raw = (tmp_path / "one" / "path_ce_bare.pdf").read_bytes()
    assert b"/FontFile2" in raw
    assert b"/Type3" not in raw
    assert b"CreationDate" not in raw
    width = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", raw)
    assert width is not None
    assert float(width[1]) == pytest.approx(72 * vector.COLUMN)
    assert "`path_ce_bare.pdf`" in (tmp_path / "one" / "captions.md").read_text(encoding="utf-8")


def test_svg_is_lines_and_not_a_picture(results: Path, tmp_path: Path):
    for name in ("one", "two"):
        vector.write(sections(results, ["cosine_heatmap"]), tmp_path / name, "svg")
    text = (tmp_path / "one" / "cosine_heatmap.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "two" / "cosine_heatmap.svg").read_text(encoding="utf-8")
    assert "<image" not in text
    assert "dc:date" not in text


def test_panels_of_one_figure_have_names_of_their_own(results: Path):
    figure = figures_of(results, ["path_ce_bare"])[0]
    names = vector.file_names(figure)
    assert len(set(names)) == len(figure.panels) > 1
    assert names[0] == "path_ce_bare-1-sft-rft"
    assert all(re.fullmatch(r"[a-z0-9_-]+", name) for name in names)


def drawn(figure: Figure) -> tuple[Canvas, list[Text]]:
    """The first panel as it is laid out, and every text that it shows."""
    with style.context(vector.STYLE, after_reset=True):
        canvas = vector.render(figure, figure.panels[0])
        canvas.draw_without_rendering()
    return canvas, [text for text in canvas.findobj(Text) if text.get_visible() and text.get_text().strip()]


def labelled(word: str) -> Callable[[Any], Any]:
    return lambda study: {**study, "arms": [{**a, "label": f"{word} {a['name']}"} for a in study["arms"]]}


def test_no_text_leaves_the_sheet_and_no_name_is_cut(results: Path, tmp_path: Path):
    folder = changed(results, tmp_path / "in", study=labelled(LONG))
    for name in ("forest", "norm_accuracy", "path_ce_bare"):
        canvas, texts = drawn(figures_of(folder, [name])[0])
        reach = canvas.get_tightbbox()  # inches, of all that is drawn
        assert min(reach.x0, reach.y0) > -0.01, name
        assert all((reach.x1, reach.y1) < canvas.get_size_inches() + 0.01), name
        assert any(f"{LONG} rft" in text.get_text().replace("\n", " ") for text in texts)


def test_labels_are_characters_and_not_markup(results: Path, tmp_path: Path):
    folder = changed(results, tmp_path / "in", study=labelled("<b>$x^2$</b>\n& \ud800 %{x}"))
    canvas, texts = drawn(figures_of(folder, ["norm_accuracy"])[0])
    assert "<b>$x^2$</b> & \ufffd %{x} dpo" in [text.get_text() for text in texts]
    canvas.savefig(tmp_path / "out.pdf")


def test_the_legend_names_each_arm_of_the_panel_once(results: Path):
    figure = figures_of(results, ["norm_accuracy"])[0]
    names = [label for _, label in vector.legend(figure, figure.panels[0])]
    assert names == ["SFT", "RFT", "DFT", "RIFT", "Offline GRPO", "DPO", "DPO at SFT's norm"]
    against = figures_of(results, ["cosine_layers"])[0]
    assert [label for _, label in vector.legend(against, against.panels[0])] == [*names[1:], "further seeds"]


def test_colors_are_those_of_the_page():
    assert drawing.color("@arm0") == pytest.approx((0, 0x72 / 255, 0xB2 / 255, 1))
    assert drawing.color("@shade") == pytest.approx((110 / 255, 115 / 255, 125 / 255, 0.16))
    page = (Path(drawing.__file__).parent / "templates" / "page.js").read_text(encoding="utf-8")
    assert all(f'"{ink}"' in page for ink in drawing.DIVERGING)


DOT = {"type": "scatter", "mode": "markers", "x": [1], "y": [1], "marker": {"color": "@arm0", "size": 8}}


@pytest.mark.parametrize(
    ("data", "layout"),
    [
        ([{**DOT, "type": "violin"}], {}),
        ([{**DOT, "stackgroup": "one"}], {}),
        ([{**DOT, "mode": "lines", "line": {"color": "@arm0"}, "fill": "tozeroy", "fillcolor": "@shade"}], {}),
        ([DOT], {"barmode": "stack"}),
        ([DOT], {"xaxis": {"type": "date"}}),
        ([DOT], {"yaxis": {"tickformat": ".1f"}}),
        ([DOT], {"shapes": [{"type": "circle", "x0": 0, "x1": 1, "y0": 0, "y1": 1, "line": {"width": 0}}]}),
    ],
)
def test_what_it_does_not_know_is_refused_by_name(axes: Axes, data: list[dict[str, Any]], layout: dict[str, Any]):
    drawing.draw(axes, Panel("known", [DOT], {}))
    with pytest.raises(DataError, match=r"limbeck\.report\.drawing"):
        drawing.draw(axes, Panel("unknown", data, layout))


@pytest.fixture
def axes() -> Axes:
    return Canvas().add_subplot()


def test_without_matplotlib_a_sentence_says_how_to_get_it(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'limbeck\[figures\]'"):
        vector.figures([results], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_writes_figures_alone(results: Path, tmp_path: Path):
    (tmp_path / "study" / "results").mkdir(parents=True)
    for name in ("study.json", "comparison.json"):
        shutil.copy(results / name, tmp_path / "study" / "results" / name)
    asked = ["report", str(tmp_path / "study"), "--figures", str(tmp_path / "out"), "--format", "svg"]
    done = CliRunner().invoke(cli.app, asked)
    assert done.stdout == f"{tmp_path / 'out'}\n"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["captions.md", "forest.svg"]
    assert not (tmp_path / "study" / "report.html").exists()
    assert isinstance(CliRunner().invoke(cli.app, [*asked[:-1], "png"]).exception, ConfigError)
    assert isinstance(CliRunner().invoke(cli.app, [*asked, "--markdown"]).exception, ConfigError)
    assert isinstance(CliRunner().invoke(cli.app, [*asked[:2], *asked[-2:]]).exception, ConfigError)
    assert json.loads((tmp_path / "study" / "results" / "study.json").read_text())["name"] == "abacus-six"

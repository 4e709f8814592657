"""The page: complete, offline, the same twice, and deaf to whatever the data says."""

from __future__ import annotations

import csv
import importlib.resources
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.browser import CHROMIUM, Tab, opened

from limbeck.geometry.table import read_measurements, write_measurements
from limbeck.records import read_json, write_json
from limbeck.report import build
from limbeck.report.load import FILES
from limbeck.report.page import fill
from limbeck.report.parts import MAX_ROWS, Sentence, Sheet
from limbeck.types import Measurement, Null

AXE = importlib.resources.files("axe_core_python") / "axe.min.js"  # the checker alone; its drivers are not used
EVIL = "</script><script>window.owned=1</script><img src=x onerror=alert(1)>{{ 7*7 }}'\"\u2028 %{x} <b>"


class Skeleton(HTMLParser):
    """The elements and attributes of a page, the text of its scripts, and its plain text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(attrs)))
        self.open = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def handle_data(self, data: str) -> None:
        if self.open == "script":
            self.scripts[-1] += data
        elif self.open != "style":
            self.words.append(data)


@pytest.fixture(scope="module")
def page(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(results, tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def skeleton(page: Path) -> Skeleton:
    return Skeleton(page.read_text(encoding="utf-8"))


def changed(results: Path, folder: Path, **edits: Callable[[Any], Any]) -> Path:
    shutil.copytree(results, folder)
    for name, change in edits.items():
        write_json(folder / f"{name}.json", change(read_json(folder / f"{name}.json")))
    return folder


def text_of(skeleton: Skeleton) -> str:
    return re.sub(r"\s+", " ", " ".join(skeleton.words))


def test_the_same_folder_gives_the_same_bytes(results: Path, page: Path, tmp_path: Path):
    again = build(results, tmp_path / "again")
    assert again.read_bytes() == page.read_bytes()
    for path in sorted((page.parent / "figures").iterdir()):
        assert (again.parent / "figures" / path.name).read_bytes() == path.read_bytes()


def test_nothing_is_fetched_and_the_policy_forbids_it(page: Path, skeleton: Skeleton):
    policy = next(dict(a)["content"] for t, a in skeleton.elements if ("http-equiv", "Content-Security-Policy") in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy.split("script-src")[1].split(";")[0]
    for tag, attributes in skeleton.elements:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        for name, value in attributes:
            assert name not in ("src", "srcset", "style", "action")
            assert not name.startswith("on")
            if name == "href":
                assert re.fullmatch(r"#[a-z]+|figures/[a-z_0-9]+\.csv", value or "")


def test_it_is_small_enough_to_send(page: Path):
    assert page.stat().st_size < 8e6


def test_every_link_has_its_file_and_every_file_a_link(page: Path, skeleton: Skeleton):
    links = {dict(a)["href"] for t, a in skeleton.elements if t == "a" and "download" in dict(a)}
    assert links == {f"figures/{p.name}" for p in (page.parent / "figures").iterdir()}
    ids = {dict(a)["id"] for _, a in skeleton.elements if "id" in dict(a)}
    anchors = {dict(a)["href"] for t, a in skeleton.elements if t == "a"} - links
    assert {a.removeprefix("#") for a in anchors if a} <= ids


def test_data_never_becomes_an_element_or_an_attribute(results: Path, tmp_path: Path):
    """Two studies that differ in their texts alone have one skeleton."""

    def worded(word: str) -> Skeleton:
        def study(value: dict[str, Any]) -> dict[str, Any]:
            arms = [{**arm, "label": f"{word}{i}"} for i, arm in enumerate(value["arms"])]
            return {**value, "arms": arms, "question": word, "name": word, "student": word, "config": {word: word}}

        def rollouts(value: dict[str, Any]) -> dict[str, Any]:
            answers = [{"text": word, "reward": word, "finish": word}]
            return {**value, "examples": [{"problem_id": word, "prompt": word, "answer": word, "responses": answers}]}

        def samples(value: list[dict[str, Any]]) -> list[dict[str, Any]]:
            said = {"text": word, "extracted": word, "correct": False, "finish": word}
            return [{"problem_id": word, "prompt": word, "answer": word, "responses": {"base": said, word: said}}]

        def provenance(value: dict[str, Any]) -> dict[str, Any]:
            return {**value, "command": word, "versions": {word: word}, "steps": [{"name": word, "seconds": 1}]}

        name = f"study{len(word)}"
        folder = changed(
            results, tmp_path / name, study=study, rollouts=rollouts, samples=samples, provenance=provenance
        )
        return Skeleton(build(folder, tmp_path / f"{name}-out").read_text(encoding="utf-8"))

    plain, evil = worded("x"), worded(EVIL)
    assert [e for e in plain.elements if e[0] != "title"] == [e for e in evil.elements if e[0] != "title"]
    assert plain.scripts[2:] == evil.scripts[2:]
    assert "window.owned" in text_of(evil)
    assert "{{ 7*7 }}" in text_of(evil)


def test_islands_are_json_that_cannot_end_their_script(page: Path):
    raw = page.read_text(encoding="utf-8")
    for name in ("panels", "widgets"):
        island = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', raw, re.S)
        assert island is not None
        assert not re.search(r"[<>&\u2028\u2029]", island[1])
        json.loads(island[1])


def strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from strings(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item, key)


def test_labels_reach_plotly_without_tags_and_outside_templates(results: Path, tmp_path: Path):
    def study(value: dict[str, Any]) -> dict[str, Any]:
        return {**value, "arms": [{**arm, "label": f"<a href='x'>{arm['name']}</a>"} for arm in value["arms"]]}

    out = build(changed(results, tmp_path / "in", study=study), tmp_path / "out")
    panels = json.loads(Skeleton(out.read_text(encoding="utf-8")).scripts[0])
    shown = [text for key, text in strings(panels) if key in ("text", "hovertext", "ticktext", "title", "name")]
    assert any("&lt;a href" in text for text in shown)
    assert not [text for text in shown if "<" in text.replace("<br>", "")]
    assert {text for key, text in strings(panels) if "template" in key} <= {"%{text}"}


def test_a_lone_surrogate_does_not_stop_the_page(results: Path, tmp_path: Path):
    folder = changed(results, tmp_path / "in", study=lambda s: {**s, "question": "why \ud800?"})
    assert "why ??" in build(folder, tmp_path / "out").read_text(encoding="utf-8")


ABSENT = {
    "comparison.json": "so no arm has an accuracy.", "measurements.parquet": "No cosine was measured",
    "paths.json": "No path between two arms was evaluated", "samples.json": "The rollouts that all arms were given",
    "rollouts.json": "One problem, every answer", "training.json": "What each arm was given",
    "arms.json": "Accuracy", "provenance.json": "Resolved configuration", "study.json": "No cosine",
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_an_absent_file_leaves_a_sentence(results: Path, tmp_path: Path, name: str):
    shutil.copytree(results, tmp_path / "in")
    (tmp_path / "in" / name).unlink()
    said = text_of(Skeleton(build(tmp_path / "in", tmp_path / "out").read_text(encoding="utf-8")))
    assert f"Not in this folder: {name}." in said
    if name != "study.json":
        assert ABSENT[name] in said


@pytest.mark.parametrize("name", FILES)
def test_any_single_file_makes_a_page(results: Path, tmp_path: Path, name: str):
    (tmp_path / "in").mkdir()
    shutil.copy(results / name, tmp_path / "in" / name)
    assert build(tmp_path / "in", tmp_path / "out").is_file()


def blanked(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: blanked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [blanked(item) for item in value]
    return None if isinstance(value, float) else value


def test_null_in_place_of_every_number_is_a_dash(results: Path, tmp_path: Path):
    edits = dict.fromkeys(("comparison", "arms", "paths", "training", "rollouts", "provenance"), blanked)
    folder = changed(results, tmp_path / "in", **edits)
    rows = read_measurements(folder / "measurements.parquet")
    undefined = [
        Measurement(
            **{**{k: getattr(m, k) for k in m.__slots__}, "value": math.nan, "null": Null(), "reason": "zero_norm"}
        )
        for m in rows
    ]
    write_measurements(folder / "measurements.parquet", undefined)
    said = text_of(Skeleton(build(folder, tmp_path / "out").read_text(encoding="utf-8")))
    assert not re.search(r"\bnan\b", said)
    assert "zero norm" in said


def read_csv(page: Path, name: str) -> list[dict[str, str]]:
    with (page.parent / "figures" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_sheets_hold_the_numbers_of_the_folder_unrounded(results: Path, page: Path):
    comparison = read_json(results / "comparison.json")
    values = {row["run"]: float(row["value"]) for row in read_csv(page, "forest")}
    assert values == {arm["name"]: arm["value"] for arm in comparison["arms"]}
    pairs = {(row["a"], row["b"]): float(row["p_holm"]) for row in read_csv(page, "pairs")}
    told = {frozenset((p["a"], p["b"])): p["p_holm"] for p in comparison["pairs"]}
    assert {frozenset(key): value for key, value in pairs.items()} == told
    measured = {
        frozenset((m.arm, m.other)): m.value
        for m in read_measurements(results / "measurements.parquet")
        if m.metric == "cosine" and m.aggregation == "stacked" and not m.kind
    }
    heat = {
        frozenset((r["a"], r["b"])): float(r["cosine"]) for r in read_csv(page, "cosine_heatmap") if r["a"] != r["b"]
    }
    assert heat == measured
    shown = {frozenset((row["a"], row["b"])): float(row["cosine"]) for row in read_csv(page, "cosines")}
    assert shown == {pair: measured[pair] for pair in shown}
    assert len(shown) == 22  # 21 pairs of the first seeds and one of two seeds
    training = read_json(results / "training.json")
    assert len(read_csv(page, "training")) == sum(map(len, training.values()))


def test_no_cell_of_a_sheet_is_a_formula():
    rows = [["=1+1"], ["@x"], ["-2+3"], ["-5"], ["+1.5"], [math.nan], [None], ['a,"b"\n'], [-0.25]]
    cells = [row[0] if row else "" for row in csv.reader(Sheet("x", ["c"], rows).csv().splitlines(keepends=True))]
    assert cells == ["c", "'=1+1", "'@x", "'-2+3", "-5", "+1.5", "", "", 'a,"b"\n', "-0.25"]


def test_the_first_screen_answers_from_the_numbers(skeleton: Skeleton, results: Path):
    said = text_of(skeleton)
    comparison = read_json(results / "comparison.json")
    base = next(arm for arm in comparison["arms"] if arm["name"] == "base")
    assert f"Base answers {100 * base['value']:.1f} % right" in said
    assert "One seed for every arm but SFT: no claim about training variance." in said
    assert "Two seeds of one objective reach" in said
    assert said.index("Do six losses") < said.index("Base answers") < said.index("What differs in the set-up")


def test_long_lists_of_arms_and_later_sentences_of_the_first_screen_are_folded():
    long = Sentence("limit", "Not decided: a, b, c.", "Not decided: 3 arms.")
    others = [Sentence("geometry", f"Number {i}.") for i in range(6)]
    study = {"name": "s", "question": "q", "seeds": [0]}
    page = fill("page.html.j2", [], study=study, sentences=[long, *others])
    assert "<summary>Not decided: 3 arms.</summary><p>Not decided: a, b, c.</p></details>" in page
    assert re.search(r"<summary>2 more</summary>\s*<p>Number 4.</p>\s*<p>Number 5.</p>\s*</details>", page)
    assert "more</summary>" not in fill(
        "page.html.j2", [], study={"name": "s", "question": "q", "seeds": [0]}, sentences=others[:5]
    )


def test_every_figure_and_table_says_what_it_can_and_cannot_say(skeleton: Skeleton):
    titles = sum(tag == "h3" for tag, _ in skeleton.elements)
    captions = sum("caption" in (dict(a).get("class") or "").split() for _, a in skeleton.elements)
    assert titles == captions >= 18


def test_every_matrix_has_its_cosine_with_the_reference_and_every_pair_its_angles(page: Path, results: Path):
    found = {}
    for row in read_measurements(results / "measurements.parquet"):
        if row.aggregation == "module" and row.metric == "cosine":
            found[frozenset((row.arm, row.other)), row.module] = row.value
    rows = read_csv(page, "cosine_modules")
    assert len(rows) == 16 * len({row["b"] for row in rows})
    assert "dpo-s0" in {row["b"] for row in rows}
    for row in rows:
        assert float(row["cosine"]) == pytest.approx(found[frozenset((row["a"], row["b"])), row["module"]], abs=1e-12)
    angles = read_csv(page, "angle_spectra")
    medians = {
        (frozenset((row.arm, row.other)), row.side, row.metric): (row.value, row.null.mean)
        for row in read_measurements(results / "measurements.parquet")
        if row.aggregation == "module-median" and row.k == 10 and not row.kind
    }
    for row in angles:
        value, chance = medians[frozenset((row["a"], row["b"])), row["side"], f"principal_angle_{row['angle']}"]
        assert float(row["degrees"]) == pytest.approx(value, abs=1e-12)
        assert float(row["null_mean"]) == pytest.approx(chance, abs=1e-12)
    for a, b, c in zip(*[iter(angles)] * 3, strict=True):
        assert [row["angle"] for row in (a, b, c)] == ["smallest", "median", "largest"]
        assert float(a["degrees"]) <= float(b["degrees"]) <= float(c["degrees"]) <= 90


def test_fifty_arms_stay_small_and_say_what_was_left_out(results: Path, tmp_path: Path):
    names = [f"arm{i:02d}" for i in range(50)]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    folder = tmp_path / "in"
    folder.mkdir()
    write_json(folder / "study.json", {"name": "many", "reference_arm": names[0]})
    write_json(folder / "arms.json", [{"run": name, "arm": name, "seed": 0} for name in names])
    curve = [{"step": i, "nll": 1 / (i + 1), "loss": 2.0, "grad_norm": 1.0} for i in range(200)]
    write_json(folder / "training.json", dict.fromkeys(names, curve))
    pair = {"difference": 0.1, "low": 0.0, "high": 0.2, "p": 0.01, "p_holm": 0.2, "n": 500}
    arms = [{"name": name, "value": 0.5, "low": 0.4, "high": 0.6} for name in names]
    found = {"n": 500, "alpha": 0.05, "arms": arms, "pairs": [{"a": a, "b": b, **pair} for a, b in pairs]}
    write_json(folder / "comparison.json", found)
    one = {"metric": "cosine", "unit": "none", "value": 0.5}
    rows = [Measurement(aggregation="stacked", arm=a, other=b, **one) for a, b in pairs]
    rows += [Measurement(aggregation="layer", layer=n, arm=a, other=b, **one) for a, b in pairs for n in range(2)]
    rows += [
        Measurement(aggregation="module", layer=n, kind=kind, module=f"model.layers.{n}.{kind}", arm=names[0], other=b, **one)
        for b in names[1:13] for n in range(36) for kind in ("q_proj", "k_proj", "v_proj", "o_proj")
    ]  # fmt: skip
    write_measurements(folder / "measurements.parquet", rows)
    said = "so " * 400
    answers = {name: {"text": said, "extracted": "1", "correct": True, "finish": "stop"} for name in names}
    problem = {"problem_id": "p", "prompt": "How many?", "answer": "1", "responses": answers}
    write_json(folder / "samples.json", [problem] * 100)
    page = build(folder, tmp_path / "out")
    assert page.stat().st_size < 8e6
    assert len(read_csv(page, "cosine_modules")) == 12 * 144
    text = text_of(Skeleton(page.read_text(encoding="utf-8")))
    assert f"{len(pairs) - MAX_ROWS} more rows are in the CSV alone." in text
    assert "Only in samples.json:" in text
    assert "No published comparison has the arms of this study." in text
    assert len(read_csv(page, "cosines")) == len(pairs)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine, so the page is not opened in a browser")
def test_a_browser_draws_every_figure_without_a_word_in_its_console(page: Path, tmp_path: Path):
    with opened(page, tmp_path / "profile") as tab:
        tab.wait("document.readyState === 'complete' && document.querySelector('.plot') !== null")
        left = "const left = document.querySelector('.plot:not(.js-plotly-plot)')"
        tab.wait(f"(() => {{ {left}; left?.scrollIntoView(); return left === null; }})()")
        assert not tab.said
        assert tab.evaluate("document.querySelectorAll('img').length") == 0
        assert "1 of 240" in tab.evaluate("document.body.textContent")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine, so the page is not opened in a browser")
def test_a_browser_sorts_narrows_filters_and_finds_no_barrier(page: Path, tmp_path: Path):
    shown = "[...document.querySelectorAll('#accuracy tbody tr')].filter((row) => !row.hidden).length"
    with opened(page, tmp_path / "profile") as tab:
        tab.wait("document.readyState === 'complete' && document.querySelector('button.arm') !== null")
        rows = tab.evaluate(shown)
        tab.evaluate("document.querySelectorAll('#accuracy thead button')[1].click()")
        sorted_by = (
            "[...document.querySelectorAll('#accuracy tbody tr')].map((row) => Number(row.cells[1].dataset.sort))"
        )
        values = tab.evaluate(sorted_by)
        assert values == sorted(values, reverse=True)
        assert len(set(values)) > 2

        arm = tab.evaluate(
            "(() => { const b = document.querySelector('button.arm'); b.click(); return b.dataset.arm; })()"
        )
        assert tab.evaluate(shown) < rows
        assert tab.evaluate("!document.getElementById('focus').hidden")
        others = "[...document.querySelectorAll('tbody tr:not([hidden])')].map((row) => [...row.querySelectorAll('[data-arms]')]"
        others += ".flatMap((cell) => JSON.parse(cell.dataset.arms))).filter((arms) => arms.length)"
        assert all(arm in arms for arms in tab.evaluate(others))
        tab.evaluate("document.getElementById('unfocus').click()")
        assert tab.evaluate(shown) == rows

        tab.evaluate("document.querySelector('#matrix td button').click()")
        assert tab.evaluate("document.getElementById('what').value") == "ab"
        cards = "[...document.querySelectorAll('#problem .answer-card')].slice(0, 2)"
        assert tab.evaluate(f"{cards}.map((card) => card.querySelector('.is-right') !== null)") == [True, False]
        assert serious(tab) == []
        tab.evaluate("document.getElementById('theme').click()")
        assert serious(tab) == []
        assert not tab.said


def serious(tab: Tab) -> list[str]:
    """Accessibility faults that axe-core calls serious or critical, each with the first element that has it."""
    tab.evaluate(AXE.read_text(encoding="utf-8"))
    tab.evaluate("window.faults = null; axe.run(document).then((found) => { window.faults = found.violations; }); 0")
    tab.wait("window.faults !== null")
    listed = "window.faults.filter((f) => ['serious', 'critical'].includes(f.impact))"
    return tab.evaluate(f"{listed}.map((f) => `${{f.id}}: ${{f.nodes.length}} times, ${{f.nodes[0].html}}`)")


def test_arms_over_their_seeds_have_a_table(tmp_path: Path, results: Path):
    shutil.copytree(results, tmp_path / "seeds")
    comparison = read_json(tmp_path / "seeds" / "comparison.json")
    pair = {
        "a": "sft", "b": "dpo", "seeds": [2, 3], "difference": 0.1, "low": 0.02, "high": 0.18, "p": 0.02, "p_holm": 0.04,
        "p_bh": 0.03, "smallest_callable": 0.08, "test": "crossed_t", "method": "crossed_t",
    }  # fmt: skip
    comparison["over_seeds"] = {"pairs": [pair], "notes": ["two seeds <are> few"]}
    write_json(tmp_path / "seeds" / "comparison.json", comparison)
    page = build(tmp_path / "seeds", tmp_path / "with").read_text(encoding="utf-8")
    assert "Arms over their seeds" in page
    assert "Two seeds &lt;are&gt; few." in page
    assert "Arms over their seeds" not in build(results, tmp_path / "without").read_text(encoding="utf-8")

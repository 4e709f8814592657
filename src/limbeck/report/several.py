"""Several studies on one page: what each answers, all arms of those that asked the same problems together, then each study.

Accuracies of two studies are held against each other only by paired tests on the same problems; where the answers that this
takes are missing, a sentence says so and no number of the one stands beside one of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from limbeck.bounds import content_of
from limbeck.errors import ConfigError
from limbeck.report import answer
from limbeck.report.joint import Together, arm_name, together
from limbeck.report.load import load
from limbeck.report.page import compose, fill, write
from limbeck.report.parts import Figure, Panel, Section, Table, Widget
from limbeck.report.terminal import short_names
from limbeck.report.view import View
from limbeck.report.words import slug

ALONE = ("matrix", "browser")  # interactive parts of which a page has one; they stay in the study's own report


class Study(NamedTuple):
    """One study as the page has it: ``name`` is distinct, ``folder`` holds its CSVs below ``figures/``."""

    name: str
    folder: str
    results: Path
    view: View
    sections: Sequence[Section]


def build(folders: Sequence[Path], out: Path) -> Path:
    """Write ``report.html``, ``figures/*.csv`` of all studies together and ``figures/STUDY/*.csv`` of each.

    Args:
        folders: study folders or results folders, two or more; only read.
        out: the folder to write into, made if needed; none of the studies.

    Returns:
        The path of ``report.html``.

    Raises:
        ConfigError: a study is given twice, or ``out`` is one of them.
        FolderError, DataError: as :func:`limbeck.report.page.build`.
    """
    own = [
        folder
        for folder in folders
        if folder.resolve() == out.resolve() or results_of(folder).resolve() == out.resolve()
    ]
    if own:
        raise ConfigError(f"--out must be none of the studies, whose own report.html it would replace; received {out}.")
    with content_of(folders[0]):
        studies = read(folders)
        joint = _joint(studies)
        sections, page = _in_order(studies, joint), render(studies, joint)
    return write(out, sections, page)


def sections_of(folders: Sequence[Path]) -> list[Section]:
    """The sections of that page, in its order."""
    studies = read(folders)
    return _in_order(studies, _joint(studies))


def results_of(folder: Path) -> Path:
    """The results folder of a study folder; a results folder is its own."""
    return folder / "results" if (folder / "results").is_dir() else folder


def read(folders: Sequence[Path]) -> list[Study]:
    """Studies by distinct names: where two share theirs, as much of their paths as tells them apart is added."""
    places = [results_of(folder) for folder in folders]
    again = [
        str(folder) for i, folder in enumerate(folders) if places[i].resolve() in {p.resolve() for p in places[:i]}
    ]
    if again:
        raise ConfigError(
            f"a report of several studies takes each once, received {', '.join(again)} twice. Leave one out."
        )
    views = [View(load(place)) for place in places]
    names = [str(view.results.study["name"]) for view in views]
    paths = short_names([place.resolve().parent if place.name == "results" else place for place in places])
    shown = [name if names.count(name) == 1 else f"{name} ({path})" for name, path in zip(names, paths, strict=True)]
    slugs = [slug(name) or "study" for name in shown]
    unique = [text if slugs.count(text) == 1 else f"{text}-{i}" for i, text in enumerate(slugs, 1)]
    return [
        Study(name, text, place, view, _sections(view, name, text))
        for name, text, place, view in zip(shown, unique, places, views, strict=True)
    ]


def _sections(view: View, study: str, folder: str) -> list[Section]:
    """The sections of a study without what its own report alone has, their sheets in a folder of its own."""
    kept = [
        replace(section, parts=[_moved(part, study, folder) for part in section.parts if part.kind not in ALONE])
        for section in compose(view)
    ]
    return [section for section in kept if section.parts or section.missing]


def _moved(part: Table | Figure | Widget, study: str, folder: str) -> Table | Figure | Widget:
    """A part with its sheets in a folder of its own, and its arms by the names that they have among all studies."""
    if isinstance(part, Widget):
        return replace(part, sheets=[sheet._replace(name=f"{folder}/{sheet.name}") for sheet in part.sheets])
    sheet = part.sheet._replace(name=f"{folder}/{part.sheet.name}")
    if isinstance(part, Figure):
        return replace(part, sheet=sheet, panels=[_renamed(panel, study) for panel in part.panels])
    rows = [[cell._replace(arms=_named(study, cell.arms)) for cell in row] for row in part.rows]
    return replace(part, sheet=sheet, rows=rows)


def _renamed(panel: Panel, study: str) -> Panel:
    data = [{**trace, "meta": arm_name(study, trace["meta"])} if trace.get("meta") else trace for trace in panel.data]
    return panel._replace(data=data, arms=_named(study, panel.arms))


def _named(study: str, arms: Sequence[str]) -> list[str]:
    return [arm_name(study, arm) for arm in arms]


def _joint(studies: Sequence[Study]) -> Together:
    return together([(study.name, study.results, study.view) for study in studies])


def _in_order(studies: Sequence[Study], joint: Together) -> list[Section]:
    return [*joint.sections, *(section for study in studies for section in study.sections)]


def render(studies: Sequence[Study], joint: Together) -> str:
    """The page as text."""
    told: list[dict[str, Any]] = []
    for number, study in enumerate(studies, 1):
        sentences = answer.sentences(study.view)
        first = [s for s in sentences if s.about in ("named", "decides", "answer")]
        told.append({
            "id": f"study-{number}", "name": study.name, "study": study.view.results.study, "first": first,
            "rest": [s for s in sentences if s not in first], "sections": study.sections,
        })  # fmt: skip
    return fill("several.html.j2", _in_order(studies, joint), joint=joint, studies=told)

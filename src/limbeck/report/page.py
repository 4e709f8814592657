"""Sections in their order, rendered into one file that opens offline and asks the network for nothing.

The page's policy forbids every connection and every script but the two that are written here, by their digests.
Data reaches the page as escaped text or inside JSON islands; it never becomes an element, an attribute or a script.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from limbeck.bounds import content_of
from limbeck.leftovers import whole
from limbeck.records import plain
from limbeck.report import (
    accuracies,
    answer,
    beside,
    components,
    contrasts,
    controls,
    dense,
    figures,
    frontier,
    geometry_figures,
    inside,
    locking,
    matrix,
    merges,
    modules,
    onpolicy,
    primary,
    retained,
    shares,
    signals,
    tables,
    weights,
)
from limbeck.report.claims import asked, claims
from limbeck.report.load import load
from limbeck.report.parts import Figure, Section, Widget, sheets_of
from limbeck.report.view import View
from limbeck.report.whole import Whole
from limbeck.report.words import NONE, number, short


def build(results: Path, out: Path) -> Path:
    """Write ``report.html`` and ``figures/*.csv`` for a results folder.

    The same folder gives the same bytes. Files of a study that are absent leave a sentence in their section.

    Args:
        results: the folder that a study wrote; only read.
        out: the folder to write into, made if needed; may be ``results`` itself.

    Returns:
        The path of ``report.html``.

    Raises:
        FolderError: ``results`` is no results folder.
        DataError: one of its files is malformed.
    """
    with content_of(Path(results)):
        view = View(load(Path(results)))
        sections = compose(view)
        page = render(view, sections)
    return write(Path(out), sections, page)


def write(out: Path, sections: Sequence[Section], page: str) -> Path:
    """A page and the sheets of its sections, which may lie in folders of their own; the path of the page."""
    for section in sections:
        for part in section.parts:
            for sheet in sheets_of(part):
                path = out / "figures" / f"{sheet.name}.csv"
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(path, sheet.csv())
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "report.html", page)
    return out / "report.html"


def compose(view: View) -> list[Section]:
    """All sections; one without data has a sentence in place of its parts."""
    live = [_live(view)] if onpolicy.live_runs(view) else []
    kl = [_frontier(view)] if view.results.frontier else []
    return [
        _accuracy(view), _pairs(view), *_made(view), *kl, *live, *_whole(Whole(view)), _direction(view), _subspaces(view),
        _size(view), _paths(view), _states(view), _training(view), _samples(view), _published(view), _provenance(view),
    ]  # fmt: skip


def _section(id_: str, title: str, parts: list[Any], missing: str, lead: str = "") -> Section:
    kept = [part for part in parts if part is not None]
    return Section(id=id_, title=title, lead=lead, parts=kept, missing="" if kept else missing)


def _accuracy(view: View) -> Section:
    shown = (figures.forest, accuracies.over_seeds, accuracies.entries, retained.table) if view.scored() else ()
    parts = [part(view) for part in shown]
    return _section("accuracy", "Accuracy", parts, "This folder holds no comparison.json, so no arm has an accuracy.")


def _pairs(view: View) -> Section:
    parts = (
        [primary.table(view), accuracies.pairs_over_seeds(view), matrix.matrix(view), components.table(view)]
        if view.results.comparison.get("pairs")
        else []
    )
    return _section("pairs", "Paired tests", parts, "No pair of arms was compared, so there is no paired test to show.")


def _made(view: View) -> list[Section]:
    """Arms that are made of a table of factors, or of other arms."""
    given = [
        ("factorial", "Which factor decides", [shares.figure(view), shares.table(view)]),
        ("merges", "Sums of other arms", [merges.table(view), merges.foretold(view)]),
    ]
    sections = [_section(name, title, parts, "") for name, title, parts in given]
    return [section for section in sections if section.parts]


def _frontier(view: View) -> Section:
    parts = [
        frontier.figure(view), frontier.ends(view), contrasts.equal(view), frontier.epochs(view), contrasts.rise(view),
        contrasts.beside(view), contrasts.survival(view), signals.signals(view), signals.tokens(view),
    ]  # fmt: skip
    lead = (
        "ERPD-style: extreme policies from fixed rollouts (stage 1), read out as token signals and distilled into the base "
        "under a trust region (stage 2). The source does not give the losses; everything here is our reading."
    )
    signalled = bool(view.results.frontier.get("signals"))
    return _section("frontier", "Accuracy against KL", parts, "No KL was measured.", lead if signalled else "")


def _whole(whole: Whole) -> list[Section]:
    """Three sections of arms that train every weight, each where there is something to show."""
    lead = (
        "Every number of a paradigm's geometry stands beside what an update without structure scores on the same weights; what "
        "differs between arms at equal steps is asked again at equal length."
    )
    given = [
        ("weights", "Every weight, beside chance", [
            weights.overview(whole), weights.over_chance(whole), weights.matched(whole), weights.localisation(whole),
            weights.pairs(whole),
        ]),
        ("locking", "Subspaces and ranks on the way", [
            locking.locking(whole), *(locking.curves(whole, side) for side in locking.SIDES), locking.ranks(whole),
        ]),
        ("controls", "Controls, and training inside a subspace", [
            inside.table(whole), controls.table(whole), controls.figure(whole),
        ]),
    ]  # fmt: skip
    sections = [_section(name, title, parts, "", lead if name == "weights" else "") for name, title, parts in given]
    return [section for section in sections if section.parts]


def _live(view: View) -> Section:
    return _section(
        "onpolicy",
        "On their own rollouts",
        [onpolicy.over_training(view), onpolicy.arms(view), onpolicy.times(view)],
        "",
    )


def _direction(view: View) -> Section:
    heat = geometry_figures.heatmap(view)
    layers = [geometry_figures.cosine_layers(view), modules.cosines(view)]
    parts = [heat, *layers, tables.cosines(view)] if heat else []
    return _section(
        "direction", "Direction of the updates", parts, "No cosine was measured, so nothing is known about direction."
    )


def _subspaces(view: View) -> Section:
    measured = _measured(view, "principal_angle_smallest", "leading_overlap")
    parts = [modules.angles(view), tables.angles(view)] if measured else []
    return _section("angles", "Subspaces", parts, "No principal angle was measured between any two arms.")


def _size(view: View) -> Section:
    parts = [tables.spectra(view)] if _measured(view, "frobenius_norm", "stable_rank") else []
    return _section("size", "Length and rank", [*parts, figures.norm_accuracy(view)], "No norm or rank was measured.")


def _paths(view: View) -> Section:
    parts = [*figures.paths(view), tables.barriers(view)] if view.results.paths else []
    return _section("paths", "Straight paths", parts, "No path between two arms was evaluated in this study.")


def _states(view: View) -> Section:
    return _section("states", "Hidden states", geometry_figures.cka(view), "CKA of hidden states was not measured.")


def _training(view: View) -> Section:
    parts = [figures.training(view), tables.recipes(view) if view.runs else None]
    return _section("training", "Training", parts, "This folder holds neither arms.json nor training.json.")


def _samples(view: View) -> Section:
    parts = [
        matrix.browser(view) if view.results.samples else None,
        matrix.rollouts(view) if view.results.rollouts else None,
    ]
    return _section("samples", "Read the answers", parts, "This folder holds neither samples.json nor rollouts.json.")


def _published(view: View) -> Section:
    whole = Whole(view)
    if len(whole.main) > 1:
        parts = [beside.pattern(dense.claims(whole)), dense.beside(whole), dense.setup(whole)]
    elif view.results.frontier.get("signals"):
        parts = [frontier.statements(view), frontier.accuracy(view)]
    elif onpolicy.named(view):
        parts = [beside.pattern(onpolicy.claims(view)), onpolicy.accuracy(view), onpolicy.setup(view)]
    elif not asked(view):
        return _section("published", "Published numbers", [], "No published comparison has the arms of this study.")
    else:
        parts = [beside.pattern(claims(view)), beside.accuracy(view), beside.quantities(view), beside.setup(view)]
    lead = (
        "Numbers in grey were printed by others, on another model, other data and another grader. They stand beside ours "
        "to compare patterns; no difference between a grey number and one of ours means anything."
    )
    return _section("published", "Published numbers", parts, "", lead)


def _provenance(view: View) -> Section:
    p = view.results.provenance
    facts = [("limbeck", p.get("limbeck")), ("command", p.get("command")), ("started", p.get("started"))]
    facts += [("seconds", short(number(p.get("seconds"))))]
    facts += [(f"version of {k}", v) for k, v in sorted((p.get("versions") or {}).items())]
    facts += [(f"host, {k}", v) for k, v in sorted((p.get("host") or {}).items())]
    facts += [("rollouts by", view.results.rollouts.get("source"))]
    facts += [("rollouts digest", view.results.rollouts.get("digest"))]
    facts += [("problems digest", view.results.comparison.get("problems_digest"))]
    facts += [(f"adapter of {run.id}", run.facts["adapter_digest"]) for run in view.runs if run.facts["adapter_digest"]]
    data = {
        "facts": [(key, str(value)) for key, value in facts if value is not None],
        "steps": [(str(s.get("name")), short(number(s.get("seconds")))) for s in p.get("steps") or []],
        "config": json.dumps(plain(view.results.study.get("config")), indent=2, sort_keys=True, ensure_ascii=False),
        "missing": view.results.missing,
    }
    caption = "What made these numbers. The resolved configuration below runs the same study again."
    widget = Widget(kind="provenance", title="Where the numbers come from", caption=caption, data=data)
    return _section("provenance", "Provenance", [widget], "")


def _measured(view: View, *metrics: str) -> bool:
    return any(row.metric in metrics for row in view.results.measurements)


def render(view: View, sections: list[Section]) -> str:
    """The page as text."""
    return fill("page.html.j2", sections, study=view.results.study, sentences=answer.sentences(view))


def fill(template: str, sections: Sequence[Section], **told: Any) -> str:
    """A template that shows these sections in this order, with what else it is told."""
    panels = [
        {"data": panel.data, "layout": panel.layout, "arms": panel.arms}
        for section in sections
        for part in section.parts
        if isinstance(part, Figure)
        for panel in part.panels
    ]
    widgets = {
        w.kind: w.data for s in sections for w in s.parts if isinstance(w, Widget) and w.kind in ("matrix", "browser")
    }
    scripts = {"plotly": get_plotlyjs(), "page": _asset("page.js")}
    return _environment().get_template(template).render(
        sections=sections,
        counter=iter(range(len(panels))),
        islands={"panels": island(panels), "widgets": island(widgets)},
        style=Markup(_asset("style.css")),  # noqa: S704 - a file of the package
        scripts={name: Markup(text) for name, text in scripts.items()},  # noqa: S704 - files of packages
        policy=policy(list(scripts.values())),
        none=NONE,
        **told,
    )  # fmt: skip


def policy(scripts: list[str]) -> str:
    """No connection, no frame, no form, and no script but these; plotly sets styles, so styles are allowed."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def island(value: Any) -> Markup:
    """JSON that can stand in a script element: nothing in it can end the element or a line of script.

    >>> print(island("</script>"))
    "\\u003c/script\\u003e"
    """
    text = json.dumps(plain(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - nothing that HTML reads is left in it


@cache
def _environment() -> Environment:
    loader = PackageLoader("limbeck.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["next_of"] = next
    return environment


def _asset(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _write(path: Path, text: str) -> None:
    """Whole or not at all; a lone surrogate in model text becomes a question mark."""
    with whole(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "replace"))

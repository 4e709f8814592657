"""The first screen of a results folder: collects the numbers and hands them to the sentences of ``summary``."""

from __future__ import annotations

from collections import Counter
from typing import Any

from limbeck.report import dense, onpolicy, primary, shares, summary
from limbeck.report.barriers import Excess, barriers
from limbeck.report.claims import asked, claims
from limbeck.report.contrasts import place_label
from limbeck.report.parts import Sentence
from limbeck.report.summary import Closeness, Distance, Share, Verdict
from limbeck.report.tables import LOSSES
from limbeck.report.view import Pair, View
from limbeck.report.whole import Whole
from limbeck.report.words import listed, number


def sentences(view: View) -> list[Sentence]:
    """The answer in a reader's order: what the study asked, who is better, how sure, what moved, what was published."""
    question = [*_named(view), *_distances(view), *_decides(view)]
    return [*question, *_accuracy(view), *_seeds(view), *_geometry(view), *_paths(view), *_published(view)]


def _named(view: View) -> list[Sentence]:
    found = [(f"{place_label(view, pair.a)} less {place_label(view, pair.b)}", pair) for pair in primary.named(view)]
    return summary.named([_verdict(label, pair) for label, pair in found], view.alpha)


def _distances(view: View) -> list[Sentence]:
    rows = [row for row in view.results.frontier.get("beside", []) if row["which"] == "best of both"]
    return summary.distances([
        Distance(
            f"{place_label(view, row['a'])} over {place_label(view, row['b'])}",
            *(number(row["factor"].get(key)) for key in ("value", "low", "high")),
        )
        for row in rows
    ])  # fmt: skip


def _decides(view: View) -> list[Sentence]:
    terms = {
        shares.NAMES.get(response, response): [
            Share(t["term"], *(number(t[key]) for key in ("unbiased", "low", "high", "p_holm"))) for t in found
        ]
        for response, found in shares.shares(view).items()
    }
    return summary.decides(terms, view.alpha)


def _accuracy(view: View) -> list[Sentence]:
    if not view.results.comparison:
        return [Sentence("limit", "There is no comparison, so nothing is known about accuracy.")]
    n = int(view.results.comparison.get("n") or 0)
    out = summary.ends(view.accuracy("base"), view.accuracy("teacher"))
    out += summary.against("base", _verdicts(view, "base"), alpha=view.alpha, n=n)
    if view.reference is not None:
        verdicts = _verdicts(view, view.reference.id)
        out += summary.against(view.reference.label, verdicts, alpha=view.alpha, n=n)
    return out + _cut(view)


def _cut(view: View) -> list[Sentence]:
    """From the answers that the page shows, the only ones whose ends are in the results."""
    shown = view.results.samples
    ended = [name for problem in shown for name, said in problem["responses"].items() if said.get("finish") == "length"]
    return summary.cut_short({view.label(name): num for name, num in Counter(ended).items()}, len(shown))


def _verdicts(view: View, other: str) -> list[Verdict]:
    return [_verdict(run.label, pair) for run, pair in view.against(other)]


def _verdict(label: str, p: Pair) -> Verdict:
    return Verdict(label, p.difference, p.low, p.high, p.p_holm, p.smallest_callable, p.smallest_callable_holm)


def _seeds(view: View) -> list[Sentence]:
    pairs = (view.results.comparison.get("over_seeds") or view.results.comparison).get("pairs") or []
    tests = [str(test) for test in dict.fromkeys(pair.get("test") for pair in pairs)]
    return summary.decision(len(pairs), view.alpha, tests) + summary.training_variance(view.seeds_per_arm())


def _geometry(view: View) -> list[Sentence]:
    if found := dense.sentences(Whole(view)):
        return found
    reference = view.reference
    if reference is None:
        return []
    rows = [(run.label, view.get("cosine", reference.id, run.id)) for run in view.contenders if run.id != reference.id]
    arms = [Closeness(label, row.value, row.null.q95) for label, row in rows]
    return summary.cosines(reference.label, arms, view.seed_values("cosine"))


def _paths(view: View) -> list[Sentence]:
    paths = view.results.paths
    losses = dict.fromkeys(str(path["loss"]) for path in paths)
    units = {str(path["loss"]): str(path.get("unit") or "nats/token") for path in paths}
    found = {loss: [_excess(view, path) for path in paths if path["loss"] == loss] for loss in losses}
    return [sentence for loss in losses for sentence in barriers(LOSSES.get(loss, loss), units[loss], found[loss])]


def _excess(view: View, path: dict[str, Any]) -> Excess:
    middle = path.get("excess_midpoint") or {}
    return Excess(
        label=f"{view.label(path['a'])} to {view.label(path['b'])}",
        value=number(middle.get("value")),
        low=number(middle.get("low")),
        high=number(middle.get("high")),
        worse_than_ends=bool(path.get("worse_than_ends")),
        null=view.is_null(path),
    )


def _published(view: View) -> list[Sentence]:
    whole = Whole(view)
    if len(whole.main) > 1:
        found, sources = dense.claims(whole), dense.printed()["source"]
    elif onpolicy.named(view):
        found, sources = onpolicy.claims(view), listed(list(onpolicy.printed()["sources"].values()))
    else:
        found, sources = claims(view) if asked(view) else [], "arXiv 2606.23740"
    return summary.published([(claim.claim, claim.verdict) for claim in found], sources)

"""The first screen: sentences made from numbers, by rules that are written here and tested.

Every function takes plain values and returns sentences; none reads a file. A difference is called only when its
Holm-corrected p-value is below alpha; anything else is "not decided", with what the test could have called.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from limbeck.report.words import bounds, count, fixed, in_a_row, listed, p_value, percent, points, span

MANY = 8  # arms, of which a sentence that names more has a short form
SHARE_CUT = 0.1  # of the answers shown; fewer are not worth a sentence on the first screen


class Verdict(NamedTuple):
    """One arm against one other: a paired difference with its interval, corrected p and smallest callable gaps.

    The gap at Holm's first step is infinite where none could have been called, and NaN where it was not computed.
    """

    label: str
    difference: float
    low: float
    high: float
    p_holm: float
    smallest_callable: float
    smallest_callable_holm: float = math.nan


class Sentence(NamedTuple):
    """A sentence and what it speaks of: "answer", "limit", "geometry", "path" or "published".

    ``brief`` stands for one that names very many arms until a reader opens it.
    """

    about: str
    text: str
    brief: str = ""


def against(other: str, verdicts: Sequence[Verdict], *, alpha: float, n: int) -> list[Sentence]:
    """Who is above, below and undecided against one other; at most three sentences.

    >>> one = Verdict("DPO", 0.05, 0.02, 0.08, 0.004, 0.03)
    >>> against("base", [one], alpha=0.05, n=500)[0].text
    'Better than base (points, 95 % interval, Holm p): DPO +5.0 (2.0 to 8.0, p = 0.004).'
    """
    if not verdicts:
        return []
    called = [v for v in verdicts if v.p_holm < alpha]
    open_ = [v for v in verdicts if not v.p_holm < alpha]
    up = sorted((v for v in called if v.difference > 0), key=lambda v: -v.difference)
    down = sorted((v for v in called if v.difference <= 0), key=lambda v: v.difference)
    what = f"points, {100 * (1 - alpha):g} % interval, Holm p"
    out = [
        Sentence("answer", f"{word} than {other} ({what}): {in_a_row([_with_interval(v) for v in group])}.")
        for word, group in (("Better", up), ("Worse", down))
        if group
    ]
    if not called:
        out.append(Sentence("answer", f"No arm differs from {other} by a test corrected for all pairs."))
    return out + ([_undecided(other, open_, n)] if open_ else [])


def _with_interval(v: Verdict) -> str:
    gap = points(v.difference).removesuffix(" points")
    return f"{v.label} {gap} ({bounds(v.low, v.high, scale=100.0)}, {p_value(v.p_holm)})"


def _undecided(other: str, verdicts: Sequence[Verdict], n: int) -> Sentence:
    who = in_a_row([_briefly(v) for v in verdicts])
    power = _power([v.smallest_callable for v in verdicts], [v.smallest_callable_holm for v in verdicts])
    begin = f"Not decided against {other} on {count(n, 'problem')}"
    brief = f"{begin}: {count(len(verdicts), 'arm')}. {power}" if len(verdicts) > MANY else ""
    return Sentence("limit", f"{begin} (points, Holm p): {who}. {power}", brief)


def _power(alone: Sequence[float], holm: Sequence[float]) -> str:
    """What a test could have called by itself, and as the smallest p of all pairs, which must pass alpha over their number."""
    if not any(map(math.isfinite, alone)):
        return "No difference at all could have been called with so few problems on which they disagree."
    text = f"The smallest difference that this test could have called alone is {_reach(alone)}"
    if all(map(math.isnan, holm)):
        return f"{text}."
    if not any(map(math.isfinite, holm)):
        return f"{text}; at Holm's first step (alpha over the number of pairs) no difference could have been called."
    return f"{text}; at Holm's first step (alpha over the number of pairs) it is {_reach(holm)}."


def _reach(gaps: Sequence[float]) -> str:
    known = [gap for gap in gaps if math.isfinite(gap)]
    words, least = points(max(known), signed=False), fixed(100 * min(known), 1)
    if least != fixed(100 * max(known), 1):
        words = f"{least} to {words}, by pair"
    none = len(gaps) - len(known)
    return words + (f" (and none for {none} of {len(gaps)})" if none else "")


def _briefly(v: Verdict) -> str:
    return f"{v.label} {points(v.difference).removesuffix(' points')} ({p_value(v.p_holm).removeprefix('p ').removeprefix('= ')})"


TESTS = {
    "mcnemar_exact": "McNemar's exact test",
    "sign_flip_exact": "the exact sign-flip test over problems",
    "crossed_t": "Student's t over problems and seeds",
}


def decision(num_pairs: int, alpha: float, tests: Sequence[str]) -> list[Sentence]:
    """How a difference is decided, once for all sentences.

    >>> decision(0, 0.05, [])
    []
    """
    if not num_pairs:
        return []
    named = " or ".join(TESTS.get(test, "the test") for test in tests)
    text = (
        f"Decided means that {named} is below {alpha:g} after Holm's correction over all "
        f"{count(num_pairs, 'pair')}; an interval holds for one pair at a time, so it can leave out 0 where nothing is decided."
    )
    return [Sentence("limit", text)]


def ends(base: float, teacher: float) -> list[Sentence]:
    """Where base and teacher stand.

    >>> ends(0.412, 0.93)[0].text
    'Base answers 41.2 % right, the teacher 93.0 %.'
    """
    if not math.isfinite(base):
        return [Sentence("limit", "The base was not scored, so no arm can be said to have gained or lost by training.")]
    teacher_part = f", the teacher {percent(teacher)}" if math.isfinite(teacher) else ""
    return [Sentence("answer", f"Base answers {percent(base)} right{teacher_part}.")]


def cut_short(cut: Mapping[str, int], num_shown: int) -> list[Sentence]:
    """Who was cut by the length limit in a tenth of the answers that the page shows, or more.

    >>> cut_short({"base": 13, "SFT": 1}, 20)[0].text.partition(". ")[0]
    'Cut by the length limit, of 20 answers each on this page: base 13'
    >>> cut_short({"base": 1}, 20)
    []
    """
    many = in_a_row([f"{label} {num}" for label, num in cut.items() if num >= SHARE_CUT * num_shown])
    if not many:
        return []
    text = (
        f"Cut by the length limit, of {count(num_shown, 'answer')} each on this page: {many}. What is cut has rarely come to "
        "its answer; a larger eval.max_new_tokens may change the accuracies."
    )
    return [Sentence("limit", text)]


def training_variance(seeds: Mapping[str, int]) -> list[Sentence]:
    """What the number of seeds of each arm allows to say.

    >>> training_variance({"SFT": 1, "DPO": 1})[0].text
    'One seed: no claim about training variance.'
    >>> training_variance({"SFT": 2, "DPO": 1})[0].text
    'One seed for every arm but SFT: no claim about training variance.'
    """
    if not seeds:
        return []
    if min(seeds.values()) == 1:
        repeated = [label for label, number in seeds.items() if number > 1]
        who = f" for every arm but {listed(repeated)}" if repeated else ""
        return [Sentence("limit", f"One seed{who}: no claim about training variance.")]
    text = (
        f"{min(seeds.values())} seeds an arm: differences of accuracy speak of new problems and new training runs; those of "
        "the first seed alone have a table of their own."
    )
    return [Sentence("limit", text)]


class Closeness(NamedTuple):
    """Stacked cosine of one arm with the reference, and the half width of its N-ROT band."""

    label: str
    cosine: float
    half_band: float


def cosines(reference: str, arms: Sequence[Closeness], seed_null: Sequence[float]) -> list[Sentence]:
    """How the updates relate to the reference's, beside two seeds of one objective and beside random rotation.

    >>> arms = [Closeness("RFT", 0.97, 0.01), Closeness("DPO", 0.06, 0.02)]
    >>> [s.text for s in cosines("SFT", arms, [0.4])][1]
    'Two seeds of one objective reach 0.40: closer than that to SFT is RFT; further apart is DPO.'
    """
    known = sorted((a for a in arms if math.isfinite(a.cosine)), key=lambda a: -a.cosine)
    if not known:
        return []
    each = in_a_row([f"{a.label} {fixed(a.cosine)}" for a in known])
    out = [Sentence("geometry", f"Cosine of the whole update with that of {reference}: {each}.")]
    out.append(_beside_seeds(reference, known, seed_null))
    bands = [a for a in known if math.isfinite(a.half_band)]
    if bands:
        inside = [a.label for a in bands if abs(a.cosine) <= a.half_band]
        width = fixed(max(a.half_band for a in bands), 3)
        tail = f"inside it: {listed(inside)}" if inside else "every arm lies outside it"
        out.append(
            Sentence("geometry", f"Nine in ten randomly turned updates (N-ROT) stay within ±{width} of 0; {tail}.")
        )
    return out


def _beside_seeds(reference: str, arms: Sequence[Closeness], seed_null: Sequence[float]) -> Sentence:
    if not seed_null:
        text = (
            "No two seeds of one objective were measured, so no cosine can be told from what another seed alone gives."
        )
        return Sentence("limit", text)
    low, high = min(seed_null), max(seed_null)
    reach = span(seed_null)
    parts = []
    for words, group in (
        ("closer than that to", [a.label for a in arms if a.cosine > high]),
        ("no different from that to", [a.label for a in arms if low <= a.cosine <= high]),
        ("further apart", [a.label for a in arms if a.cosine < low]),
    ):
        if group:
            target = f" {reference}" if words.endswith("to") else ""
            parts.append(f"{words}{target} {'is' if len(group) == 1 else 'are'} {listed(group)}")
    return Sentence("geometry", f"Two seeds of one objective reach {reach}: {'; '.join(parts)}.")


class Excess(NamedTuple):
    """The mid-point of one path over its chord, positive is worse, with its interval."""

    label: str
    value: float
    low: float
    high: float
    worse_than_ends: bool
    null: bool


def barriers(loss: str, unit: str, paths: Sequence[Excess]) -> list[Sentence]:
    """Which paths have a barrier: a mid-point shown to lie above the chord, and a point worse than the worse end.

    Absence is claimed only where every interval ends at 0 or below.

    >>> barriers("accuracy", "fraction", [Excess("SFT to DPO", -0.02, -0.03, -0.01, False, False)])[0].text
    'No barrier on accuracy: of 1 path, no mid-point is worse than the chord between its ends.'
    """
    real = [p for p in paths if not p.null and math.isfinite(p.value)]
    if not real:
        return []
    above = [p for p in real if p.low > 0]
    total = count(len(real), "path")
    text = _above(loss, unit, above, total) if above else _not_above(loss, unit, real, total)
    nulls = [p.value for p in paths if p.null and math.isfinite(p.value)]
    if above and nulls:
        beyond = [p.label for p in above if p.low > max(nulls)]
        text += f" Between two seeds that is {fixed(max(nulls), 3)}; beyond it: {listed(beyond) or 'none'}."
    elsewhere = [p.label for p in real if p.worse_than_ends and p not in above]
    if elsewhere:
        over = f"{listed(elsewhere)} {'passes' if len(elsewhere) == 1 else 'pass'} a point worse than both ends"
        text += f" Somewhere along the way {over}, with no mid-point shown to lie above the chord."
    return [Sentence("path", text)]


def _above(loss: str, unit: str, above: Sequence[Excess], total: str) -> str:
    parts = []
    for kind, end, group in (
        ("Barrier", "worse than both ends", [p for p in above if p.worse_than_ends]),
        ("Above the chord, without a barrier,", "never worse than the worse end", [p for p in above if not p.worse_than_ends]),
    ):  # fmt: skip
        if group:
            what = listed([_excess(p) for p in group])
            parts.append(
                f"{kind} on {loss} on {len(group)} of {total}, mid-point over the chord in {unit}: {what}; {end}."
            )
    return " ".join(parts)


def _not_above(loss: str, unit: str, real: Sequence[Excess], total: str) -> str:
    if all(p.high <= 0 for p in real):
        return f"No barrier on {loss}: of {total}, no mid-point is worse than the chord between its ends."
    most = max(real, key=lambda p: p.value)
    return (
        f"No barrier shown on {loss}: of {total}, no mid-point is shown to be worse than the chord between its ends "
        f"(its interval reaches 0); the largest is {_excess(most)} {unit}."
    )


def _excess(path: Excess) -> str:
    return f"{path.label} {fixed(path.value, 3)} ({bounds(path.low, path.high, 3)})"


def published(verdicts: Sequence[tuple[str, str]], source: str) -> list[Sentence]:
    """What of a published pattern came out again, what did not, and what could not be tested.

    >>> published([("DPO is best", "not reproduced")], "arXiv 2606.23740")[0].text
    'Published in arXiv 2606.23740 and NOT reproduced here: DPO is best.'
    """
    out = []
    for verdict, words in (
        ("not reproduced", "and NOT reproduced here"),
        ("undecided", "and not decided here"),
        ("reproduced", "and reproduced here"),
    ):
        group = [
            text[0].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text
            for text, found in verdicts
            if found == verdict
        ]
        if group:
            out.append(Sentence("published", f"Published in {source} {words}: {'; '.join(group)}."))
        elif verdict == "not reproduced" and verdicts:
            text = f"Of {count(len(verdicts), 'published claim')} that these runs can test, none was contradicted."
            out.append(Sentence("published", text))
    return out

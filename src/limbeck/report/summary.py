"""The first screen: sentences made from numbers, by rules that are written here and tested.

Every function takes plain values and returns sentences; none reads a file. A difference is called only when its
Holm-corrected p-value is below alpha; anything else is "not decided", with what the test could have called.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from limbeck.report.parts import Sentence
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


def against(other: str, verdicts: Sequence[Verdict], *, alpha: float, n: int) -> list[Sentence]:
    """Who is above, below and undecided against one other; at most three sentences, short where they would name very many.

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
    out = [
        _called(f"{word} than {other} ({_what(alpha)})", group)
        for word, group in (("Better", up), ("Worse", down))
        if group
    ]
    if not called:
        out.append(Sentence("answer", f"No arm differs from {other} by a test corrected for all pairs."))
    return out + ([_undecided(other, open_, n)] if open_ else [])


def _called(begin: str, verdicts: Sequence[Verdict]) -> Sentence:
    each = [_with_interval(v) for v in verdicts]
    brief = f"{begin}: {count(len(each), 'arm')}, most of all {each[0]}." if len(each) > MANY else ""
    return Sentence("answer", f"{begin}: {in_a_row(each)}.", brief)


def _with_interval(v: Verdict) -> str:
    gap = points(v.difference).removesuffix(" points")
    return f"{v.label} {gap} ({bounds(v.low, v.high, scale=100.0)}, {p_value(v.p_holm)})"


def named(verdicts: Sequence[Verdict], alpha: float) -> list[Sentence]:
    """The comparisons that a study named before it ran, and what became of each.

    >>> named([Verdict("TRRD less KDRL", -0.058, -0.07, -0.046, 4e-6, 0.012)], 0.05)[0].text
    'Named before the run (points, 95 % interval, Holm p): TRRD less KDRL −5.8 (−7.0 to −4.6, p < 0.001).'
    >>> named([Verdict("DFT less SFT", 0.01, -0.02, 0.04, 0.5, 0.03)], 0.05)[0].text.partition(": ")[2]
    'DFT less SFT +1.0 (−2.0 to 4.0, p = 0.5), not decided.'
    """
    if not verdicts:
        return []
    each = [_with_interval(v) + ("" if v.p_holm < alpha else ", not decided") for v in verdicts]
    return [Sentence("named", f"Named before the run ({_what(alpha)}): {'; '.join(each)}.")]


def _what(alpha: float) -> str:
    return f"points, {100 * (1 - alpha):g} % interval, Holm p"


class Distance(NamedTuple):
    """The KL to the base of one arm over that of another, with its interval."""

    label: str
    value: float
    low: float
    high: float


def distances(found: Sequence[Distance]) -> list[Sentence]:
    """How far the arms of named pairs are from the base, one over the other.

    >>> distances([Distance("stage 2 over GRPO", 0.545, 0.394, 0.756)])[0].text
    'KL to the base, each where it is most accurate: stage 2 over GRPO is 0.55 (0.39 to 0.76).'
    """
    each = [f"{d.label} is {fixed(d.value)} ({bounds(d.low, d.high, 2)})" for d in found if math.isfinite(d.value)]
    text = f"KL to the base, each where it is most accurate: {in_a_row(each)}."
    return [Sentence("named", text)] if each else []


class Share(NamedTuple):
    """Of one response's variance what a term has, a fraction, with its interval over seeds and Holm's p over the terms."""

    term: str
    value: float
    low: float
    high: float
    p_holm: float


def decides(shares: Mapping[str, Sequence[Share]], alpha: float) -> list[Sentence]:
    """What decides each response of a factorial: its largest terms that chance is told from, at most three.

    >>> terms = [Share("objective", 0.372, 0.358, 0.385, 0.004), Share("schedule", 0.001, 0.0, 0.001, 0.3)]
    >>> decides({"direction": terms}, 0.05)[0].text
    'Variance of direction: objective 37.2 % (35.8 to 38.5).'
    >>> decides({"length": terms[1:]}, 0.05)[0].text
    'Variance of length: told from chance is no factor.'
    """
    out = []
    for response, terms in shares.items():
        called = sorted((t for t in terms if t.p_holm < alpha), key=lambda t: -t.value)
        each = [f"{t.term} {percent(t.value)} ({bounds(t.low, t.high, scale=100.0)})" for t in called[:3]]
        out.append(
            Sentence("decides", f"Variance of {response}: {', '.join(each) or 'told from chance is no factor'}.")
        )
    return out


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
    each = [f"{a.label} {fixed(a.cosine)}" for a in known]
    begin = f"Cosine of the whole update with that of {reference}"
    brief = f"{begin}: {count(len(each), 'arm')}, from {each[-1]} to {each[0]}." if len(each) > MANY else ""
    out = [Sentence("geometry", f"{begin}: {in_a_row(each)}.", brief)]
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

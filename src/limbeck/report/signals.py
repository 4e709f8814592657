"""The token signals of a study: how each was made, and rollouts to read, coloured by what a signal says of every token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from limbeck.report.parts import Cell, Sheet, Table, Widget
from limbeck.report.tables import name_cell
from limbeck.report.view import View
from limbeck.report.words import fixed, number, percent, short

STRONGEST = 5  # tokens of a rollout that its text alternative names


def signals(view: View) -> Table | None:
    """How each signal was made and what it says of right and wrong rollouts."""
    rows, raw = [], []
    for run, facts in view.results.frontier.get("signals", {}).items():
        for told in facts["teachers"]:
            agreement = number(facts["agreement"])
            floored = int(told["floored"]) + int(told["contrast_floored"])
            rows.append([
                name_cell(view, run), Cell(told["name"], told["name"]), Cell(told["contrast"], told["contrast"]),
                Cell(short(number(told["drift"])), number(told["drift"])),
                Cell(short(number(told["contrast_drifts"].get(told["contrast"])))),
                Cell(short(told["scale_nats"]), told["scale_nats"]), Cell(short(told["mean"]), told["mean"]),
                Cell(short(told["std"]), told["std"]), Cell(percent(told["clamped_share"]), told["clamped_share"]),
                Cell(str(floored), floored), Cell(percent(agreement), agreement),
            ])  # fmt: skip
            raw.append([
                run, told["name"], told["contrast"], told["drift"], told["contrast_drifts"].get(told["contrast"]),
                told["scale_nats"], told["mean"], told["std"], told["clamped_share"], floored, agreement,
            ])  # fmt: skip
    if not rows:
        return None
    return Table(
        title="The signals",
        caption=(
            "Token log-ratio of a teacher and its contrast on the arm's rollouts, over the scale and clamped. Agreement: of two "
            "rollouts of one problem, one right and one wrong, how often the right one has the larger summed signal (of all "
            "teachers together); 50 % is chance. Floored: tokens of probability 0, counted as -20 nats."
        ),
        head=["arm", "teacher", "contrast", "drift", "its drift", "scale", "mean", "sd", "clamped", "floored", "agreement"],
        rows=rows,
        sheet=Sheet(
            "signals",
            ["run", "teacher", "contrast", "drift", "contrast_drift", "scale_nats", "mean", "std", "clamped_share",
             "floored", "agreement"],
            raw,
        ),
        words=3,
        first=24,
    )  # fmt: skip


def tokens(view: View) -> Widget | None:
    """Rollouts with each token coloured by what a signal says of it; the strongest are named in words."""
    views = view.results.frontier.get("views", [])
    if not views:
        return None
    rows = [
        [i, run, place, token, value]
        for i, one in enumerate(views)
        for run, values in one["signals"].items()
        for place, (token, value) in enumerate(zip(one["tokens"], values, strict=True))
    ]
    shown = [
        {
            "prompt": one["prompt"],
            "verdict": "right" if one["right"] else "wrong",
            "lines": [_line(view.label(run), one["tokens"], values) for run, values in one["signals"].items()],
        }
        for one in views
    ]
    return Widget(
        kind="tokens",
        title="Rollouts, token by token",
        caption=(
            "A right and a wrong rollout of a few problems. Blue and underlined: stage 2 is told to make the token likelier; "
            "orange and dotted: less likely; darker where the signal is stronger, relative to the strongest token of the line."
        ),
        data={"views": shown},
        sheets=(Sheet("token_signals", ["rollout", "run", "place", "token", "signal"], rows),),
    )


def _line(label: str, texts: Sequence[str], values: Sequence[float]) -> dict[str, Any]:
    top = max((abs(v) for v in values), default=0.0)
    strongest = sorted(range(len(values)), key=lambda i: -abs(values[i]))[:STRONGEST]
    named = [
        f"“{texts[i].strip() or ' '}” {'+' if values[i] > 0 else ''}{fixed(values[i], 2)}"
        for i in strongest
        if values[i]
    ]
    return {
        "label": label,
        "tokens": [{"text": text, "tone": tone(value, top)} for text, value in zip(texts, values, strict=True)],
        "words": f"Strongest: {', '.join(named)}." if named else "The signal is 0 on every token.",
    }


def tone(value: float, top: float) -> str:
    """The style class of a signal, by thirds of the strongest one; none below a twentieth.

    >>> tone(0.9, 1.0), tone(-0.4, 1.0), tone(0.01, 1.0)
    ('up-3', 'down-2', '')
    """
    share = abs(value) / top if top > 0 else 0.0
    return "" if share < 0.05 else f"{'up' if value > 0 else 'down'}-{min(3, 1 + int(3 * share))}"

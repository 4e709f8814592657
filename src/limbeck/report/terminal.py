"""The same numbers as plain tables for a terminal: what `limbeck measure` and `limbeck compare` say when they are done."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from limbeck.types import Measurement, Null

SHOWN = (
    ("frobenius_norm", "stacked"),
    ("stable_rank", "module-mean"),
    ("erank", "module-mean"),
    ("cosine", "stacked"),
    ("orthogonal_norm_fraction", "stacked"),
    ("principal_angle_smallest", "module-median"),
    ("principal_angle_largest", "module-median"),
    ("leading_overlap", "module-mean"),
)

DENSE_SHOWN = (
    ("frobenius_norm", "stacked"),
    ("relative_norm", "module-mean"),
    ("sparsity_visible", "parameter-weighted"),
    ("mask_overlap_low", "parameter-weighted"),
    ("mask_overlap_principal", "parameter-weighted"),
    ("stable_rank", "module-mean"),
    ("erank", "module-mean"),
    ("nss", "module-mean"),
    ("base_angle_largest", "module-median"),
    ("base_mean_cos2", "module-mean"),
    ("intruders", "module-mean"),
    ("cosine", "stacked"),
    ("mask_jaccard", "parameter-weighted"),
    ("mean_cos2", "module-mean"),
)

TRAJECTORY_SHOWN = (
    ("frobenius_norm", "stacked"),
    ("sparsity_visible", "parameter-weighted"),
    ("stable_rank", "module-mean"),
    ("sim_k", "module-mean"),
)


def short_names(paths: Sequence[Path]) -> list[str]:
    """Folder names, with as much of the path before them as makes them distinct.

    >>> short_names([Path("a/run"), Path("b/run")])
    ['a/run', 'b/run']
    """
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def measurement_table(rows: Sequence[Measurement], *, shown: Sequence[tuple[str, str]] = SHOWN) -> str:
    """The aggregates of a measurement table that a first look wants, each beside its null; over all layers and kinds."""
    table = Table("metric", "whose", "side", "k", "value", "null 5-95 %", "unit", "note")
    for row in rows:
        if (row.metric, row.aggregation) in shown and not row.kind and row.layer < 0:
            arm = f"{row.arm} @ {row.step}" if row.step >= 0 else row.arm
            whose = f"{arm} | {row.other}" if row.other else arm
            band = _band(row.null)
            k = str(row.k) if row.k else ""
            table.add_row(
                row.metric, escape(whose), row.side, k, f"{row.value:.4g}", band, row.unit, escape(row.reason)
            )
    return _text(table)


def _band(null: Null) -> str:
    """The band of a null, or its mean where it was not drawn more than once."""
    if not null.id:
        return ""
    drawn = null.q05 == null.q05
    return f"{null.q05:.4g} to {null.q95:.4g} ({null.id})" if drawn else f"about {null.mean:.4g} ({null.id})"


def comparison_table(result: dict[str, Any]) -> str:
    """What could have been called at all, then accuracies with intervals, then every pair with its test."""
    level = f"{100 * (1 - result['alpha']):g} % interval"
    arms = Table(
        "whose", "right", "problems", "samples", "seeds", "accuracy", level, "disagree: samples", "seeds", "seed sd"
    )
    for arm in result["arms"]:
        known = (*(arm["disagreement"][what] for what in ("samples", "seeds")), arm["seed_sd"])
        arms.add_row(
            escape(arm["name"]), *(str(arm[key]) for key in ("correct", "n", "samples", "seeds")),
            _fraction(arm["value"]), f"{_fraction(arm['low'])} to {_fraction(arm['high'])}", *map(_fraction, known),
        )  # fmt: skip
    pairs = Table("a", "b", "callable", "Holm", "a only", "b only", "a - b", level, "test", "p", "p (Holm)", "p (BH)")
    for pair in result["pairs"]:
        smallest = (_fraction(pair[key], none="none") for key in ("smallest_callable", "smallest_callable_holm"))
        pairs.add_row(
            escape(pair["a"]), escape(pair["b"]), *smallest, f"{round(pair['a_only'], 1):g}", f"{round(pair['b_only'], 1):g}",
            f"{pair['difference']:+.3f}", f"{pair['low']:+.3f} to {pair['high']:+.3f}", pair["test"],
            *(f"{pair[key]:.2g}" for key in ("p", "p_holm", "p_bh")),
        )  # fmt: skip
    said = [_callable(result), *(f"{note[0].upper()}{note[1:]}." for note in result["notes"])]
    return (
        "\n".join(escape(line) for line in said if line)
        + "\n"
        + _text(arms)
        + (_text(pairs) if result["pairs"] else "")
    )


def _callable(result: dict[str, Any]) -> str:
    """The smallest differences that this design could have called, first of all.

    >>> pairs = [{"smallest_callable": 0.02, "smallest_callable_holm": None}, {"smallest_callable": 0.03}]
    >>> _callable({"pairs": pairs[:1], "n": 500, "alpha": 0.05})
    'Smallest difference that 500 problems could have called: 2.0 points.'
    >>> _callable({"pairs": pairs, "n": 500, "alpha": 0.05})
    'Smallest difference that 500 problems could have called: 2.0 to 3.0 points alone, none among all 2 pairs (Holm).'
    """
    if not result["pairs"]:
        return ""
    alone, holm = (
        [pair.get(key) for pair in result["pairs"]] for key in ("smallest_callable", "smallest_callable_holm")
    )
    said = f"Smallest difference that {result['n']} problems could have called: {_reach(alone)}"
    if len(result["pairs"]) == 1:  # nothing to correct for
        return f"{said}."
    return f"{said} alone, {_reach(holm)} among all {len(result['pairs'])} pairs (Holm)."


def _reach(gaps: Sequence[float | None]) -> str:
    known = [round(100 * gap, 1) for gap in gaps if gap is not None]
    if not known:
        return "none"
    span = f"{min(known):.1f} points" if min(known) == max(known) else f"{min(known):.1f} to {max(known):.1f} points"
    none = len(gaps) - len(known)
    return span + (f" (none for {none} of {len(gaps)})" if none else "")


def _fraction(value: float | None, *, none: str = "") -> str:
    return none if value is None or value != value else f"{value:.3f}"


def power_table(planned: dict[str, Any]) -> str:
    """What a design can call, or needs, with the numbers of samples and seeds beside it."""
    design, difference, n, target = (planned[key] for key in ("design", "difference", "n", "target"))
    heads = {
        "problems": "problems needed", "answers": "answers an arm", "power": f"power at {n} problems",
        "difference": f"found {100 * target:g} % of the time", "smallest_callable": "smallest callable",
    }  # fmt: skip
    shown = [key for key in heads if key in planned["rows"][0]]
    table = Table("samples", "seeds", "test", *(heads[key] for key in shown), "note")
    for row in planned["rows"]:
        cells = (f"{row[key]:,.0f}" if key in ("problems", "answers") else f"{row[key]:.3f}" for key in shown)
        table.add_row(
            str(row["samples"]), str(row["seeds"]), row["test"],
            *(cell if "nan" not in cell else "none" for cell in cells), escape(row["reason"]),
        )  # fmt: skip
    discordance = design.discordance_at(difference or 0.0)
    assumed = (
        "" if design.discordance is not None else " (unrelated answers: the most; give --discordance from a pilot)"
    )
    asked = f"a difference of {100 * difference:g} points" if difference is not None else f"{n} problems"
    lines = [
        f"For {asked}, called at alpha {design.alpha:g} over {design.comparisons} comparison(s) with a chance of {target:g}.",
        f"Worse arm's accuracy {design.accuracy:g}, discordant problems {discordance:.3f}{assumed}.",
    ]
    if design.discordance_apart is not None:
        lines.append(
            f"Samples of one number share their random numbers; of others {design.discordance_apart:.3f} are discordant."
        )
    if any(row["seeds"] == 1 for row in planned["rows"]):
        lines.append(
            "With one seed a test speaks of the two trained models, not of training: no claim about its variance."
        )
    return "\n".join(lines) + "\n" + _text(table)


def objective_table(rows: Sequence[dict[str, str]]) -> str:
    """One line per objective."""
    shown = ("objective", "unit", "normalizer", "inputs", "knobs", "formula", "status", "source")
    table = Table(*shown)
    for row in rows:
        table.add_row(*(escape(row[name]) for name in shown))
    return _text(table, width=220)


def metric_table(metrics: Mapping[str, Any]) -> str:
    """One line per metric of the geometry."""
    table = Table("metric", "unit", "null", "meaning")
    for name, metric in metrics.items():
        table.add_row(name, metric.unit, metric.null, metric.meaning)
    return _text(table)


def _text(table: Table, *, width: int = 150) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]

"""The registered comparisons of docs/results, from the results of a packaged study to numbers and a verdict.

    python examples/findings dpo-or-rate runs/dpo-or-rate                 # the table and the verdict
    python examples/findings dpo-or-rate runs/dpo-or-rate docs/results    # and keep what they are made of, and the figure

What is printed is what the page of that name registers: its primary comparisons with Holm's correction, the secondary numbers,
and what its rule makes of them. Nothing here trains.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from barrier import barrier
from colinear import colinear, colinear_apart
from contrast import Row
from dpo_or_rate import dpo_or_rate, dpo_parts
from erpd_frontier import erpd_frontier
from factorial import factorial, without_dpo
from forgetting import forgetting
from keep import keep
from locking import locking
from measured import Data
from merging import merging
from rounding import rounding
from study_size import study_size
from trrd import trrd

Question = Callable[[Data], tuple[list[Row], str]]
QUESTIONS: dict[str, Question] = {
    "dpo-or-rate": dpo_or_rate,
    "colinear": colinear,
    "barrier": barrier,
    "forgetting": forgetting,
    "locking": locking,
    "rounding": rounding,
    "trrd": trrd,
    "erpd-frontier": erpd_frontier,
    "factorial": factorial,
    "merging": merging,
    "study-size": study_size,
}
AFTERWARDS: dict[str, Question] = {  # what a page looked at once it had its verdict
    "dpo-parts": dpo_parts,
    "colinear-all": colinear_apart,
    "factorial-without-dpo": without_dpo,
}
ASKED = {**QUESTIONS, **AFTERWARDS}


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| family | comparison | value | 95 % interval | p | Holm p |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        e = row.estimate
        numbers = (f"{e.value:.4g}", f"{e.low:.4g} to {e.high:.4g}", f"{row.p:.3g}", f"{row.p_holm:.3g}")
        cells = ("–" if "nan" in text else text for text in numbers)
        lines.append(f"| {row.family or 'secondary'} | {row.what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(name: str, folder: Path, out: Path | None = None) -> str:
    """What a study says of its question.

    Args:
        name: of the packaged study.
        folder: of the study, of its results, or of what was kept of them.
        out: keeps what the numbers are made of under ``data/NAME`` and draws ``figures/NAME.svg``.
    """
    data = Data(folder)
    rows, verdict = ASKED[name](data)
    if out is not None:
        from figures import DRAWN  # needs matplotlib
        from plotting import save

        keep(data.folder, out / "data" / name, stacked=name in AFTERWARDS)
        if name in DRAWN:
            save(DRAWN[name](data, rows), out / "figures" / f"{name}.svg")
    return f"{table(rows)}\n\nThe claim {verdict}."


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or sys.argv[1] not in ASKED:
        sys.exit(f"usage: python examples/findings {{{','.join(ASKED)}}} DIR [OUT]")
    print(main(sys.argv[1], *map(Path, sys.argv[2:])))

"""What a score table says in the usual words: pass@1, avg@k, pass@k, maj@k, and what became of the answers."""

from __future__ import annotations

from collections import Counter

from limbeck.problems.grading import ballot
from limbeck.stats.passk import avg_at_k, maj_at_k, pass_at_k
from limbeck.types import Estimate, ScoreTable


def protocols(table: ScoreTable, *, level: float = 0.95) -> dict[str, Estimate]:
    """Every protocol that the table's samples allow, with its interval over problems.

    With one answer a problem there is one, ``pass@1``. With k there are ``avg@k`` (the share of right answers, which is
    the unbiased pass@1), ``pass@j`` for j = 2, 4, 8, ... and k (unbiased from all k answers), and ``maj@k`` (the most
    frequent answer, by its exact value where it has one; a tie counts as its expectation, answers that were not found do
    not vote).

    >>> from limbeck.types import Score
    >>> flags = {"a": (True, False), "b": (True, True)}
    >>> scores = tuple(
    ...     Score(problem_id=p, sample=j, correct=c, answer="1", extracted=str(int(c)), finish=None, response_tokens=None)
    ...     for p, row in flags.items() for j, c in enumerate(row))
    >>> table = ScoreTable(name="x", scores=scores, problems_digest="", grader="", decoding="")
    >>> {name: estimate.value for name, estimate in protocols(table).items()}
    {'avg@2': 0.75, 'pass@2': 1.0, 'maj@2': 0.75}
    """
    k = len(table.scores) // max(len(table.problem_ids), 1)
    if k <= 1:
        return {"pass@1": avg_at_k(table, level=level)}
    steps = sorted({*(2**i for i in range(1, k.bit_length()) if 2**i <= k), k})
    return {
        f"avg@{k}": avg_at_k(table, level=level),
        **{f"pass@{j}": pass_at_k(table, j, level=level) for j in steps},
        f"maj@{k}": maj_at_k(table, ballot=ballot, level=level),
    }


def outcomes(table: ScoreTable) -> dict[str, int]:
    """How many answers came to which end, most frequent first; without outcomes on record right and wrong alone."""
    named = [str(s.outcome) if s.outcome else "correct" if s.correct else "wrong" for s in table.scores]
    return dict(Counter(named).most_common())


def describe(table: ScoreTable) -> str:
    """The table in a few lines of text, unknown parts of its record said."""
    k = len(table.scores) // max(len(table.problem_ids), 1)
    lines = [f"{table.name}: {len(table.problem_ids)} problems, {k} answer{'s' if k > 1 else ''} each"]
    for name, e in protocols(table).items():
        value = e.reason if e.reason else f"{e.value:.4f}   95 %: {e.low:.4f} to {e.high:.4f}"
        lines.append(f"  {name:10} {value}")
    lines.append("  " + ", ".join(f"{num} {name}" for name, num in outcomes(table).items()))
    for name in ("grader", "decoding", "problems_digest", "template_digest", "model_digest", "adapter_digest"):
        value = getattr(table, name)
        shown = value[:12] if name.endswith("_digest") else value
        lines.append(f"  {name.removesuffix('_digest'):10} {shown or 'not known'}")
    return "\n".join(lines)

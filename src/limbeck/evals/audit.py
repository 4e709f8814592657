"""What an embedded world claims of its models, measured: how good each is, and how mixed the teacher's groups are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from limbeck.evals.evaluate import evaluate
from limbeck.rollouts.sample import Decoding
from limbeck.stats.intervals import mean_of_items
from limbeck.stats.passk import avg_at_k, pass_at_k
from limbeck.train.models import load_model, load_tokenizer
from limbeck.types import Estimate, Problem

PASS_K = 8
PASS_PROBLEMS = 250
TEMPERATURES = (1.0, 1.2, 1.4, 1.6)


def audit(
    world: str, problems: Sequence[Problem], *, max_new_tokens: int, advance: Callable[[int], None] = lambda num: None
) -> list[tuple[str, Estimate]]:
    """Accuracies of base and teacher with intervals: greedy, the base's pass@8, the teacher at several temperatures.

    Args:
        world: whose ``base`` and ``teacher`` to audit.
        problems: greedy uses all of them, sampling the first ``PASS_PROBLEMS``.
        max_new_tokens: of every answer.
        advance: called with the number of answers just finished.
    """
    tokenizer = load_tokenizer(f"{world}:base")
    models = {name: load_model(f"{world}:{name}") for name in ("base", "teacher")}
    few = problems[:PASS_PROBLEMS]
    out: list[tuple[str, Estimate]] = []
    for name, model in models.items():
        greedy = Decoding(max_new_tokens=max_new_tokens, batch_size=512)
        table = evaluate(model, tokenizer, problems, greedy, name=name, advance=advance)
        out.append((f"{name}, greedy", mean_of_items(table.correct[:, 0].double().numpy())))
    hot = Decoding(sampling_temperature=1.0, max_new_tokens=max_new_tokens, batch_size=512)
    table = evaluate(models["base"], tokenizer, few, hot, name="base", num_samples=PASS_K, advance=advance)
    out.append((f"base, avg@{PASS_K} at temperature 1", avg_at_k(table)))
    out.append((f"base, pass@{PASS_K} at temperature 1", pass_at_k(table, PASS_K)))
    for temperature in TEMPERATURES:
        warm = Decoding(sampling_temperature=temperature, max_new_tokens=max_new_tokens, batch_size=512)
        table = evaluate(models["teacher"], tokenizer, few, warm, name="teacher", num_samples=4, advance=advance)
        out.append((f"teacher, share right at temperature {temperature:g}", avg_at_k(table)))
        mixed = [float(0 < row.sum().item() < len(row)) for row in table.correct]
        out.append(
            (
                f"teacher, mixed groups of 4 at temperature {temperature:g}",
                mean_of_items(mixed),
            )
        )
    return out


def num_answers(num_problems: int) -> int:
    """How many answers :func:`audit` asks for."""
    few = min(num_problems, PASS_PROBLEMS)
    return 2 * num_problems + few * (PASS_K + 4 * len(TEMPERATURES))

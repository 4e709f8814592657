"""How fast a student works here: timed on a few rows, or counted from its size where timing it would take too long.

Work is counted in tokens: sampled, scored (read in one pass), trained (forward and back). A batch that is sampled also takes a
time for each token position, whatever its rows.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from limbeck.batches.collate import TrainingData
from limbeck.batches.score import score_rollouts
from limbeck.config import TrainConfig
from limbeck.objectives import find
from limbeck.problems.prompts import stop_ids
from limbeck.rollouts.sample import Completion, Decoding, complete
from limbeck.studies.facts import Shape
from limbeck.train.engine import advance, gradient, make_engine
from limbeck.train.models import add_adapter, load_model, load_tokenizer, unfreeze
from limbeck.types import Finish, Rollout

FEW, MANY = 8, 48  # rows of the two batches that are sampled, whose difference parts tokens from positions
SHORT, LONG = 24, 96  # tokens that they may have at most
TRAINED = {"lora": 4, "full": 6}  # operations a parameter and token; scoring and sampling take 2
REACHED = 0.5  # share of a matrix product's speed that a model is taken to reach


class Rates(NamedTuple):
    """What one process of a study does.

    Attributes:
        per_pass: seconds for each token position of a batch that is sampled.
        sample: sampled tokens a second, beside that.
        score: tokens read a second.
        train: tokens trained on a second, by method.
        load: seconds to load the student.
        response: mean tokens of an answer, those cut short counted at full length; None where nothing was sampled.
        how: where the numbers come from, in a sentence.
    """

    per_pass: float
    sample: float
    score: float
    train: Mapping[str, float]
    load: float
    response: float | None
    how: str


class Probe(NamedTuple):
    """What is to be timed: a student, prompts to answer, how long answers may be, and a config for each method."""

    student: str
    prompts: Sequence[tuple[int, ...]]
    max_new_tokens: int
    sampling_temperature: float
    train: Mapping[str, TrainConfig]
    small: bool


def timed(probe: Probe, workers: int) -> Rates:
    """Rates of each of so many processes side by side, as a study runs them; the mean of what they found.

    Side by side each has one thread, and its own processor time is read, so that waiting for
    what else runs here now does not count.
    """
    if workers == 1:
        return time_here(probe, time.monotonic)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["limbeck.studies.rates"])
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        found = list(pool.map(_time_beside_others, [probe] * workers))
    mean = {
        name: sum(getattr(one, name) for one in found) / workers for name in ("per_pass", "sample", "score", "load")
    }
    train = {method: sum(one.train[method] for one in found) / workers for method in probe.train}
    return found[0]._replace(**mean, train=train)


def _time_beside_others(probe: Probe) -> Rates:
    torch.set_num_threads(1)
    return time_here(probe, time.process_time)


def time_here(probe: Probe, clock: Callable[[], float]) -> Rates:
    """Sample, score and take an optimizer step, each on a few rows, in this process."""
    begin = clock()
    model, tokenizer = load_model(probe.student), load_tokenizer(probe.student)
    load = clock() - begin
    stops = stop_ids(tokenizer, model.generation_config)

    def sample(rows: int, tokens: int) -> tuple[list[Completion], float]:
        prompts = [probe.prompts[i % len(probe.prompts)] for i in range(rows)]
        decoding = Decoding(
            sampling_temperature=probe.sampling_temperature,
            max_new_tokens=min(tokens, probe.max_new_tokens),
            batch_size=rows,
        )
        begin = clock()
        done = complete(model, prompts, [str(i) for i in range(rows)], decoding, stop_ids=stops)
        return done, clock() - begin

    few, many, short, long = (FEW, MANY, SHORT, LONG) if probe.small else (1, 4, 8, 16)
    sample(1, 2)  # the first call of anything is slow
    (some, fast), (all_, slow) = sample(few, short), sample(many, long)
    per_pass, per_token = _apart((some, fast), (all_, slow))
    rollouts = [_rollout(i, probe.prompts[i % len(probe.prompts)], done) for i, done in enumerate(all_)]
    budget = next(iter(probe.train.values())).pass_tokens
    score_rollouts(model, rollouts[:2], token_budget=budget)
    begin = clock()
    score_rollouts(model, rollouts, token_budget=budget)
    score = _tokens(rollouts) / (clock() - begin)
    half = rollouts[: -(-len(rollouts) // 2)]
    train = {method: _trained(probe.student, config, half, clock) for method, config in probe.train.items()}
    lengths = [len(done.ids) if done.finish == Finish.STOP else probe.max_new_tokens for done in all_]
    response, cut = sum(lengths) / len(lengths), sum(done.finish == Finish.LENGTH for done in all_)
    how = f"timed here on {many} rows: answers of {response:.0f} tokens on average"
    how += f", {cut} of them unfinished and counted at their limit of {probe.max_new_tokens}" if cut else ""
    return Rates(per_pass, 1 / per_token, score, train, load, response, how)


def _apart(one: tuple[list[Completion], float], other: tuple[list[Completion], float]) -> tuple[float, float]:
    """Seconds a position and a token, from two batches; all of it a token's where the two do not tell them apart."""
    passes = [max(len(done.ids) for done in batch) for batch, _ in (one, other)]
    tokens = [sum(len(done.ids) for done in batch) for batch, _ in (one, other)]
    seconds = [one[1], other[1]]
    determinant = passes[0] * tokens[1] - passes[1] * tokens[0]
    per_pass = (seconds[0] * tokens[1] - seconds[1] * tokens[0]) / determinant if determinant else 0.0
    per_token = (passes[0] * seconds[1] - passes[1] * seconds[0]) / determinant if determinant else 0.0
    return (per_pass, per_token) if per_pass > 0 and per_token > 0 else (0.0, max(seconds[1], 1e-9) / tokens[1])


def _rollout(index: int, prompt: tuple[int, ...], done: Completion) -> Rollout:
    return Rollout(
        problem_id=str(index),
        sample=0,
        prompt_ids=prompt,
        response_ids=done.ids,
        behavior_logprobs=done.logprobs,
        reward=1.0,
        finish=done.finish,
        response="",
    )


def _trained(student: str, config: TrainConfig, rollouts: Sequence[Rollout], clock: Callable[[], float]) -> float:
    """Tokens a second of an optimizer step, after a first one that is not timed.

    With cross-entropy whatever the config's objective: others read what the probe does not have, and cost about the same.
    """
    config = config.model_copy(update={"objective": "sft", "knobs": {}, "normalizer": None, "sparsify": None})
    model = load_model(student)
    tuned = add_adapter(model, config.lora, init_seed=0) if config.method == "lora" else unfreeze(model)
    engine = make_engine(tuned, config)
    data = TrainingData(rollouts=rollouts, items=[(i,) for i in range(len(rollouts))], weights=[1.0] * len(rollouts))
    with tempfile.TemporaryDirectory() as folder:
        for items in (range(min(4, len(rollouts))), range(len(rollouts))):
            begin = clock()
            gradient(engine, data, items, find("sft"), step=1, out=Path(folder))
            advance(engine)
            seconds = clock() - begin
    return _tokens(rollouts) / seconds


def _tokens(rollouts: Sequence[Rollout]) -> int:
    return sum(len(r.prompt_ids) + len(r.response_ids) for r in rollouts)


def counted(shape: Shape, methods: Sequence[str]) -> Rates:
    """Rates from the operations that a token takes, at a share of the speed of one matrix product here; nothing is loaded.

    Sampling also reads every weight once for each position, as fast as memory is copied here.
    """
    speed, width = _product_speed(), _copy_speed()
    tokens = REACHED * speed / shape.parameters
    stored = 4 * shape.parameters
    how = (
        f"counted, not timed: {shape.parameters:,} parameters at {REACHED:g} of the {speed / 1e9:,.0f} billion operations a "
        "second that one matrix product reaches here; --probe times the student instead"
    )
    train = {method: tokens / TRAINED[method] for method in methods}
    return Rates(stored / width, tokens / 2, tokens / 2, train, stored / width + 1.0, None, how)


def _product_speed(size: int = 1024) -> float:
    """Operations a second of a matrix product."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    matrix = torch.ones(size, size, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    return 2 * size**3 / _fastest(lambda: float((matrix @ matrix)[0, 0]))


def _copy_speed(size: int = 1 << 24) -> float:
    """Bytes a second that are read."""
    source = torch.ones(size, device="cuda" if torch.cuda.is_available() else "cpu")
    return 4 * size / _fastest(lambda: float(source.clone()[0]))


def _fastest(work: Callable[[], float]) -> float:
    seconds = []
    for _ in range(4):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)

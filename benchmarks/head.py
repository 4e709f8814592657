"""Token scores and divergences from hidden states: time over the matrix products they cannot do without, and memory.

    python benchmarks/head.py

Hidden size 256, a vocabulary of 151,936, 2,048 tokens (1,024 for the divergence, whose peer needs the room), fp32, one
thread, forward and backward. The floor is measured in the same process between the repeats: the same number of products
of tokens x hidden x vocabulary, nothing else, in whichever of two block shapes is faster. Seconds are CPU seconds of the
one thread, medians, so that a neighbor's load on the machine counts less. Peers: whole logits with log_softmax, and,
once because it is slow here, ``torch.nn.functional.linear_cross_entropy`` in chunks. Every case runs in a process of
its own; so does every memory row.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from limbeck.heads import Head, linear_total, reverse_kl, score_tokens

COMMAND = "python benchmarks/head.py"
RESULT = Path(__file__).parent / "results" / "head.json"
HIDDEN, VOCAB, TOKENS, REPEATS = 256, 151_936, 2048, 5
GOAL_TIME, GOAL_MEGABYTES = 1.3, 64.0
NAIVE, TORCH = "whole logits + log_softmax", "torch linear_cross_entropy, chunked"


class Inputs(NamedTuple):
    hidden: Tensor
    frozen: Head
    trainable: Head
    targets: Tensor
    weights: Tensor
    teacher: tuple[Tensor, Head]

    def clear(self) -> None:
        self.hidden.grad = self.trainable.weight.grad = None


class Case(NamedTuple):
    """What is measured: products of (logits, hidden gradient, weight gradient) that it takes, ours and the peer."""

    what: str
    products: tuple[int, int, int]
    ours: Callable[[Inputs], Tensor]
    theirs: Callable[[Inputs], Tensor]
    peer: str
    tokens: int = TOKENS


def inputs(tokens: int, vocab: int, *, trainable: bool = False) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator).mul_(scale)

    weight = normal(vocab, HIDDEN, scale=HIDDEN**-0.5)
    return Inputs(
        hidden=normal(tokens, HIDDEN, scale=3.0).requires_grad_(),
        frozen=Head(weight),
        trainable=Head(weight.clone().requires_grad_() if trainable else weight),
        targets=torch.randint(vocab, (tokens,), generator=generator),
        weights=torch.ones(tokens),
        teacher=(normal(tokens, HIDDEN, scale=3.0), Head(normal(vocab, HIDDEN, scale=HIDDEN**-0.5))),
    )


def naive_total(given: Inputs, head: Head) -> Tensor:
    logp = (given.hidden @ head.weight.T).log_softmax(-1)
    return logp.gather(1, given.targets[:, None]).sum()


def naive_scores(given: Inputs, head: Head) -> Tensor:
    """Log-probs with gradient and, as a metric, the entropy: what our scores hold."""
    logp = (given.hidden @ head.weight.T).log_softmax(-1)
    with torch.no_grad():
        _ = -(logp.exp() * logp).sum(-1)
    return logp.gather(1, given.targets[:, None]).sum()


def naive_reverse_kl(given: Inputs) -> Tensor:
    logp = (given.hidden @ given.frozen.weight.T).log_softmax(-1)
    logq = (given.teacher[0] @ given.teacher[1].weight.T).log_softmax(-1)
    return (logp.exp() * (logp - logq)).sum()


def torch_total(given: Inputs, head: Head) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return -functional.linear_cross_entropy(given.hidden, head.weight, given.targets, reduction="sum", options=options)


CASES = {
    "score-frozen": Case(
        "score_tokens, frozen head", (1, 1, 0),
        lambda g: score_tokens(g.hidden, g.frozen, g.targets).logprobs.sum(), lambda g: naive_scores(g, g.frozen), NAIVE,
    ),
    "score-trainable": Case(
        "score_tokens, trainable head", (2, 1, 1),
        lambda g: score_tokens(g.hidden, g.trainable, g.targets).logprobs.sum(),
        lambda g: naive_scores(g, g.trainable), NAIVE,
    ),
    "linear-frozen": Case(
        "linear_total, frozen head", (1, 1, 0),
        lambda g: linear_total(g.hidden, g.frozen, g.targets, g.weights).total, lambda g: naive_total(g, g.frozen), NAIVE,
    ),
    "linear-trainable": Case(
        "linear_total, trainable head", (1, 1, 1),
        lambda g: linear_total(g.hidden, g.trainable, g.targets, g.weights).total,
        lambda g: naive_total(g, g.trainable), NAIVE,
    ),
    "reverse-kl": Case(
        "reverse_kl, frozen head", (4, 1, 0),
        lambda g: reverse_kl(g.hidden, g.frozen, *g.teacher).values.sum(), naive_reverse_kl, NAIVE, TOKENS // 2,
    ),
}  # fmt: skip


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def step(given: Inputs, function: Callable[[Inputs], Tensor]) -> None:
    given.clear()
    function(given).backward()


def floor_seconds(given: Inputs, products: tuple[int, int, int], rows: int, words: int) -> float:
    """The bare products over blocks of one shape, into buffers that are there already."""
    hidden, weight = given.hidden.detach(), given.frozen.weight
    block, over_words = torch.zeros(rows, words), torch.zeros(rows, HIDDEN)
    over_tokens = torch.zeros(words, HIDDEN)
    start = time.process_time()
    for first in range(0, len(weight) - words + 1, words):
        part = weight[first : first + words]
        for row in range(0, len(hidden), rows):
            for _ in range(products[0]):
                torch.mm(hidden[row : row + rows], part.T, out=block)
            for _ in range(products[1]):
                over_words.addmm_(block, part, beta=0)
            for _ in range(products[2]):
                over_tokens.addmm_(block.T, hidden[row : row + rows], beta=0)
    covered = len(weight) // words * words
    return (time.process_time() - start) * len(weight) / covered


def time_case(name: str, tokens: int, vocab: int) -> dict[str, float]:
    """Medians over repeats in which floor, ours and theirs take turns."""
    case = CASES[name]
    given = inputs(tokens, vocab, trainable="trainable" in name)
    found: dict[str, list[float]] = {"ours": [], "theirs": [], "floor": []}
    step(given, case.ours)
    for repeat in range(REPEATS):
        rows = min(256, tokens)
        shapes = (rows, min(vocab, 16_384)), (rows, min(vocab, 1024))
        found["floor"].append(min(floor_seconds(given, case.products, *shape) for shape in shapes))
        found["ours"].append(seconds(lambda: step(given, case.ours)))
        if repeat < 3:
            found["theirs"].append(seconds(lambda: step(given, case.theirs)))
    return {name: statistics.median(times) for name, times in found.items()}


def time_torch(name: str, tokens: int, vocab: int) -> dict[str, float]:
    """The chunked peer of a linear total, once."""
    given = inputs(tokens, vocab, trainable="trainable" in name)
    head = given.trainable if "trainable" in name else given.frozen
    return {"theirs": seconds(lambda: step(given, lambda g: torch_total(g, head)))}


def peak_megabytes(name: str, whose: str, tokens: int, vocab: int) -> dict[str, float]:
    """How far the resident memory of this process rises above the inputs' own in one forward and backward."""
    case = CASES[name]
    function = case.ours if whose == "ours" else case.theirs
    step(inputs(8, 2048, trainable="trainable" in name), function)  # libraries, threads and their buffers
    given = inputs(tokens, vocab, trainable="trainable" in name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(given, function)
    return {"peak": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3}


def child(*arguments: str | int) -> dict[str, float]:
    """One job in a process of its own, so that its time and memory are its own."""
    command = [sys.executable, __file__, "--job", *(str(a) for a in arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def time_rows(name: str, scale: int) -> list[tuple]:
    case = CASES[name]
    tokens, vocab = case.tokens // scale, VOCAB // scale
    found = child("time", name, tokens, vocab)
    ours, theirs, floor = found["ours"], found["theirs"], found["floor"]
    what = f"{case.what}, {tokens} tokens x {vocab} words"
    over = f"{what}: time over its {sum(case.products)} matrix products"
    rows: list[tuple] = [(over, ours / floor, theirs / floor, case.peer, theirs / ours, GOAL_TIME, "times")]
    if name == "score-frozen":
        three = f"{what}: time over the 3 products of logits, logits again, gradient"
        rows.append((three, ours / floor / 1.5, theirs / floor / 1.5, case.peer, theirs / ours, GOAL_TIME, "times"))
    rows.append((f"{what}: forward and backward", ours, theirs, case.peer, theirs / ours, None, "s"))
    if name.startswith("linear"):
        chunked = child("torch", name, tokens, vocab)["theirs"]
        rows.append((f"{what}: forward and backward", ours, chunked, TORCH, chunked / ours, None, "s"))
    return rows


def memory_rows(name: str, scale: int) -> list[tuple]:
    case, rows = CASES[name], []
    for tokens, vocab in ((512, VOCAB // 4), (2048, VOCAB // 4), (512, VOCAB), (2048, VOCAB)):
        size = tokens // scale, vocab // scale
        ours, theirs = (child("memory", name, *size, whose)["peak"] for whose in ("ours", "theirs"))
        what = f"{case.what}, {size[0]} tokens x {size[1]} words: peak memory above the inputs"
        rows.append((what, ours, theirs, case.peer, theirs / max(ours, 0.1), GOAL_MEGABYTES, "MB"))
    return rows


def run(scale: int) -> list[dict[str, float | str | None]]:
    """All rows of the result file."""
    rows = [row for name in CASES for row in time_rows(name, scale)] + memory_rows("score-frozen", scale)
    keys = ("what", "ours", "theirs", "peer", "ratio", "goal", "unit")
    common = {
        "command": COMMAND,
        "machine": f"{platform.machine()}, 1 thread, torch {torch.__version__}",
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }
    return [dict(zip(keys, row, strict=True)) | common for row in rows]


def main() -> None:
    """Print the table, write the JSON; with --job, be one of the measured processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=int, default=1, help="divides tokens and words for a quick look, not written")
    parser.add_argument("--job", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.job:
        kind, name, tokens, vocab, *whose = arguments.job
        size = int(tokens), int(vocab)
        job = {"time": time_case, "torch": time_torch}.get(kind)
        print(json.dumps(job(name, *size) if job else peak_megabytes(name, whose[0], *size)))
        return
    rows = run(arguments.scale)
    for row in rows:
        goal = f"goal {row['goal']:g}" if row["goal"] else ""
        print(f"{row['ours']:9.4g} {row['theirs']:9.4g} {row['unit']:<6} {goal:<9} {row['what']}; {row['peer']}")
    if arguments.scale == 1:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

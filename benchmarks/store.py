"""Rollout sets beyond memory: what it takes to write, check, select, credit and batch them, over the number of rows.

    python benchmarks/store.py                     # 10,000, 100,000 and 1,000,000 rows beside datasets and JSONL
    python benchmarks/store.py --rows 10000        # one size; the others' rows stay in the result file
    python benchmarks/store.py --smoke             # 400 rows, nothing written
    python benchmarks/store.py --docs              # the table in docs/benchmarks.md from the JSON

Rollouts are synthetic: 8 to a problem, a prompt of 32 tokens, 200 to 400 response tokens with log-probs. A side writes
them in one process and does the rest in another, with one thread; making the rollouts is not counted. Every stage has its own
peak of resident memory, pages of mapped files included. All sides must come to the same sums over their batches.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common import Results, Row, Timing, answer, memory, number, run_job, table_in_docs

ROWS = (10_000, 100_000, 1_000_000)
SMOKE = (400,)
SAMPLES, PROMPT, SHORTEST, LONGEST, VOCABULARY = 8, 32, 200, 400, 150_000
BATCH = 40  # rows; divides every size
IN_MEMORY_AT_MOST = 100_000  # rows of JSONL: ten times as many would take 20 GB
STAGES = ("write", "open and check the digest", "select the right ones", "credit by group", "an epoch of batches")
GOAL_MB = 1000.0


class Plain(NamedTuple):
    """A rollout before anyone's format."""

    problem: int
    sample: int
    prompt: Any
    response: Any
    logprobs: Any
    reward: float


class Made:
    """Synthetic rollouts, and the seconds that making them took."""

    def __init__(self, rows: int, clock: Callable[[], float]) -> None:
        self.rows, self.clock, self.seconds = rows, clock, 0.0

    def __iter__(self) -> Iterator[Plain]:
        import numpy as np

        rng = np.random.default_rng(0)
        begin = self.clock()
        for row in range(self.rows):
            if row % SAMPLES == 0:
                prompt = rng.integers(0, VOCABULARY, PROMPT, dtype=np.int32)
            num = int(rng.integers(SHORTEST, LONGEST + 1))
            response = rng.integers(0, VOCABULARY, num, dtype=np.int32)
            logprobs = -rng.exponential(size=num).astype(np.float32)
            out = Plain(row // SAMPLES, row % SAMPLES, prompt, response, logprobs, float(rng.random() < 0.5))
            self.seconds += self.clock() - begin
            yield out
            begin = self.clock()


class Stages:
    """Seconds and peak memory of each stage."""

    def __init__(self, key: str) -> None:
        self.clock = time.process_time if key == "processor_seconds" else time.perf_counter
        self.found: dict[str, dict[str, float]] = {}

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """What ``work`` returns; its peak is its own where the system lets us forget the one before."""
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        begin = self.clock()
        out = work()
        self.found[name] = {"seconds": self.clock() - begin, "peak_mb": memory()["peak_mb"]}
        return out

    def result(self, made: Made | None = None, **more: Any) -> dict[str, Any]:
        """The stages as JSON; what it took to make the rollouts is taken off the writing."""
        if made is not None:
            self.found["write"]["seconds"] -= made.seconds
        return {"stages": self.found, **more}


class Sums:
    """Over all batches: response tokens, ids, log-probs and magnitudes of advantages, the last two in units of 2**-20."""

    def __init__(self) -> None:
        self.values = [0, 0, 0, 0]

    def add(self, ids: Any, mask: Any, logprobs: Any, advantages: Any) -> None:
        """A batch as the objective reads it: ids (rows, length), all else (rows, length - 1)."""
        parts = (
            mask,
            ids,
            (logprobs.double() * mask * 2**20).round(),
            (advantages.double().abs() * mask * 2**20).round(),
        )
        self.values = [total + int(part.sum()) for total, part in zip(self.values, parts, strict=True)]


def ours_write(*, root: str, rows: int, key: str) -> dict[str, Any]:
    from limbeck.rollouts.store import write_stream
    from limbeck.types import Finish, Rollout

    stages = Stages(key)
    made = Made(rows, stages.clock)

    def rollouts() -> Iterator[Rollout]:
        for r in made:
            yield Rollout(
                problem_id=f"problem-{r.problem}", sample=r.sample, prompt_ids=tuple(r.prompt.tolist()),
                response_ids=tuple(r.response.tolist()), behavior_logprobs=tuple(r.logprobs.tolist()),
                reward=r.reward, finish=Finish.STOP, response="",
            )  # fmt: skip

    stages.run("write", lambda: write_stream(rollouts(), Path(root) / "rollouts", provenance={}))
    return stages.result(made)


def ours_use(*, root: str, rows: int, key: str) -> dict[str, Any]:
    from limbeck.batches.collate import collate, plan
    from limbeck.config import TrainConfig
    from limbeck.objectives import find
    from limbeck.rollouts import select
    from limbeck.rollouts.store import read_rollouts
    from limbeck.train.data import prepare

    stages, sums = Stages(key), Sums()
    config = TrainConfig(learning_rate=1e-4, batch_size=BATCH, num_steps=1, credit="centred")
    rollout_set = stages.run(STAGES[1], lambda: read_rollouts(Path(root) / "rollouts"))
    chosen = stages.run(STAGES[2], lambda: len(select.correct(rollout_set).indices))
    objective = find("offline_grpo:krafton")
    data = stages.run(STAGES[3], lambda: prepare(config, objective, rollout_set, {}, context=None).data)

    def epoch() -> None:
        for items in plan(data.keys, batch_size=BATCH, num_steps=rows // BATCH, seed=0):
            batch = collate(data, items, ("advantages", "behavior_logprobs"))
            sums.add(batch.ids, batch.mask, batch.inputs["behavior_logprobs"], batch.inputs["advantages"])

    stages.run(STAGES[4], epoch)
    return stages.result(chosen=chosen, sums=sums.values)


def datasets_write(*, root: str, rows: int, key: str) -> dict[str, Any]:
    from datasets import Dataset, Features, List, Value

    stages = Stages(key)
    made = Made(rows, stages.clock)
    kinds = {"problem_id": Value("string"), "sample": Value("int32"), "reward": Value("float64")}
    lists = {"prompt_ids": List(Value("int32")), "response_ids": List(Value("int32"))}
    features = Features({**kinds, **lists, "behavior_logprobs": List(Value("float32"))})

    def examples() -> Iterator[dict[str, Any]]:
        for r in made:
            yield {
                "problem_id": f"problem-{r.problem}", "sample": r.sample, "reward": r.reward, "prompt_ids": r.prompt,
                "response_ids": r.response, "behavior_logprobs": r.logprobs,
            }  # fmt: skip

    work = lambda: Dataset.from_generator(examples, features=features, cache_dir=root, fingerprint="rollouts")  # noqa: E731
    written = stages.run("write", work)
    return stages.result(made, files=[file["filename"] for file in written.cache_files])


def datasets_use(*, root: str, rows: int, key: str, files: list[str]) -> dict[str, Any]:
    import numpy as np
    from datasets import Dataset, concatenate_datasets

    stages, sums = Stages(key), Sums()

    def opened() -> Any:
        found = concatenate_datasets([Dataset.from_file(file) for file in files])
        digest = hashlib.sha256()
        for batch in found.with_format("arrow").iter(1000):
            for column in batch.columns:
                for chunk in column.chunks:
                    for buffer in filter(None, chunk.buffers()):
                        digest.update(buffer)
        return found

    rollouts = stages.run(STAGES[1], opened)
    right = stages.run(
        STAGES[2], lambda: rollouts.filter(lambda reward: [r > 0 for r in reward], input_columns="reward", batched=True)
    )
    advantages = stages.run(STAGES[3], lambda: centred(rollouts["problem_id"][:], rollouts["reward"][:]))

    def epoch() -> None:
        columns = rollouts.select_columns(["prompt_ids", "response_ids", "behavior_logprobs"]).with_format("numpy")
        for index in np.random.default_rng(0).permutation(len(rollouts))[: rows // BATCH * BATCH].reshape(-1, BATCH):
            found = columns[index.tolist()]
            parts = (found["prompt_ids"], found["response_ids"], found["behavior_logprobs"], advantages[index])
            sums.add(*padded(*parts))

    stages.run(STAGES[4], epoch)
    return stages.result(chosen=len(right), sums=sums.values)


def jsonl_write(*, root: str, rows: int, key: str) -> dict[str, Any]:
    stages = Stages(key)
    made = Made(rows, stages.clock)

    def work() -> None:
        with (Path(root) / "rollouts.jsonl").open("w") as file:
            for r in made:
                values = [
                    f"problem-{r.problem}",
                    r.sample,
                    r.reward,
                    *(x.tolist() for x in (r.prompt, r.response, r.logprobs)),
                ]
                names = ("problem_id", "sample", "reward", "prompt_ids", "response_ids", "behavior_logprobs")
                file.write(json.dumps(dict(zip(names, values, strict=True))) + "\n")

    stages.run("write", work)
    return stages.result(made)


def jsonl_use(*, root: str, rows: int, key: str) -> dict[str, Any]:
    import numpy as np

    stages, sums = Stages(key), Sums()

    def opened() -> list[dict[str, Any]]:
        digest, out = hashlib.sha256(), []
        with (Path(root) / "rollouts.jsonl").open("rb") as file:
            for line in file:
                digest.update(line)
                out.append(json.loads(line))
        return out

    rollouts = stages.run(STAGES[1], opened)
    chosen = stages.run(STAGES[2], lambda: len([r for r in rollouts if r["reward"] > 0]))
    advantages = stages.run(
        STAGES[3], lambda: centred([r["problem_id"] for r in rollouts], [r["reward"] for r in rollouts])
    )

    def epoch() -> None:
        for index in np.random.default_rng(0).permutation(len(rollouts))[: rows // BATCH * BATCH].reshape(-1, BATCH):
            batch = [rollouts[i] for i in index]
            parts = ([r[name] for r in batch] for name in ("prompt_ids", "response_ids", "behavior_logprobs"))
            sums.add(*padded(*parts, advantages[index]))

    stages.run(STAGES[4], epoch)
    return stages.result(chosen=chosen, sums=sums.values)


def centred(problems: Any, rewards: Any) -> Any:
    """Reward minus the mean of its problem's."""
    import numpy as np

    _, group = np.unique(np.asarray(problems), return_inverse=True)
    rewards = np.asarray(rewards)
    return rewards - (np.bincount(group, rewards) / np.bincount(group))[group]


def padded(prompts: Any, responses: Any, logprobs: Any, advantages: Any) -> tuple[Any, ...]:
    """A batch in the form that objectives read it in, as a user would write it for a loader."""
    import numpy as np
    import torch
    from torch.nn.utils.rnn import pad_sequence

    starts = [len(prompt) for prompt in prompts]
    whole = [torch.from_numpy(np.concatenate(parts)) for parts in zip(prompts, responses, strict=True)]
    ids = pad_sequence(whole, batch_first=True).long()
    mask = torch.zeros(len(whole), ids.shape[1] - 1, dtype=torch.bool)
    scores = torch.zeros(mask.shape)
    for row, (start, values) in enumerate(zip(starts, logprobs, strict=True)):
        mask[row, start - 1 : start - 1 + len(values)] = True
        scores[row, start - 1 : start - 1 + len(values)] = torch.as_tensor(values)
    return ids, mask, scores, torch.tensor(advantages, dtype=torch.float32)[:, None] * mask


JOBS = {f.__name__: f for f in (ours_write, ours_use, datasets_write, datasets_use, jsonl_write, jsonl_use)}
PEERS = {"datasets": "datasets", "jsonl": "JSONL"}


def side(name: str, rows: int, timing: Timing) -> dict[str, Any]:
    """Stages of one side, from an empty folder that goes at the end."""
    with tempfile.TemporaryDirectory() as root:
        job = {"root": root, "rows": rows, "key": timing.key}
        written = run_job(Path(__file__), {"job": f"{name}_write", **job}, threads=timing.threads)
        files = {"files": written["files"]} if "files" in written else {}
        used = run_job(Path(__file__), {"job": f"{name}_use", **job, **files}, threads=timing.threads)
    return {**used, "stages": {**written["stages"], **used["stages"]}}


def measure(results: Results, rows: int, timing: Timing) -> None:
    """All sides at one size, a row of results for each stage and peer."""
    ours = side("ours", rows, timing)
    for name, peer in PEERS.items():
        theirs = side(name, rows, timing) if name != "jsonl" or rows <= IN_MEMORY_AT_MOST else None
        if theirs and (theirs["chosen"], theirs["sums"]) != (ours["chosen"], ours["sums"]):
            raise SystemExit(f"{peer} must come to {ours['chosen']}, {ours['sums']}; it came to {theirs}.")
        for stage in STAGES:
            own, other = ours["stages"][stage], theirs["stages"][stage] if theirs else None
            for kind, unit, scale, goal in (("seconds", "us/row", 1e6 / rows, None), ("peak_mb", "MB", 1.0, GOAL_MB)):
                mine, its = own[kind] * scale, other[kind] * scale if other else None
                results.add((f"{rows} rows: {stage}", mine, its, peer, its / mine if its else None, goal, unit))


def docs_table(rows: list[Row]) -> str:
    """Markdown of the stored rows, a line for each size and stage."""
    found: dict[str, dict[tuple[str, str], Row]] = {}
    for row in rows:
        found.setdefault(row["what"], {})[row["peer"], row["unit"]] = row
    lines = ["| rows | | limbeck, us a row | MB | datasets, us a row | MB | JSONL, us a row | MB |", "| --- " * 8 + "|"]
    for what in sorted(found, key=lambda name: (int(name.split(" ")[0]), STAGES.index(name.split(": ")[1]))):
        parts, (size, stage) = found[what], what.split(" rows: ")
        units = ("us/row", "MB")
        own = [number(parts["datasets", unit]["ours"]) for unit in units]
        others = [number(parts.get((peer, unit), {}).get("theirs")) for peer in PEERS.values() for unit in units]
        lines.append(f"| {int(size):,} | {stage} | {' | '.join([*own, *others])} |")
    return "\n".join(lines)


def main() -> None:
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        answer(JOBS)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="sizes, multiples of 40")
    parser.add_argument("--smoke", action="store_true", help="a small size, nothing written")
    parser.add_argument("--docs", action="store_true", help="only write the table into docs/benchmarks.md")
    parser.add_argument("--shared", action="store_true", help="processor time, for a machine that other work uses too")
    arguments = parser.parse_args()
    timing = Timing(1, "processor_seconds" if arguments.shared else "seconds")
    results = Results("store", command="python benchmarks/store.py", machine=timing.machine, keep=not arguments.smoke)
    if arguments.docs:
        table_in_docs("store", docs_table(results.stored()))
        return
    for rows in SMOKE if arguments.smoke else arguments.rows:
        measure(results, rows, timing)
    results.show()


if __name__ == "__main__":
    main()

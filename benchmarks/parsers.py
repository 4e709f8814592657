"""What is fuzzed: the verb that opens a file, and whole files of that kind to begin with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def rollout_lines() -> list[Any]:
    from tests.hostile.making import ROLLOUT, lines

    turns = [{"role": "user", "content": "1 + 1?"}]
    said = [{"role": "assistant", "content": "2. #### 2"}]
    name = "rollouts.jsonl"
    return [
        lines(name, ROLLOUT, ROLLOUT | {"response": "3"}),
        lines(name, {"prompt": turns, "completion": said, "answer": "2"}),
        lines(name, {"messages": turns + said}),
        lines(name, {"prompt": "1 + 1?", "chosen": "2", "rejected": "3"}),
        lines(name, {"prompt": turns, "reward_model": {"ground_truth": "2"}, "responses": ["2", "3"]}),
    ]


def rollout_table() -> list[Any]:
    from tests.hostile.making import ROLLOUT, table

    turns = [[{"role": "user", "content": "1 + 1?"}]]
    name = "rollouts.parquet"
    return [
        table(name, {key: [value] * 5 for key, value in ROLLOUT.items()}),
        table(name, {"prompt": turns, "reward_model": [{"ground_truth": "2"}], "responses": [["2", "3"]]}),
    ]


def rollout_folder() -> list[Any]:
    from limbeck.rollouts.store import write_rollouts
    from limbeck.types import Finish, Rollout, RolloutSet

    one = Rollout(
        problem_id="p", sample=0, prompt_ids=(1,), response_ids=(2,), behavior_logprobs=(-0.5,), reward=1.0, finish=Finish.STOP,
        response="2",
    )  # fmt: skip

    def make(folder: Path) -> None:
        folder.rmdir()
        write_rollouts(RolloutSet(rollouts=(one,), provenance={"source": "x"}), folder)

    return [make]


def problem_lines() -> list[Any]:
    from tests.hostile.making import lines

    return [lines("problems.jsonl", {"prompt": "1 + 1?", "answer": "2"}, {"prompt": "2 + 2?", "answer": 4, "id": "b"})]


def problem_table() -> list[Any]:
    from tests.hostile.making import table

    return [table("problems.parquet", {"prompt": ["1 + 1?", "2 + 2?"], "answer": ["2", "4"]})]


def problem_arrow() -> list[Any]:
    import pyarrow as pa

    def make(folder: Path) -> None:
        rows = pa.table({"prompt": ["1 + 1?", "2 + 2?"], "answer": ["2", "4"]})
        with pa.ipc.new_stream(folder / "problems.arrow", rows.schema) as stream:
            stream.write_table(rows)

    return [make]


LOGS = Path(__file__).parents[1] / "tests" / "data" / "logs"


def log(pattern: str, name: str) -> Callable[[], list[Any]]:
    """A log that another program wrote, under a name that the verb is given."""
    return lambda: [lambda folder: shutil.copy(next(iter(sorted(LOGS.glob(pattern)))), folder / name)]


def one_filter() -> list[Any]:
    """A log of the harness has a line for each filter; a table is made of one."""
    rows = [json.loads(line) for line in next(LOGS.glob("lm_eval/base/*.jsonl")).read_text().splitlines()]
    text = "".join(json.dumps(row) + "\n" for row in rows if row["filter"] == "strict-match")
    return [lambda folder: (folder / "samples_x.jsonl").write_text(text)]


def score_csv() -> list[Any]:
    from tests.hostile.making import file

    return [file("table.csv", "problem_id,sample,correct,answer,response\np,0,1,2,it is 2\nq,0,0,4,5\n")]


def score_folder() -> list[Any]:
    from limbeck.evals.tables import write_table
    from limbeck.types import Score, ScoreTable

    one = Score(
        problem_id="p",
        sample=0,
        correct=True,
        answer="2",
        extracted="2",
        finish=None,
        response_tokens=3,
        outcome=None,
        response="2",
    )

    def make(folder: Path) -> None:
        folder.rmdir()
        write_table(ScoreTable(name="x", scores=(one,), problems_digest="0", grader="g", decoding="greedy"), folder)

    return [make]


def adapter() -> list[Any]:
    from tests.hostile.making import adapter

    return [adapter(), adapter(rank_pattern={"q_proj": 2}, alpha_pattern={".*q_proj": 4}, use_rslora=True)]


def checkpoint() -> list[Any]:
    from tests.hostile.making import checkpoint, entry, indexed

    fused = {"model.layers.0.qkv_proj.weight": entry([4, 2], 0, 32), "model.embed_tokens.weight": entry([2, 2], 32, 48)}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 1}
    settings = json.dumps(heads | {"hidden_size": 2, "tie_word_embeddings": True})
    return [
        checkpoint(),
        checkpoint(fused, bytes(48), config=settings),
        indexed({"model.norm.weight": "a.safetensors"}),
    ]


def model() -> list[Any]:
    from tests.hostile.making import model

    return [model(chat_template__jinja="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")]


def study() -> list[Any]:
    from limbeck.studies.config import packaged

    return [
        lambda folder, path=path: shutil.copy(path, folder / "study.toml") for _, path in sorted(packaged().items())
    ]


PARSERS: dict[str, tuple[str, str, Callable[[], list[Any]]]] = {
    "rollouts in JSON lines": ("import", "rollouts.jsonl", rollout_lines),
    "rollouts in Parquet": ("import", "rollouts.parquet", rollout_table),
    "a rollouts folder": ("train --rollouts", "", rollout_folder),
    "problems in JSON lines": ("eval --problems", "problems.jsonl", problem_lines),
    "problems in Parquet": ("eval --problems", "problems.parquet", problem_table),
    "problems in Arrow": ("eval --problems", "problems.arrow", problem_arrow),
    "a log of lm-evaluation-harness": ("scores import", "samples_x.jsonl", one_filter),
    "a log of lighteval": ("scores import", "details_x.parquet", log("lighteval/base/*.parquet", "details_x.parquet")),
    "a log of inspect": ("scores import", "log.json", log("inspect/base.json", "log.json")),
    "an archive of inspect": ("scores import", "log.eval", log("inspect/base.eval", "log.eval")),
    "a score table in CSV": ("scores import", "table.csv", score_csv),
    "a score table's folder": ("compare", "", score_folder),
    "an adapter": ("measure", "", adapter),
    "a checkpoint": ("measure", "", checkpoint),
    "a model and its tokenizer": ("eval --base", "", model),
    "a study": ("study run", "study.toml", study),
}

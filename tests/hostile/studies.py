"""Studies, results and whatever is watched."""

from __future__ import annotations

from tests.hostile.making import DEEP, Make, file, files, repeated
from tests.hostile.verbs import Case


def study(text: str) -> Make:
    """A study of the embedded world, with these lines at its end."""
    return file(
        "study.toml", f'name = "x"\nquestion = "y"\nstudent = "abacus:base"\nteacher = "abacus:teacher"\n{text}\n'
    )


ARMS = 'arms = [{ name = "sft" }, { name = "rft", train = { selection = "correct" } }]\n'

STUDIES = [
    Case("brackets 100,000 deep", "study run", file("study.toml", "a = " + DEEP), "must be TOML:"),
    Case(
        "keys 100,000 deep",
        "study run",
        file("study.toml", "a" + ".a" * 100_000 + " = 1"),
        "must be TOML: a dotted key of more than 32 parts",
    ),
    Case("NUL", "study run", file("study.toml", b"name = \0"), "must be TOML:"),
    Case("a byte order mark and nothing else", "study run", file("study.toml", b"\xef\xbb\xbf"), "must be TOML:"),
    Case("UTF-16", "study run", file("study.toml", 'name = "x"'.encode("utf-16")), "must be TOML:"),
    Case("a key twice", "study run", file("study.toml", 'name = "x"\nname = "y"\n'), "must be TOML:"),
    Case("a number of 5,000 digits", "study run", file("study.toml", "workers = " + "9" * 5000), "must be TOML:"),
    Case(
        "a learning rate of NaN",
        "study run",
        study(ARMS + "train = { learning_rate = nan }"),
        "study.train.learning_rate: input should be a finite number, received nan.",
    ),
    Case(
        "steps of 400 digits",
        "study run",
        study(ARMS + f"train = {{ num_steps = {'9' * 400} }}"),
        "a number beyond 64 bits",
    ),
    Case(
        "an arm that leaves the folder",
        "study run",
        study('arms = [{ name = "sft" }, { name = "../../x" }]'),
        "arms.1.name: string should match pattern",
    ),
    Case(
        "a setting that asks for code",
        "study run",
        study("trust_remote_code = true\n" + ARMS),
        '[study] has no key "trust_remote_code"',
    ),
    Case("JSON 100,000 deep", "study run", file("study.json", DEEP), "must be JSON:"),
]

RESULTS = [
    Case("results 100,000 deep", "report", files(study__json=DEEP), "must be JSON, received text that is not"),
    Case("a study that is a list", "report", files(study__json="[1]"), "must hold a JSON object, received a list"),
    Case(
        "arms of other types",
        "report",
        files(study__json='{"name": 1, "arms": 3}', arms__json='[{"run": [1], "arm": {"a": 1}}]'),
        "must hold what limbeck writes there, received other content",
    ),
    Case(
        "a comparison of other types",
        "report",
        files(
            study__json="{}",
            comparison__json='{"arms": [{"name": [], "value": "x", "low": null, "high": {}}], "pairs": []}',
        ),
        "must hold what limbeck writes there, received other content",
    ),
    Case(
        "measurements of millions of rows",
        "report",
        lambda folder: repeated("measurements.parquet", {"metric": "p", "value": 1.0}, 5_000_000)(folder).parent,
        "must have the columns of measurements.parquet in order",
    ),
    Case("a step of a study that is a list", "watch", files(config__json='{"arms": [1], "name": [2]}')),
    Case(
        "settings of a run of other types",
        "watch",
        files(
            config__json='{"base": [1], "train": {"num_steps": "x", "objective": []}}',
            metrics__jsonl='{"step": 1e999, "loss": "x"}\n[1]\n',
        ),
    ),
    Case(
        "settings 100,000 deep",
        "watch",
        files(config__json=DEEP),
        "watch needs the folder of a study or of a run, with its config.json",
    ),
    Case(
        "metrics 100,000 deep",
        "watch",
        files(
            config__json='{"base": "b", "train": {"num_steps": 3, "objective": "sft"}}',
            metrics__jsonl=DEEP + '\n{"step": 1, "loss": 1}\n',
        ),
    ),
]

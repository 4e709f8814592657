"""A study on a Ray cluster of two workers: the same files as in this process; killed here and there, too."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import get_args

import pytest

from limbeck.digests import is_complete
from limbeck.errors import ConfigError, FolderError, LimbeckError
from limbeck.folders import read_manifest
from limbeck.problems.prompts import stop_ids
from limbeck.records import read_json
from limbeck.studies.cluster import MODEL_KINDS, Cluster
from limbeck.studies.config import StudyConfig, load_study
from limbeck.studies.executors import InProcess
from limbeck.studies.plan import make_plan
from limbeck.studies.runner import run_plan
from limbeck.studies.sections import ResourcesConfig, StepKind
from limbeck.studies.step import Plan
from limbeck.studies.steps import KINDS
from limbeck.studies.study import run_study
from limbeck.train.models import load_tokenizer
from limbeck.worlds.abacus.generator import generate
from raycluster import cluster
from serving import completion, serving, told

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra `ray` is not installed")


@pytest.fixture(scope="module")
def two_workers():
    """The one cluster of this module; its address and token are in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")  # the workers' too
        with cluster() as environment:
            for name, value in environment.items():  # before ray is imported, which reads it once
                patch.setenv(name, value)
            yield environment


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """The smallest study that trains, answers, compares and measures, from a file of rollouts."""
    root = tmp_path_factory.mktemp("given")
    with (root / "rollouts.jsonl").open("w") as file:
        for problem, text in generate("train", 8, seed=7):
            for response, reward in ((text, 1), (text.rsplit(" ", 1)[0] + " 1000", 0)):
                row = {"problem_id": problem.id, "prompt": problem.prompt, "response": response, "reward": reward}
                file.write(json.dumps(row) + "\n")
    (root / "study.toml").write_text(
        """
name = "small"
question = "Does it matter where it runs?"
student = "abacus:base"
workers = 1
resources = { cpus = 1, memory_gb = 0.5, retries = 5 }
rollouts = { path = "rollouts.jsonl" }
train = { num_steps = 14, batch_size = 4, checkpoint_every = 3, lora = { rank = 2 } }
eval = { max_new_tokens = 24, problems = { world = "abacus", num = 8 } }
geometry = { cka_problems = 0, draws = 20 }
arms = [{ name = "sft" }, { name = "dpo", train = { objective = "dpo" } }]
"""
    )
    return root / "study.toml"


def files_of(out: Path) -> dict[str, dict[str, str]]:
    """Step folder to the digests of its files, without those that say when and where it ran."""
    kept = {}
    for folder in sorted((out / "steps").iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            assert is_complete(folder)
            files = read_manifest(folder)["files"]
            clock = ("metrics.jsonl", "config.json")
            kept[folder.name] = {n: d for n, d in files.items() if n not in clock and "checkpoints" not in n}
    return kept


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory) -> Path:
    """The study in this process, its steps in a folder that others can share."""
    root = tmp_path_factory.mktemp("serial")
    run_study(load_study(str(study)), root / "out", shared=root / "steps")
    return root / "out"


@pytest.fixture(scope="module")
def serial(finished) -> dict[str, dict[str, str]]:
    return files_of(finished)


def test_ray_gives_the_files_of_one_process(study, serial, two_workers, tmp_path):
    run_study(load_study(str(study)), tmp_path / "ray", on="auto")
    assert files_of(tmp_path / "ray") == serial
    assert not sys.modules["ray"].is_initialized()
    steps = read_json(tmp_path / "ray" / "results" / "provenance.json")["steps"]
    assert len(steps) == len(serial)
    assert all(step["seconds"] is not None for step in steps)


def test_workers_and_driver_killed_and_started_again_it_ends_with_the_same_files(study, serial, two_workers, tmp_path):
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "limbeck", "study", "run", str(study), "--out", str(out), "--on", "auto"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    first = trained_to(out, driver, 4)
    os.kill(first, signal.SIGKILL)
    second = trained_to(out, driver, 7, but=first)  # Ray has started the step again, in another process
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert second != first
    assert not (out / "results").exists()
    run_study(load_study(str(study)), out, on="auto")
    assert files_of(out) == serial
    assert not [path for path in out.rglob("*") if "partial" in path.name]


def trained_to(out: Path, driver: subprocess.Popen, steps: int, but: int = 0) -> int:
    """Wait until a run that no process but ``but`` writes has come so far; its process."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and driver.poll() is None:
        for log in out.glob("steps/train-*/metrics.jsonl"):
            pid = (log.parent / ".limbeck").read_text()
            if log.read_bytes().count(b"\n") >= steps and pid not in ("", str(but)):
                return int(pid)
        time.sleep(0.02)
    raise AssertionError(f"no run took {steps} steps; the study is {driver.poll() or 'running'}")


def test_a_worker_killed_while_a_server_answers_is_followed_by_one_that_asks_for_the_rest(study, two_workers, tmp_path):
    end = stop_ids(load_tokenizer("abacus:base"))[0]
    answer = lambda path, body: completion([*told(body["seed"]), end], [-0.5] * 4)  # noqa: E731
    with serving(answer, lambda number, body: "delay") as server:
        server.delay = 0.05
        asked = 'samples = 4, problems = { world = "abacus", split = "train", num = 8 }, server = { model = "m", concurrency = 2'
        settings = (f'rollouts={{ {asked}, urls = ["{server.url}"] }} }}',)
        [step] = [step for step in make_plan(load_study(str(study), settings)) if step.kind == "served"]
        killer = threading.Thread(target=kill_writer, args=(tmp_path / "killed" / step.folder, 5))
        killer.start()
        place = partial(Cluster, "auto", ResourcesConfig(), ["served"])
        run_plan([step], tmp_path / "killed", on=place, show=lambda *told: None)
        killer.join()
        again = len(server.asked) - 32
        run_plan([step], tmp_path / "whole", on=InProcess, show=lambda *told: None)
    found, whole = (read_manifest(tmp_path / name / step.folder, "rollouts") for name in ("killed", "whole"))
    assert found["files"] == whole["files"]
    assert (found["num_rollouts"], found["digest"]) == (32, whole["digest"])
    assert again <= 2  # what was under way


def kill_writer(folder: Path, num: int) -> None:
    """Kill the process that writes a step as soon as so many answers are on record."""
    deadline, journal = time.monotonic() + 240, folder / "journal.jsonl"
    while time.monotonic() < deadline and not (journal.exists() and journal.read_bytes().count(b"\n") > num + 1):
        time.sleep(0.02)
    os.kill(int((folder / ".limbeck").read_text()), signal.SIGKILL)


def on_ray(root: Path, *steps: tuple[str, dict, dict], **resources) -> dict[str, Path]:
    """Run steps, each as kind, params and inputs and by the name of its text, on the cluster."""
    plan = Plan()
    for kind, params, inputs in steps:
        plan.add(params["text"], kind, params, inputs, 1.0)
    place = partial(Cluster, "auto", ResourcesConfig(**resources), [kind for kind, *_ in steps])
    return run_plan(list(plan.steps.values()), root, on=place, show=lambda *told: None, kinds="tinysteps:KINDS")


def test_two_studies_make_what_they_share_once(study, finished, tmp_path):
    shared = finished.parent / "steps"
    assert (finished / "steps").resolve() == shared
    before = {path: path.stat().st_mtime_ns for path in shared.glob("*/manifest.json")}
    out = tmp_path / "other"
    run_study(load_study(str(study), ("eval.alpha=0.01",)), out, shared=shared)
    after = {path: path.stat().st_mtime_ns for path in shared.glob("*/manifest.json")}
    assert before.items() <= after.items()
    [new] = after.keys() - before.keys()  # the comparison alone depends on alpha
    assert new.parent.name.startswith("compare-")
    assert all(step["seconds"] is not None for step in read_json(out / "results" / "provenance.json")["steps"])
    with pytest.raises(
        FolderError, match=r"--steps must be where the study has its steps already, received .*elsewhere"
    ):
        run_study(load_study(str(study)), out, overwrite=True, shared=tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_a_lost_worker_is_replaced_until_the_retries_are_used_up(two_workers, tmp_path):
    log = str(tmp_path / "log")
    steps = [("write", {"text": "a"}, {}), ("die", {"text": "b", "log": log, "times": 1}, {"a": "a"})]
    folders = on_ray(tmp_path / "steps", *steps, retries=1)
    assert (folders["b"] / "text").read_text() == "a b"
    assert len(set(Path(log).read_text().split())) == 2
    log = str(tmp_path / "other")
    with pytest.raises(
        LimbeckError, match=r"received none from c in 2 tries: .*WorkerCrashedError.*resources.memory_gb"
    ):
        on_ray(tmp_path / "steps", ("die", {"text": "c", "log": log, "times": 9}, {}), retries=1)
    assert len(Path(log).read_text().split()) == 2
    with pytest.raises(ValueError, match="this went wrong"):
        on_ray(tmp_path / "steps", ("fail", {"text": "this went wrong"}, {}))


def test_what_no_node_has_is_refused(two_workers, tmp_path):
    words = "a step of kind write takes, 1 CPUs, 2 GPUs, received a cluster whose nodes have at most 2 CPUs, 0 GPUs"
    with pytest.raises(ConfigError, match=words):
        on_ray(tmp_path, ("write", {"text": "a"}, {}), gpus=2.0)


def test_where_no_cluster_is_the_study_says_how_to_start_one(study, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="--on must be local, auto"):
        run_study(load_study(str(study)), tmp_path / "out", on="slurm")
    assert not (tmp_path / "out").exists()


def test_every_kind_of_step_can_have_resources_of_its_own():
    assert set(get_args(StepKind)) == set(KINDS)
    assert set(MODEL_KINDS) < set(KINDS)


def test_resources_belong_to_no_step(study):
    small, large = (load_study(str(study), settings) for settings in ((), ("resources.kinds.train.gpus=1",)))
    assert [step.digest for step in make_plan(small)] == [step.digest for step in make_plan(large)]
    assert isinstance(large, StudyConfig)
    assert large.resources.of("train").gpus == 1
    assert (large.resources.of("eval").gpus, large.resources.of("train").cpus) == (None, 1)

"""The benchmarks' own arithmetic, and that both sides of the comparison with TRL take the same steps."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import sides
        from train_vs_trl import SMOKE

        path = tmp_path_factory.mktemp("sides")
        sides.prepare(root=str(path), shape=SMOKE)
        yield str(path)


def scored(root, objective):
    import sides
    from train_vs_trl import SCORED

    if objective in SCORED and not Path(root, f"scores-{objective}").exists():
        sides.score(root=root, objective=objective)


@pytest.mark.parametrize("objective", ["sft", "dft", "dpo", "grpo", "reverse_kl", "jsd"])
def test_whole_runs_of_both_sides_have_the_same_losses(objective, root):
    """Four steps of ``limbeck train`` and of ``trainer.train()``: batches, schedule, optimizer, clipping and all."""
    pytest.importorskip("trl")
    import sides
    from train_vs_trl import difference

    scored(root, objective)
    ours, theirs = (side(root=root, objective=objective, steps=3) for side in (sides.ours, sides.theirs))
    assert ours["tokens"] == theirs["tokens"]
    assert len(set(ours["losses"])) == 4
    assert difference(ours["losses"], theirs["losses"]) < 1e-4


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_every_setting_of_both_sides_takes_the_same_steps(objective, root):
    pytest.importorskip("trl")
    import sides
    from train_vs_trl import difference, settings

    scored(root, objective)
    found = [
        run["losses"]
        for setting in settings(objective)
        for run in (
            sides.ours(root=root, objective=objective, steps=1, train=setting.ours),
            sides.theirs(root=root, objective=objective, steps=1, settings=setting.theirs, by_row=setting.by_row),
        )
    ]
    assert all(difference(found[0], losses) < 1e-5 for losses in found[1:])


def test_operations_of_a_step_are_those_of_its_matrices():
    import gpu
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = {"vocab": 64, "hidden": 16, "intermediate": 24, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8}
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, attn_implementation="eager",
        )
    )  # fmt: skip
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randint(64, (1, 32)))
    attention = 32 * 4 * 2 * 4 * 8 * 32  # eager attention also multiplies what lies ahead, 4 operations a pair
    products = 2 * 32 * gpu.weights_used(shape)
    rotary = counter.get_total_flops() - attention - products
    assert 0 <= rotary < 0.02 * products
    assert gpu.step_flops(shape | {"length": 32}, 32) == 2 * products + 3 * attention / 2


def test_rows_replace_those_of_the_same_name_and_fill_the_docs(tmp_path, monkeypatch):
    import common

    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(common, "DOCS", tmp_path / "page.md")
    (tmp_path / "page.md").write_text("before\n<!-- x -->\nold\n<!-- end of x -->\nafter\n")
    results = common.Results("x", command="c", machine="m")
    results.add(("a", 1.0, 2.0, "p", 2.0, None, "s"), ("b", 1.0, None, None, None, None, "s"))
    results.add(("a", 3.0, 3.0, "p", 1.0, None, "s"))
    assert [(row["what"], row["ours"]) for row in results.stored()] == [("b", 1.0), ("a", 3.0)]
    common.table_in_docs("x", "new")
    assert (tmp_path / "page.md").read_text() == "before\n<!-- x -->\nnew\n<!-- end of x -->\nafter\n"
    with pytest.raises(SystemExit, match="must hold the comments"):
        common.table_in_docs("y", "new")


def test_the_fuzzer_changes_what_it_is_given_and_finds_nothing_in_a_few_inputs(tmp_path):
    import random

    import fuzz
    from mutations import changed

    for name in ("rollouts in JSON lines", "problems in Parquet", "an archive of inspect", "an adapter"):
        for number, make in enumerate(fuzz.PARSERS[name][2]()):
            folder = tmp_path / f"{name}-{number}"
            folder.mkdir()
            make(folder)
            whole = {path.name: path.read_bytes() for path in folder.iterdir()}
            many = [changed(whole, random.Random(seed)) for seed in range(30)]
            assert many[3] == changed(whole, random.Random(3))
            assert len({tuple(sorted(files.items())) for files in many}) > 20
    counts = fuzz.fuzz("problems in JSON lines", 300, 0, tmp_path / "kept", smoke=True)
    assert counts["inputs"] == counts["refused"] + counts["accepted"] == 20
    assert counts["refused"] > 0
    assert not counts["findings"]
    files = {"a": b"1\n", "b": b""}
    assert fuzz.unpacked(fuzz.packed(files)) == files


def test_flipped_bits_are_found_and_named(tmp_path):
    import corruption

    corruption.make(tmp_path)
    files = corruption.files_of(tmp_path)
    assert len({Path(name).parts[2] for name in files if name.startswith("study/steps")}) == 11  # a step of every kind
    counts = corruption.flip_all(tmp_path, 40, seed=1)
    assert counts["verify"] == counts["flips"] == 40
    assert counts["refused"] == counts["read"] > 20


def test_a_job_that_fails_says_why():
    import common

    with pytest.raises(common.JobError, match="KeyError"):
        common.run_job(BENCHMARKS / "sides.py", {"job": "nothing"}, threads=1)


def test_the_plot_of_scaling_is_a_picture_of_its_rows():
    import scaling

    rows = [
        {"what": f"{x} {words}: {quantity}", "ours": 10.0 * x}
        for axis, words in scaling.WORDS.items()
        for x in scaling.SERIES[axis]
        for quantity in (scaling.SPEED, scaling.SPACE, scaling.TIME)
    ]
    picture = ET.fromstring(scaling.svg(rows))
    circles = [e for e in picture.iter() if e.tag.endswith("circle")]
    assert len(circles) == 2 * sum(len(values) for values in scaling.SERIES.values())
    found = {name: value for name, value, *_ in scaling.fits(rows)}
    assert found[f"over words: exponent of {scaling.TIME}"] == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["datasets", "jsonl"])
def test_stores_come_to_the_same_batches(name, tmp_path):
    """400 rows written, opened, selected, credited and batched by limbeck and by each peer."""
    pytest.importorskip("datasets")
    import store

    job = {"root": str(tmp_path), "rows": store.SMOKE[0], "key": "processor_seconds"}
    store.ours_write(**job)
    written = store.JOBS[f"{name}_write"](**job)
    files = {"files": written["files"]} if "files" in written else {}
    ours, theirs = store.ours_use(**job), store.JOBS[f"{name}_use"](**job, **files)
    assert (ours["chosen"], ours["sums"]) == (theirs["chosen"], theirs["sums"])
    assert written["stages"].keys() | theirs["stages"].keys() == set(store.STAGES)
    assert all(stage["seconds"] >= 0 < stage["peak_mb"] for stage in ours["stages"].values())


@pytest.mark.parametrize("objective", ["grpo", "reverse_kl"])
def test_live_runs_of_both_sides_read_and_sample_as_much(objective, tmp_path):
    """A warm-up step and two more of ``limbeck train`` and of ``trainer.train()``, generation included."""
    pytest.importorskip("trl")
    import onpolicy_sides
    from onpolicy_vs_trl import SMOKE, same_work

    given = {"root": str(tmp_path), "objective": objective, "steps": 2}
    given |= {"rollouts": SMOKE["rollouts"], "tokens": SMOKE["tokens"]}
    onpolicy_sides.prepare(root=str(tmp_path), shape=SMOKE | {"steps": 2})
    ours, theirs = onpolicy_sides.ours(**given), onpolicy_sides.theirs(**given, settings={})
    for side in (ours, theirs):
        assert len(side["seconds"]) == len(side["sampled"]) == 2
        for part in ("sample", "score", "update"):
            assert len(side[part]) == 2
            assert (min(side[part]) > 0) == (part != "score" or objective == "reverse_kl")
    same_work(ours, theirs, SMOKE)


def test_a_live_step_that_sampled_less_is_not_compared():
    from onpolicy_vs_trl import SMOKE, same_work

    full = {"sampled": [SMOKE["rollouts"] * SMOKE["tokens"]] * 2}
    with pytest.raises(SystemExit, match="every step must sample 128 tokens"):
        same_work(full, {"sampled": [128, 100]}, SMOKE)


def test_the_plan_that_sleeps_is_one_step_then_rounds_then_one(monkeypatch):
    import cluster

    monkeypatch.setattr(cluster, "LONG", 0.01)
    plan = cluster.plan_of(10, 0.01)
    assert len({step.folder for step in plan}) == 10
    assert set(plan[-1].inputs.values()) == {f"eval/{i}" for i in range(4)}
    assert cluster.ideal(10, 0.01, 4) == pytest.approx(0.04)
    found = cluster.sleep(on="here", steps=10, seconds=0.01, workers=1)
    assert found["wall"] >= cluster.ideal(10, 0.01, 1)
    row = {"what": "w", "ours": 0.03, "theirs": None, "goal": 0.02, "unit": "fraction"}
    assert cluster.docs_table([row]).splitlines()[-1] == "| w | **0.03** |  | 0.02 | fraction |"


def test_what_was_disturbed_is_compared_without_clocks(tmp_path):
    import faults

    (tmp_path / "steps").mkdir()
    for name, text in {
        "manifest.json": '{"created": "now", "files": {"a.csv": "0f", "b.txt": "1e"}, "steps": [{"seconds": 1, "name": "x"}]}',
        "metrics.jsonl": '{"step": 1, "loss": 0.5, "seconds": 0.1}\n',
        "a.csv": "arm,seconds\nsft,1.5\n",
        "report.html": "took 3 s",
    }.items():
        (tmp_path / name).write_text(text)
    assert faults.look(tmp_path) == {
        "a.csv": [{"arm": "sft"}],
        "manifest.json": {"files": {"a.csv": "a digest", "b.txt": "1e"}, "steps": [{"name": "x"}]},
        "metrics.jsonl": [{"step": 1, "loss": 0.5}],
        "report.html": "a file",
        "steps": "a folder",
    }
    assert faults.differences({"a": 1, "b": 2}, {"a": 2, "c": 3}) == ["a (differs)", "b (missing)", "c (stray)"]
    row = {"what": "table: killed at an operation; of 8", "ours": 8, "theirs": 8}
    assert faults.docs_table([row]).splitlines()[-1] == "| table: killed at an operation | 8 | 8 | 8 |"


def test_a_training_a_rollout_set_and_a_table_survive_a_few_faults():
    command = [sys.executable, str(BENCHMARKS / "faults.py"), "--smoke", "--parts", "faults"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" at an operation on files; of ") == 6

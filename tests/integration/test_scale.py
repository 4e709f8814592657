"""The arithmetic of big students agrees with real models of a size that runs here, and its page shows what it says."""

from __future__ import annotations

import re
import shlex

import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser

from documented import FENCE, PAGES, ROOT, called

PAGE = PAGES["docs/scale.md"]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def scale():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import scale

        yield scale


UNSEEN = {"vocab": 64, "hidden": 176, "intermediate": 264, "layers": 5, "heads": 10, "kv_heads": 5, "head_dim": 24} | {
    "tied": False
}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_a_token_keeps_is_that_of_a_real_model(scale, method):
    """The line through small models meets one that is larger than all of them."""
    assert scale.kept(UNSEEN, scale.line(method)) == pytest.approx(scale.kept_by(scale.built(UNSEEN, method)))


def test_parts_are_those_of_the_published_models(scale):
    counted = {name: scale.sizes(name, "full").all for name in scale.STUDENTS}
    assert counted == {"Qwen3-4B": 4_022_468_096, "Qwen3-8B": 8_190_735_360, "Qwen3-32B": 32_762_123_264}
    of, found = scale.sizes("Qwen3-32B", "full"), scale.memory("Qwen3-32B", "full", 8, checkpointing=True).largest
    held = {"weights": 4, "start": 2, "optimizer": 8, "gradients": 4}
    assert {part: found[part] for part in held} == {part: each * of.all // 8 for part, each in held.items()}
    shape, lora = scale.SHAPES["Qwen3-32B"], scale.sizes("Qwen3-32B", "lora")
    q, kv = (shape[heads] * shape["head_dim"] for heads in ("heads", "kv_heads"))
    sides = 2 * (shape["hidden"] + q) + 2 * (shape["hidden"] + kv)
    assert lora.trained == shape["layers"] * scale.LORA.rank * sides


@pytest.mark.parametrize(("checkpointing", "measured"), [(False, 15.918e9), (True, 3.754e9)])
def test_a_peak_that_was_measured_on_a_gpu_is_met(scale, checkpointing, measured):
    """Allocated at most on an H200 in two micro-batches of 8,192 tokens, by benchmarks/gpu.py on 2026-11-28."""
    found = scale.memory("Qwen3-0.6B", "lora", 1, checkpointing=checkpointing).peak
    assert found == pytest.approx(measured, rel=0.1)


def test_more_gpus_and_checkpointing_spare_memory(scale):
    for name, method in scale.named():
        peaks = [
            [scale.memory(name, method, gpus, checkpointing=again).peak for gpus in scale.COUNTS[1:]]
            for again in (True, False)
        ]
        assert all(a < b for a, b in zip(*peaks, strict=True))
        assert all(side == sorted(side, reverse=True) for side in peaks)


def test_operations_are_those_that_a_step_is_measured_by(scale):
    from gpu import step_flops, weights_used

    shape = scale.SHAPES["Qwen3-8B"]
    lora, again, full = (
        scale.token_flops(shape, method, checkpointing=again)
        for method, again in (("lora", False), ("lora", True), ("full", False))
    )
    assert lora == step_flops(shape, 1)
    assert full - lora == 2 * weights_used(shape)
    forward = again - lora
    assert 2 * weights_used(shape) < forward < 1.5 * 2 * weights_used(shape)


def test_a_measured_rate_is_taken_and_links_can_be_what_counts(scale):
    from gpu import SHAPES, step_flops

    row = {"what": "Qwen3-4B, sft: one optimizer step", "ours": 20_000.0, "machine": "a GPU, x", "date": "2026-01-01"}
    small = row | {"what": "Qwen3-0.6B, sft: one optimizer step", "ours": 30_000.0}
    measured = scale.rate([row, small])
    assert measured.flops == 20_000 * step_flops(SHAPES["Qwen3-4B"], 1)
    assert scale.rate([small]).flops == 30_000 * step_flops(SHAPES["Qwen3-0.6B"], 1)
    assert "measured on a GPU, 2026-01-01" in measured.source
    assert "assumed" in scale.rate([]).source
    fast = measured._replace(flops=1e30)
    seconds = [scale.training_seconds("Qwen3-8B", "full", gpus, fast, checkpointing=True) for gpus in (8, 16)]
    of = scale.sizes("Qwen3-8B", "full").all
    assert seconds == pytest.approx([12 * of * 7 / 8 / 300e9, 12 * of * 15 / 16 / 50e9])


def test_the_page_has_what_the_script_computes(scale):
    shown = re.search(r"<!-- scale -->\n(.*)\n<!-- end of scale -->", PAGE, re.DOTALL)[1]
    assert shown == scale.document(), "run `python benchmarks/scale.py`"


def blocks(language: str) -> list[str]:
    return [body for _, found, body in FENCE.findall(PAGE) if found == language]


def test_the_recipe_for_kubernetes_mounts_what_it_claims():
    [job] = map(yaml.safe_load, blocks("yaml"))
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        mounted = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_launched_runs_are_read_by_the_launcher():
    """Four processes on one machine; and of a job on four machines 32, for each of two arms."""
    lines = [line for script in blocks("bash") for line in called(script) if line.startswith("accelerate launch ")]
    given = [launch_command_parser().parse_args(shlex.split(line)[2:]) for line in lines]
    assert [(g.num_machines, g.num_processes, g.machine_rank) for g in given] == [(None, 4, None), *[(4, 32, 0)] * 2]
    assert all((g.use_fsdp, g.fsdp_version, g.training_script) == (True, "2", "limbeck") for g in given)


def test_sizes_follow_from_tensors_that_hold_nothing(scale):
    assert all(p.device == torch.device("meta") for p in scale.model_of("Qwen3-32B", "lora").parameters())

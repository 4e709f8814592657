"""What studies of big students would take: memory, time and disk of a run, computed from the shapes of Qwen3.

    python benchmarks/scale.py            # writes the tables of docs/scale.md

Sizes of weights, adapters, optimizer and head are counted on the model's own tensors, which hold nothing here, by the code
of ``limbeck doctor``. What a token keeps until backward is counted on small models by the same code; it is linear in the
model's sizes, and the big ones are put into that line. Times follow from operations at a rate: the one that
benchmarks/gpu.py measured, where results/gpu.json has it, else an assumed one; the page says which.
"""

from __future__ import annotations

import json
import math
import random
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import RESULTS, Row, table_in_docs
from dense_geometry import FIRST, FURTHER, law, swept, work
from gpu import SHAPES as MEASURED
from gpu import step_flops, weights_used
from transformers import Qwen3Config, Qwen3ForCausalLM

from limbeck.config import LoraConfig
from limbeck.doctor import forecast
from limbeck.studies.rates import TRAINED
from limbeck.train.memory import kept_per_token
from limbeck.train.models import add_adapter

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
Shape = dict[str, Any]
QWEN: Shape = {"vocab": 151_936, "kv_heads": 8, "head_dim": 128, "length": 4096}
SHAPES: dict[str, Shape] = {
    "Qwen3-0.6B": QWEN | {"hidden": 1024, "intermediate": 3072, "layers": 28, "heads": 16, "tied": True},
    "Qwen3-4B": QWEN | {"hidden": 2560, "intermediate": 9728, "layers": 36, "heads": 32, "tied": True},
    "Qwen3-8B": QWEN | {"hidden": 4096, "intermediate": 12_288, "layers": 36, "heads": 32, "tied": False},
    "Qwen3-32B": QWEN | {"hidden": 5120, "intermediate": 25_600, "layers": 64, "heads": 64, "tied": False},
}
STUDENTS, METHODS = ("Qwen3-4B", "Qwen3-8B", "Qwen3-32B"), ("lora", "full")
LORA = LoraConfig(rank=32, alpha=64.0)

# the study
ROLLOUTS, ARMS, SEEDS = 75_000, 6, 3
ASKED = 500 * 4 * 3  # problems, answers each, problem sets: asked of every run
MICRO_BATCH = 8192  # tokens of one pass of one GPU

# the machine
GPU_BYTES, USABLE = 80e9, 0.9  # H100; the rest is for the context and for what the allocator cannot reuse
NODE, COUNTS = 8, (1, 2, 4, 8, 16, 32, 64)  # GPUs of a machine, and of a run
LINK = {"inside": 300e9, "between": 50e9}  # bytes a second a GPU: NVLink, and 400 Gbit/s Ethernet or InfiniBand
PRODUCT = 800e12  # operations a second of a large bf16 product
REACHED = 0.4  # share of it in training, where nothing was measured
SAMPLED = 0.1  # share of it in sampling by a server whose batches are full: weights are read for every token position


class Sizes(NamedTuple):
    """Numbers in a model: all, of one layer, of embeddings and head, and those that are trained."""

    all: int
    layer: int
    ends: int
    trained: int


@cache
def model_of(name: str, method: str) -> torch.nn.Module:
    """The model with what is trained marked, on no device: shapes without numbers."""
    with torch.device("meta"):
        return built(SHAPES[name], method)


def built(shape: Shape, method: str) -> torch.nn.Module:
    config = Qwen3Config(
        vocab_size=shape["vocab"], hidden_size=shape["hidden"], intermediate_size=shape["intermediate"],
        num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"], num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"], tie_word_embeddings=shape["tied"],
    )  # fmt: skip
    dtype = torch.bfloat16 if method == "lora" else torch.float32
    model = Qwen3ForCausalLM(config).to(dtype).eval()  # type: ignore[call-arg]
    return add_adapter(model, LORA, init_seed=0) if method == "lora" else model


@cache
def sizes(name: str, method: str) -> Sizes:
    """Counted on the model's tensors, tied ones once."""
    model = model_of(name, method)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    every = [(n, p.numel()) for n, p in model.named_parameters() if "lora_" not in n]
    layer = sum(size for n, size in every if ".layers.0." in n)
    ends = sum(size for n, size in every if "embed_tokens" in n or "lm_head" in n)
    return Sizes(sum(size for _, size in every), layer, ends, trained)


# ------------------------------------------------------------------------------------------------------------- memory


def features(shape: Shape) -> list[int]:
    """What the bytes that a token keeps are linear in: of every layer, and once."""
    q, kv = (shape[heads] * shape["head_dim"] for heads in ("heads", "kv_heads"))
    layer = [1, shape["hidden"], q, kv, shape["heads"], shape["kv_heads"], shape["intermediate"]]
    return [*(shape["layers"] * x for x in layer), *layer, shape["head_dim"]]


@cache
def line(method: str) -> tuple[float, ...]:
    """Bytes for each of the features, from random small models.

    Raises:
        SystemExit: what is kept is not linear in them.
    """
    draw = random.Random(0)
    shapes = [small_shape(draw) for _ in range(24)]
    counted = [kept_by(built(shape, method)) for shape in shapes]
    found, *_ = np.linalg.lstsq(np.array([features(s) for s in shapes], float), np.array(counted, float), rcond=None)
    if max(abs(kept(shape, found) - bytes_) for shape, bytes_ in zip(shapes, counted, strict=True)) > 1:
        raise SystemExit(
            "bytes that a token keeps must be linear in the sizes of the model; they are not. Mend `features`."
        )
    return tuple(found)


def small_shape(draw: random.Random) -> Shape:
    kv = draw.randint(1, 3)
    return {
        "vocab": 32, "hidden": 8 * draw.randint(1, 9), "intermediate": 8 * draw.randint(1, 9), "layers": draw.randint(1, 4),
        "heads": kv * draw.randint(1, 3), "kv_heads": kv, "head_dim": 8 * draw.randint(1, 4), "tied": True,
    }  # fmt: skip


def kept_by(model: torch.nn.Module) -> int:
    """Bytes that a real model keeps of a token, under bf16 products."""
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kept_per_token(model)


def kept(shape: Shape, coefficients: Sequence[float]) -> float:
    return float(np.dot(features(shape), coefficients))


def memory(name: str, method: str, gpus: int, *, checkpointing: bool) -> forecast.Forecast:
    """Bytes of each GPU, by stage and part, as ``limbeck doctor`` adds them up, with what sharding adds.

    Args:
        name: of the student.
        method: adapters on a bf16 base, or fp32 weights.
        gpus: over which one run is sharded.
        checkpointing: each layer's input is kept, and one layer at a time is run again.
    """
    shape, of, model = SHAPES[name], sizes(name, method), model_of(name, method)
    full = method == "full"
    stored = 4 if full else 2  # bytes of a weight
    trained = [p for p in model.parameters() if p.requires_grad]
    moments = 4 * sum(forecast.STATE[torch.optim.AdamW](p, {}) for p in trained)
    adapters = 0 if full else 4 * of.trained
    held = {
        "weights": (stored * of.all + adapters) // gpus,
        "start": 2 * of.all // gpus if full else 0,
        "optimizer": moments // gpus,
    }
    whole = kept(shape, line(method))
    layer = whole / shape["layers"]
    inputs = stored * shape["hidden"] * shape["layers"]
    gathered = stored * (2 * of.layer + of.ends) if gpus > 1 else 0
    casts = 0
    if full:  # bf16 copies for the products: of all weights, unless sharded ones are forgotten with their layer
        casts = 2 * (of.layer + shape["vocab"] * shape["hidden"] if gpus > 1 and checkpointing else of.all)
        gathered += 4 * (of.layer + of.ends) if gpus > 1 else 0  # gradients, before they are scattered
    backward = {
        "gathered": gathered,
        "bf16 copies": casts,
        "layers": int(((inputs + layer if checkpointing else whole) + layer) * MICRO_BATCH),
        "head": forecast._head(model, MICRO_BATCH, on_cpu=False),
    }
    gradients = {"gradients": 4 * of.trained // gpus}
    stages = {
        "a micro-batch": held | gradients | backward,
        "the optimizer's step": held | gradients | {"optimizer, on the way": 4 * of.trained // gpus},
    }
    return forecast.Forecast(stages, int(inputs if checkpointing else whole))


def gpus_needed(name: str, method: str, *, checkpointing: bool) -> float:
    """The fewest GPUs, a power of two, on which a run fits; infinite where no number of them is enough."""
    fits = (n for n in COUNTS if memory(name, method, n, checkpointing=checkpointing).peak <= USABLE * GPU_BYTES)
    return next(fits, math.inf)


# --------------------------------------------------------------------------------------------------------------- time


def token_flops(shape: Shape, method: str, *, checkpointing: bool) -> float:
    """Operations of a trained token: products of its matrices, and attention over what precedes it in its row."""
    attention = step_flops(shape | {"hidden": 0, "vocab": 0, "intermediate": 0}, 1) / 3
    again = int(checkpointing)
    return (TRAINED[method] + 2 * again) * weights_used(shape) + (3 + again) * attention


class Rate(NamedTuple):
    """Operations a second of one GPU in training, and where that number is from."""

    flops: float
    source: str


def rate(stored: Sequence[Row]) -> Rate:
    """What was measured with cross-entropy and adapters, for Qwen3-4B or else for Qwen3-0.6B; else what is assumed.

    >>> rate([]).flops == REACHED * PRODUCT
    True
    """
    for name in ("Qwen3-4B", "Qwen3-0.6B"):
        found = [row for row in stored if row["what"] == f"{name}, sft: one optimizer step" and row["ours"]]
        if found:
            row, shape = found[-1], MEASURED[name]
            flops, device = row["ours"] * step_flops(shape, 1), row["machine"].split(",")[0]
            words = f"measured on {device}, {row['date']}: {name}, LoRA, {row['ours']:,.0f} tokens a second"
            more = f"; at {REACHED:.0%} of a large bf16 product ({PRODUCT / 1e12:.0f} TFLOP/s), which larger matrices come "
            more += (
                f"nearer to, hours of training and scoring are those below divided by {REACHED * PRODUCT / flops:.1f}"
            )
            return Rate(flops, words + (more if flops < REACHED * PRODUCT else ""))
    words = f"assumed: {REACHED:.0%} of {PRODUCT / 1e12:.0f} TFLOP/s, a large bf16 product on an H100"
    return Rate(REACHED * PRODUCT, f"{words}; benchmarks/gpu.py has measured nothing yet")


def moved(name: str, method: str, gpus: int) -> float:
    """Bytes that each GPU receives in a micro-batch: weights for forward and for backward, and its share of gradients."""
    of = sizes(name, method)
    return (1 - 1 / gpus) * (2 * 2 * of.all if method == "lora" else (2 * 4 + 4) * of.all)


def training_seconds(name: str, method: str, gpus: int, at: Rate, *, checkpointing: bool) -> float:
    """Seconds of one GPU for a micro-batch: operations, or the links where these take longer."""
    computed = MICRO_BATCH * token_flops(SHAPES[name], method, checkpointing=checkpointing) / at.flops
    link = LINK["inside" if gpus <= NODE else "between"]
    return max(computed, moved(name, method, gpus) / link)


class Run(NamedTuple):
    """One arm at one seed.

    Attributes:
        gpus: over which it is sharded.
        checkpointing: whether layers are run again in backward.
        tokens: a second, all its GPUs together.
        gpu_hours: of all rollouts once.
        checkpoint: bytes of the newest state.
        result: bytes that stay: fp32, and trained matrices as bf16 shows them.
        loading: bytes of host memory of a node as its processes read the base.
        saving: bytes of host memory of the main process as it writes the result.
    """

    gpus: int
    checkpointing: bool
    tokens: float
    gpu_hours: float
    checkpoint: float
    result: float
    loading: float
    saving: float


def run_of(name: str, method: str, at: Rate) -> Run:
    """Without running layers again where that needs no more GPUs."""
    needed = {again: gpus_needed(name, method, checkpointing=again) for again in (False, True)}
    again = needed[True] < needed[False]
    gpus, of = int(needed[again]), sizes(name, method)
    tokens = gpus * MICRO_BATCH / training_seconds(name, method, gpus, at, checkpointing=again)
    seconds = gpus * ROLLOUTS * SHAPES[name]["length"] / tokens
    full = method == "full"
    matrices = of.all if full else adapted(name)
    result = 4 * of.trained + 2 * matrices
    reading = min(gpus, NODE) * (4 if full else 2) * of.all
    saving = 4 * of.trained + 2 * 4 * of.all + 2 * of.all if full else 4 * of.all + 2 * matrices
    return Run(gpus, again, tokens, seconds / 3600, 12 * of.trained, result, reading, saving)


def adapted(name: str) -> int:
    """Numbers in the matrices that adapters stand on."""
    return sum(p.numel() for n, p in model_of(name, "lora").named_parameters() if n.endswith("base_layer.weight"))


def other_hours(name: str, at: Rate) -> dict[str, float]:
    """GPU-hours of what a study does once, whatever its method: sampling, scoring, evaluation of all runs."""
    shape = SHAPES[name]
    forward = token_flops(shape, "lora", checkpointing=True) - token_flops(shape, "lora", checkpointing=False)
    tokens = ROLLOUTS * shape["length"]
    answers = (ARMS * SEEDS + 1) * ASKED * shape["length"]
    return {
        "sampling": tokens * forward / (SAMPLED * PRODUCT) / 3600,
        "scoring": 2 * tokens * forward / at.flops / 3600,  # a teacher of the same size, and the base
        "evaluation": answers * forward / (SAMPLED * PRODUCT) / 3600,
    }


def geometry_hours(name: str) -> float:
    """Thread-hours of a processor to measure all runs of whole weights, by the law of benchmarks/dense_geometry.py."""
    rows = stored("dense_geometry")
    shapes = [tuple(p.shape) for p in model_of(name, "full").parameters() if p.dim() == 2]
    first, further = (
        sum(float(work(shape) @ law(swept(rows, quantity))) for shape in shapes) for quantity in (FIRST, FURTHER)
    )
    return (first + (ARMS * SEEDS - 1) * further) / 3600


def stored(name: str) -> list[Row]:
    """Rows of a result file; none where it was not measured."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


# ------------------------------------------------------------------------------------------------------------- tables


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def gb(bytes_: float) -> str:
    """Of 10^9 bytes, one decimal below a hundred.

    >>> gb(8.04e9), gb(393e9), gb(0)
    ('8.0', '393', '')
    """
    return "" if not bytes_ else f"{bytes_ / 1e9:.0f}" if bytes_ >= 99.95e9 else f"{bytes_ / 1e9:.1f}"


def named() -> list[tuple[str, str]]:
    return [(name, method) for name in STUDENTS for method in METHODS]


def memory_table(runs: dict[tuple[str, str], Run]) -> str:
    """GB of one GPU by part, in the stage that needs most."""
    parts = ("weights", "start", "optimizer", "gradients", "gathered", "bf16 copies", "layers", "head")
    rows = []
    for name, method in named():
        run = runs[name, method]
        found = memory(name, method, run.gpus, checkpointing=run.checkpointing)
        without = memory(name, method, run.gpus, checkpointing=False).peak
        cells = [gb(found.largest.get(part, 0)) for part in parts]
        again = "yes" if run.checkpointing else "no"
        rows.append([f"{name}, {method}", run.gpus, again, *cells, f"**{gb(found.peak)}**", gb(without)])
    return table(["student, method", "GPUs a run", "checkpointing", *parts, "peak", "peak without checkpointing"], rows)


def run_table(runs: dict[tuple[str, str], Run]) -> str:
    """Time, disk and host memory of a run."""
    head = ["student, method", "parameters", "trained", "tokens/s a run", "GPU-hours a run", "hours a run"]
    head += ["checkpoint, GB", "result, GB", "host GB, loading", "host GB, saving"]
    rows = []
    for name, method in named():
        run, of = runs[name, method], sizes(name, method)
        disk = [gb(run.checkpoint), gb(run.result), gb(run.loading), gb(run.saving)]
        times = [f"{run.tokens:,.0f}", f"{run.gpu_hours:,.1f}", f"{run.gpu_hours / run.gpus:,.1f}"]
        rows.append([f"{name}, {method}", f"{of.all / 1e9:.2f} B", f"{of.trained / 1e9:.3g} B", *times, *disk])
    return table(head, rows)


def study_table(runs: dict[tuple[str, str], Run], at: Rate) -> str:
    """GPU-hours of six arms at three seeds."""
    count, rows = ARMS * SEEDS, []
    for name, method in named():
        run, others = runs[name, method], other_hours(name, at)
        trained = count * run.gpu_hours
        total = trained + sum(others.values())
        geometry = "minutes" if method == "lora" else f"{geometry_hours(name):,.0f}"
        cells = [f"{hours:,.0f}" for hours in (*others.values(), trained, total)]
        disk = f"{count * (run.result + 2 * run.checkpoint) / 1e12:,.2f}"
        rows.append([f"{name}, {method}", *cells, f"{total / 64 / 24:.1f}", geometry, disk])
    head = ["student, method", "sampling", "scoring", "evaluation", f"training, {count} runs", "GPU-hours"]
    return table([*head, "days on 64 GPUs", "geometry, thread-hours", "disk, TB"], rows)


def document() -> str:
    """The computed part of the page."""
    at = rate(stored("gpu"))
    runs = {key: run_of(*key, at) for key in named()}
    speed = f"Rate of one GPU in training: {at.flops / 1e12:.0f} TFLOP/s, {at.source}."
    parts = [speed, "**Memory of one GPU, GB**", memory_table(runs), "**One run**", run_table(runs)]
    return "\n\n".join([*parts, "**The study, GPU-hours**", study_table(runs, at)])


if __name__ == "__main__":
    text = document()
    print(text)
    table_in_docs("scale", text, page=PAGE)

"""The same optimizer steps on two sides, each in a process of its own: limbeck as a user runs it, and TRL's trainers.

Both read one folder that ``prepare`` writes: a base and a teacher, the same rollouts, the same initial adapter. Both take
AdamW, one learning rate and schedule, one clipping norm, LoRA of rank 32 on q, k, v and o. A step is timed from the end of
the one before to its own end, so it holds everything that a step needs: batch, forward, backward, optimizer, record.
On TRL's side ``trainer.train()`` runs; only what would be generated (GRPO, distillation) or tokenized (DPO) is given.
"""

from __future__ import annotations

import gc
import json
import random
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import Clock, answer, memory

RATE, CLIP, DECAY, RANK, ALPHA = 1e-4, 1.0, 0.01, 32, 64
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
NOISE = 0.3  # nats, between the policy that trains and the one that wrote the synthetic rollouts


class Case(NamedTuple):
    """One objective on both sides: ours by name and knobs, TRL's by trainer and settings."""

    ours: str
    knobs: dict[str, Any]
    trainer: str
    settings: dict[str, Any]
    scores: str = ""  # the input that a frozen model is asked for beforehand on our side


CASES = {
    "sft": Case("sft", {}, "SFT", {"loss_type": "nll"}),
    "dft": Case("dft", {}, "SFT", {"loss_type": "dft"}),
    "dpo": Case("dpo", {"beta": 0.1}, "DPO", {"beta": 0.1, "loss_type": ["sigmoid"]}, "reference_logprobs"),
    "grpo": Case("grpo", {}, "GRPO", {"loss_type": "grpo", "epsilon": 0.2, "beta": 0.0}),
    "reverse_kl": Case("reverse_kl", {}, "Distillation", {"beta": 1.0}, "teacher_logits"),
    "jsd": Case("jsd", {"beta": 0.5}, "Distillation", {"beta": 0.5}, "teacher_logits"),
}


# --------------------------------------------------------------------------------------------------------- what is read


def device(*, size: int) -> dict[str, Any]:
    """The accelerator's name, if there is one, and what a large bf16 product reaches on it (else on the CPU)."""
    place = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(size, size, device=place, dtype=torch.bfloat16) for _ in range(2))
    clock = Clock()
    for _ in range(6):
        clock.stamp()
        torch.mm(a, b)
    clock.stamp()
    seconds = statistics.median(clock.result()["seconds"][1:])
    name = torch.cuda.get_device_name() if place == "cuda" else "no CUDA device"
    return {"cuda": place == "cuda", "name": name, "flops": 2 * size**3 / seconds}


def prepare(*, root: str, shape: dict[str, Any]) -> dict[str, Any]:
    """Write base, teacher, rollouts in pairs (``pairs``), as many single rows (``rows``) and the adapter's start."""
    from safetensors.torch import save_file

    from limbeck.rollouts.store import write_rollouts
    from limbeck.train.models import add_adapter, load_model

    folder = Path(root)
    if shape.get("world"):
        base, teacher = f"{shape['world']}:base", f"{shape['world']}:teacher"
        rollouts = world_rollouts(base, shape)
    else:
        base, teacher = (random_model(folder / name, shape, seed) for seed, name in enumerate(("base", "teacher")))
        rollouts = random_rollouts(base, shape)
    for name, rows in (("rows", rollouts[: shape["rows"]]), ("pairs", rollouts[: shape["pairs"] * 2])):
        provenance = {"sampling_temperature": 1.0, "model": base}
        write_rollouts(rollout_set(rows, provenance), folder / name)
    start = trainable(add_adapter(load_model(base), lora(), init_seed=0))
    save_file({name: parameter.detach() for name, parameter in start.items()}, folder / "start.safetensors")
    facts = {"base": base, "teacher": teacher}
    (folder / "facts.json").write_text(json.dumps(facts))
    return facts


def random_model(path: Path, shape: dict[str, Any], seed: int) -> str:
    """A Qwen3 of this shape with random weights and a tokenizer of as many words, as a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=shape["vocab"], hidden_size=shape["hidden"], intermediate_size=shape["intermediate"],
        num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"], num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"], tie_word_embeddings=shape.get("tied", True), max_position_embeddings=40_960,
        pad_token_id=0, eos_token_id=1, bos_token_id=None, initializer_range=0.02,
    )  # fmt: skip
    dtype = torch.bfloat16 if shape.get("dtype") == "bf16" else torch.float32
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen3ForCausalLM(config)
    model.to(dtype=dtype)  # type: ignore[call-arg]
    model.save_pretrained(path)
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *(f"w{i}" for i in range(2, shape["vocab"]))])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>").save_pretrained(path)
    return str(path)


def random_rollouts(base: str, shape: dict[str, Any]) -> list[Any]:
    """Rows of random tokens, a right and a wrong one to each prompt, as if a nearby policy had written them."""
    from limbeck.batches.score import score_rollouts
    from limbeck.train.models import load_model
    from limbeck.types import Finish, Rollout

    draw, out = random.Random(0), []

    def tokens(num: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, shape["vocab"]) for _ in range(num))

    for problem in range(max(shape["rows"] // 2, shape["pairs"])):
        prompt = tokens(shape["prompt"])
        for sample in range(2):
            response = tokens(shape["length"] - shape["prompt"])
            rollout = Rollout(
                problem_id=f"p{problem:03d}", sample=sample, prompt_ids=prompt, response_ids=response,
                behavior_logprobs=(0.0,) * len(response), reward=float(sample == 0), finish=Finish.LENGTH, response="",
            )  # fmt: skip
            out.append(rollout)
    scores = score_rollouts(load_model(base), out, token_budget=shape["length"])
    return [
        replaced(r, [s + NOISE * draw.gauss(0, 1) - NOISE**2 / 2 for s in row])
        for r, row in zip(out, scores, strict=True)
    ]


def replaced(rollout: Any, logprobs: list[float]) -> Any:
    from dataclasses import replace

    return replace(rollout, behavior_logprobs=tuple(logprobs))


def world_rollouts(base: str, shape: dict[str, Any]) -> list[Any]:
    """What the embedded world's base samples: a right and a wrong answer of each problem that has both."""
    from limbeck.rollouts.sample import Decoding
    from limbeck.studies.inputs import problems_named, read_problems
    from limbeck.studies.sampling import sample_rollouts
    from limbeck.train.models import load_model, load_tokenizer

    named = problems_named(f"{shape['world']}:train", "jsonl", shape["problems"], 0)
    problems = [problem for problem, _ in read_problems(named)]
    decoding = Decoding(sampling_temperature=1.0, max_new_tokens=shape["max_new_tokens"])
    sampled = sample_rollouts(load_model(base), load_tokenizer(base), problems, decoding, samples=4, source={})
    out = []
    for problem in problems:
        own = [r for r in sampled.rollouts if r.problem_id == problem.id]
        right, wrong = ([r for r in own if r.reward == reward] for reward in (1.0, 0.0))
        out += [right[0], wrong[0]] if right and wrong else []
    if len(out) < max(shape["rows"], 2 * shape["pairs"]):
        raise SystemExit(f"{len(out)} rows in mixed pairs: raise the shape's number of problems")
    return out


def rollout_set(rows: list[Any], provenance: dict[str, Any]) -> Any:
    from limbeck.types import RolloutSet

    return RolloutSet(rollouts=tuple(rows), provenance=provenance)


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def lora() -> Any:
    from limbeck.config import LoraConfig

    return LoraConfig(rank=RANK, alpha=ALPHA, dropout=0.0, targets=tuple(TARGETS))


def rollouts_of(case: Case, root: str) -> Path:
    return Path(root) / ("pairs" if case.trainer == "DPO" else "rows")


def facts_of(root: str) -> dict[str, str]:
    return json.loads((Path(root) / "facts.json").read_text())


# ----------------------------------------------------------------------------------------------------------------- ours


def loaded(*, root: str) -> dict[str, Any]:
    """Memory with everything in place before a first batch: libraries, base and adapter."""
    import limbeck.train.run  # noqa: F401
    from limbeck.train.models import add_adapter, load_model

    return touched(add_adapter(load_model(facts_of(root)["base"]), lora(), init_seed=0))


@torch.no_grad()
def touched(*models: torch.nn.Module) -> dict[str, Any]:
    """Memory once every weight was read: until then those that are mapped from their file are not resident."""
    parameters = [p for model in models for p in model.parameters()]
    for parameter in parameters:
        parameter.sum()
    return memory() | {"parameters": sum(p.numel() for p in parameters)}


def score(*, root: str, objective: str) -> dict[str, Any]:
    """What a frozen model is asked once for all runs on these rollouts, into a folder: seconds over all of them."""
    from limbeck.batches.distributions import write_hidden
    from limbeck.batches.score import score_rollouts, write_scores
    from limbeck.records import digest_of
    from limbeck.rollouts.store import read_rollouts
    from limbeck.train.models import load_model, load_tokenizer, model_digest

    case, names = CASES[objective], facts_of(root)
    name = names["base" if case.scores == "reference_logprobs" else "teacher"]
    given, model, digest = read_rollouts(rollouts_of(case, root)), load_model(name), model_digest(name)
    out, tokens = Path(root) / f"scores-{objective}", load_tokenizer(name).get_vocab()
    clock = Clock()
    clock.stamp()
    if case.scores == "reference_logprobs":
        write_scores(out, given, score_rollouts(model, given.rollouts), model_digest=digest)
    else:
        facts = {"token_map_digest": digest_of(tokens)}
        write_hidden(out, given, model, model_digest=digest, num_ids=max(tokens.values()) + 1, facts=facts)
    clock.stamp()
    return memory() | {name: seconds for name, (seconds,) in clock.result().items()}


def ours(
    *, root: str, objective: str, steps: int, precision: Any = "fp32", train: dict | None = None
) -> dict[str, Any]:
    """One run of ``limbeck train``: a warm-up step and ``steps`` timed ones."""
    from limbeck.config import TrainConfig
    from limbeck.rollouts.store import read_rollouts
    from limbeck.train.run import RunConfig
    from limbeck.train.run import train as train_run

    case, path = CASES[objective], rollouts_of(CASES[objective], root)
    given = read_rollouts(path).rollouts
    config = TrainConfig(
        objective=case.ours, knobs=case.knobs, learning_rate=RATE, weight_decay=DECAY, max_grad_norm=CLIP,
        batch_size=len(given) // (2 if case.trainer == "DPO" else 1), num_steps=steps + 1, warmup_fraction=0.0,
        checkpoint_every=1000, lora=lora(), precision=precision, **(train or {}),
    )  # fmt: skip
    scores = {case.scores: f"{root}/scores-{objective}"} if case.scores else {}
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        run = Path(out) / "run"
        settings = RunConfig(base=facts_of(root)["base"], rollouts=str(path), scores=scores, train=config)
        train_run(settings, run, advance=lambda num: clock.stamp() if num else None)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    tokens = sum(len(r.prompt_ids) + len(r.response_ids) for r in given)
    return memory() | clock.result() | {"losses": [line["loss"] for line in lines], "tokens": tokens}


# --------------------------------------------------------------------------------------------------------------- theirs


def theirs(
    *,
    root: str,
    objective: str,
    steps: int,
    precision: str = "fp32",
    settings: dict | None = None,
    by_row: bool = False,
) -> dict[str, Any]:
    """The same steps by TRL's trainer; ``settings`` are its options that differ from its defaults.

    ``by_row`` accumulates gradients over batches of one row or pair.
    """
    import trl
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback

    from limbeck.rollouts.store import read_rollouts
    from limbeck.train.models import model_folder

    warnings.simplefilter("ignore")
    case, names = CASES[objective], facts_of(root)
    given = read_rollouts(rollouts_of(case, root)).rollouts
    clock, losses = Clock(), []

    class Stamp(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.stamp()

    class Trainer(getattr(trl, f"{case.trainer}Trainer")):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            losses.append(loss.detach())
            return loss

        if case.trainer == "DPO":  # its rows are token ids already

            def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
                return dataset

        if case.trainer in ("GRPO", "Distillation"):  # what it would generate is given

            def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
                return {name: tensor.to(self.accelerator.device) for name, tensor in completions.items()}

    completions = padded(given) if case.trainer in ("GRPO", "Distillation") else {}
    cuda = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as out:
        items = len(given) // (2 if case.trainer == "DPO" else 1)
        parts = items if by_row else 1
        config = getattr(trl, f"{case.trainer}Config")(
            output_dir=out, max_steps=steps + 1, learning_rate=RATE, lr_scheduler_type="cosine", warmup_steps=0,
            weight_decay=DECAY, max_grad_norm=CLIP, optim="adamw_torch", use_cpu=not cuda, bf16=precision == "bf16",
            per_device_train_batch_size=items // parts, gradient_accumulation_steps=parts, logging_strategy="no",
            save_strategy="no", report_to=[], disable_tqdm=True,
            **case.settings, **limits(case, given), **(settings or {}),
        )  # fmt: skip
        building = Clock()
        building.stamp()
        trainer = Trainer(
            model=fresh(names["base"], precision), args=config, train_dataset=dataset(case, given),
            processing_class=AutoTokenizer.from_pretrained(model_folder(names["base"])), callbacks=[Stamp()],
            peft_config=LoraConfig(
                r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM"
            ),
            **others(case, names, precision),
        )  # fmt: skip
        building.stamp()
        same_start(trainer.model, root)
        before = touched(trainer.model)
        trainer.train()
    tokens = sum(len(r.prompt_ids) + len(r.response_ids) for r in given)
    whole = [sum(loss.item() for loss in losses[n : n + parts]) for n in range(0, len(losses), parts)]
    if case.trainer != "SFT":  # whose losses are sums over the row, divided by the tokens of all
        whole = [loss / parts for loss in whole]
    facts = {"losses": whole, "tokens": tokens, "loaded_mb": before["now_mb"]}
    facts["built"] = {name: seconds for name, (seconds,) in building.result().items()}
    return memory() | clock.result() | facts


def fresh(name: str, precision: str) -> Any:
    """A base as its own library loads it; in bf16 runs, the frozen weights too."""
    from transformers import AutoModelForCausalLM

    from limbeck.train.models import model_folder

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return AutoModelForCausalLM.from_pretrained(model_folder(name), dtype=dtype)


def others(case: Case, names: dict[str, str], precision: str) -> dict[str, Any]:
    """What one trainer takes and the others do not."""
    if case.trainer == "GRPO":
        return {"reward_funcs": lambda completions, **_: [0.0] * len(completions)}
    return {"teacher_model": fresh(names["teacher"], precision)} if case.trainer == "Distillation" else {}


def limits(case: Case, given: Any) -> dict[str, Any]:
    """No row is cut, and groups are of two."""
    longest = max(len(r.response_ids) for r in given)
    if case.trainer == "GRPO":
        return {"max_completion_length": longest, "num_generations": 2}
    return {"max_completion_length": longest} if case.trainer == "Distillation" else {"max_length": None}


def dataset(case: Case, given: Any) -> Any:
    """Rows of token ids as the trainer's own preparation would leave them."""
    from datasets import Dataset

    if case.trainer == "SFT":
        rows = [
            {
                "input_ids": [*r.prompt_ids, *r.response_ids],
                "labels": [-100] * len(r.prompt_ids) + list(r.response_ids),
            }
            for r in given
        ]
    elif case.trainer == "DPO":
        pairs = zip(given[::2], given[1::2], strict=True)
        rows = [
            {
                "prompt_ids": list(a.prompt_ids),
                "chosen_ids": list(a.response_ids),
                "rejected_ids": list(b.response_ids),
            }
            for a, b in pairs
        ]
    else:
        rows = [{"prompt": "w2 w3"} for _ in given]
    return Dataset.from_list(rows)


def padded(given: Any) -> dict[str, torch.Tensor]:
    """The tensors that generation would have left: prompts padded on the left, completions on the right."""
    prompt, response = (max(len(getattr(r, name)) for r in given) for name in ("prompt_ids", "response_ids"))

    def table(
        rows: list[list[float]], width: int, *, left: bool = False, dtype: torch.dtype = torch.long
    ) -> torch.Tensor:
        fill = [[0] * (width - len(row)) for row in rows]
        return torch.tensor(
            [[*f, *row] if left else [*row, *f] for f, row in zip(fill, rows, strict=True)], dtype=dtype
        )

    from limbeck.rollouts import credit

    rewards = torch.tensor([r.reward for r in given], dtype=torch.float64)
    lengths = [len(r.response_ids) for r in given]
    return {
        "prompt_ids": table([list(r.prompt_ids) for r in given], prompt, left=True),
        "prompt_mask": table([[1] * len(r.prompt_ids) for r in given], prompt, left=True),
        "completion_ids": table([list(r.response_ids) for r in given], response),
        "completion_mask": table([[1] * n for n in lengths], response),
        "advantages": credit.assign("zscore", rewards, [r.problem_id for r in given]).float(),
        "old_per_token_logps": table([list(r.behavior_logprobs) for r in given], response, dtype=torch.float32),
        "num_items_in_batch": torch.tensor(float(sum(lengths))),
    }


@torch.no_grad()
def same_start(model: torch.nn.Module, root: str) -> None:
    """Both sides begin at the adapter that ``prepare`` wrote."""
    from safetensors.torch import load_file

    start = load_file(Path(root) / "start.safetensors")
    own = trainable(model)
    if set(own) != set(start):
        raise SystemExit(f"both sides must train the same tensors, received {sorted(set(own) ^ set(start))[:4]}")
    for name, parameter in own.items():
        parameter.copy_(start[name])


def series(*, jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """Several jobs in this one process; each starts with the device's memory free, and one that fails says why."""
    results = []
    for job in jobs:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            results.append(JOBS[job["job"]](**{name: value for name, value in job.items() if name != "job"}))
        except Exception as error:  # a peer's, or memory's: the other jobs still count
            results.append({"error": f"{type(error).__name__}: {error}"[:300]})
    return {"results": results}


JOBS = {"prepare": prepare, "loaded": loaded, "score": score, "ours": ours, "theirs": theirs, "device": device}

if __name__ == "__main__":
    answer({**JOBS, "series": series})

"""One on-policy run on either side, in a process of its own: limbeck as a user runs it, and TRL's trainers.

Both read one folder that ``prepare`` writes: a base and a teacher whose end token is one that they do not write, so that
every answer has the same length; the same problems; the same initial adapter. A step is prompts, sampling at temperature
1 over the whole vocabulary, grading, update and record; AdamW, LoRA of rank 32 on q, k, v and o. Its parts:
``sample``, from prompts to graded answers; ``score``, what a frozen teacher is asked; ``update``, the rest.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from common import Clock, answer, memory
from onpolicy_reward import by_digest
from sides import (
    ALPHA,
    CLIP,
    DECAY,
    RANK,
    RATE,
    TARGETS,
    facts_of,
    fresh,
    loaded,
    lora,
    random_model,
    same_start,
    touched,
    trainable,
)

NEVER = "<|unk|>"  # the world's models were trained on text without it
WARM_UP = 1


class Case(NamedTuple):
    """One objective on both sides, and how many answers a problem gets."""

    ours: str
    trainer: str
    settings: dict[str, Any]
    samples: int
    teacher: bool


CASES = {
    "grpo": Case("grpo", "GRPO", {"loss_type": "grpo", "epsilon": 0.2, "beta": 0.0}, 8, False),
    "reverse_kl": Case("reverse_kl", "Distillation", {"beta": 1.0}, 1, True),
    "kdrl": Case("kdrl", "", {}, 8, True),
    "trrd": Case("trrd", "", {}, 8, True),
}


# --------------------------------------------------------------------------------------------------------- what is read


def prepare(*, root: str, shape: dict[str, Any]) -> dict[str, Any]:
    """Write base, teacher, problems and the adapter's start."""
    from safetensors.torch import save_file

    from limbeck.train.models import add_adapter, load_model
    from limbeck.worlds.abacus.generator import generate

    folder = Path(root)
    num = shape["rollouts"] * (shape["steps"] + WARM_UP)
    if shape.get("world"):
        base, teacher = (endless(shape["world"], name, folder / name) for name in ("base", "teacher"))
        if shape.get("wider"):
            base, teacher = (wider(base, folder / f"wide-{n}", n) for n in (shape["wider"], 2 * shape["wider"]))
        rows = [{"id": p.id, "prompt": p.prompt, "answer": p.answer} for p, _ in generate("train", num, seed=0)]
    else:
        base, teacher = (random_model(folder / name, shape, seed) for seed, name in enumerate(("base", "teacher")))
        draw = random.Random(0)
        texts = [" ".join(f"w{draw.randrange(2, shape['vocab'])}" for _ in range(shape["prompt"])) for _ in range(num)]
        rows = [{"id": f"p{i:05d}", "prompt": text, "answer": "0"} for i, text in enumerate(texts)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = trainable(add_adapter(load_model(base), lora(), init_seed=0))
    save_file({name: parameter.detach() for name, parameter in start.items()}, folder / "start.safetensors")
    facts = {"base": base, "teacher": teacher, "reward": "" if shape.get("world") else "by_digest"}
    (folder / "facts.json").write_text(json.dumps(facts))
    return facts


def endless(world: str, name: str, out: Path) -> str:
    """A copy of a world's model whose end of answer is a token that it never writes."""
    from limbeck.train.models import load_tokenizer, model_folder

    path = model_folder(f"{world}:{name}")
    tokenizer = load_tokenizer(str(path))
    end, never = str(tokenizer.eos_token), tokenizer.convert_tokens_to_ids(NEVER)
    out.mkdir()
    shutil.copy(path / "model.safetensors", out)
    tokenizer.eos_token = NEVER
    tokenizer.chat_template = str(tokenizer.chat_template).replace(end, NEVER)
    tokenizer.save_pretrained(out)
    for file in ("config.json", "generation_config.json"):
        values = json.loads((path / file).read_text()) | {"eos_token_id": never}
        (out / file).write_text(json.dumps(values))
    return str(out)


def wider(source: str, out: Path, times: int) -> str:
    """A model as many times as wide, so its matrices that times squared as large, with random weights and room."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source, max_position_embeddings=4096)
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        setattr(config, name, times * getattr(config, name))
    shutil.copytree(source, out)
    torch.manual_seed(times)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(out)
    return str(out)


def problems_of(root: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (Path(root) / "problems.jsonl").read_text().splitlines()]


# ----------------------------------------------------------------------------------------------------------------- ours


def ours(*, root: str, objective: str, steps: int, rollouts: int, tokens: int) -> dict[str, Any]:
    """One run of ``limbeck train`` on live rollouts: a warm-up step and ``steps`` timed ones."""
    from limbeck.config import LiveConfig, RunConfig, TrainConfig
    from limbeck.train.run import train as train_run

    case, names = CASES[objective], facts_of(root)
    train = TrainConfig(
        objective=case.ours, learning_rate=RATE, weight_decay=DECAY, max_grad_norm=CLIP, num_steps=steps + WARM_UP,
        warmup_fraction=0.0, checkpoint_every=1000, lora=lora(), precision="fp32",
    )  # fmt: skip
    live = LiveConfig(
        problems=f"{root}/problems.jsonl", teacher=names["teacher"] if case.teacher else None, samples=case.samples,
        prompts_per_step=rollouts // case.samples, max_new_tokens=tokens, reference_every=0,
    )  # fmt: skip
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        run = Path(out) / "run"
        config = RunConfig(base=names["base"], train=train, live=live)
        reward = by_digest if names["reward"] else None
        train_run(config, run, observe=lambda line: clock.stamp(), reward=reward)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = clock.result()["seconds"]
    parts = [{name: line.get(f"seconds_{name}", 0.0) for name in ("sample", "score")} for line in lines[WARM_UP:]]
    return memory() | split(seconds, parts) | {"sampled": [line["tokens_sampled"] for line in lines[WARM_UP:]]}


def hundred(*, objective: str, steps: int) -> dict[str, Any]:
    """The embedded world as it is, from the command's own defaults: 64 rollouts a step, answers that end."""
    from limbeck.config import LiveConfig, RunConfig, TrainConfig
    from limbeck.train.run import train as train_run

    case = CASES[objective]
    train = TrainConfig(objective=case.ours, num_steps=steps)
    live = LiveConfig(
        problems="abacus:train", teacher="abacus:teacher" if case.teacher else None, samples=case.samples,
        prompts_per_step=64 // case.samples, max_new_tokens=96,
    )  # fmt: skip
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        run = Path(out) / "run"
        train_run(RunConfig(base="abacus:base", train=train, live=live), run)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    parts = {name: sum(line.get(f"seconds_{name}", 0.0) for line in lines) for name in ("sample", "score", "update")}
    return memory() | {"seconds": time.perf_counter() - start, "parts": parts, "steps": len(lines)}


def split(seconds: list[float], parts: list[dict[str, float]]) -> dict[str, Any]:
    """Whole steps and their parts; what is neither sampling nor scoring is the update."""
    update = [whole - sum(part.values()) for whole, part in zip(seconds, parts, strict=True)]
    out = {name: [part[name] for part in parts] for name in ("sample", "score")}
    return {"seconds": seconds, **out, "update": update}


# --------------------------------------------------------------------------------------------------------------- theirs


def theirs(
    *, root: str, objective: str, steps: int, rollouts: int, tokens: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """The same steps by TRL's trainer; ``settings`` are its options that differ from its defaults."""
    import trl
    from peft import LoraConfig
    from transformers import AutoTokenizer

    warnings.simplefilter("ignore")
    case, names = CASES[objective], facts_of(root)
    tokenizer = AutoTokenizer.from_pretrained(names["base"])
    stopwatch = Stopwatch()
    groups = {"num_generations": case.samples} if case.trainer == "GRPO" else {}
    with tempfile.TemporaryDirectory() as out:
        config = getattr(trl, f"{case.trainer}Config")(
            output_dir=out, max_steps=steps + WARM_UP, learning_rate=RATE, lr_scheduler_type="cosine", warmup_steps=0,
            weight_decay=DECAY, max_grad_norm=CLIP, optim="adamw_torch", use_cpu=True, bf16=False,
            per_device_train_batch_size=rollouts, logging_strategy="steps", logging_steps=1, save_strategy="no", report_to=[],
            disable_tqdm=True, max_completion_length=tokens, temperature=1.0, top_p=1.0, top_k=0,
            **groups, **case.settings, **settings,
        )  # fmt: skip
        trainer = timed(getattr(trl, f"{case.trainer}Trainer"), stopwatch)(
            model=fresh(names["base"], "fp32"), args=config, train_dataset=dataset(root, tokenizer),
            processing_class=tokenizer, callbacks=[stopwatch.callback()],
            peft_config=LoraConfig(
                r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM"
            ),
            **({"reward_funcs": digested if names["reward"] else right} if case.trainer == "GRPO" else {}),
            **({"teacher_model": fresh(names["teacher"], "fp32")} if case.teacher else {}),
        )  # fmt: skip
        same_start(trainer.model, root)
        before = touched(trainer.model)
        trainer.train()
    same_prompts(root, stopwatch.prompts)
    facts = {"sampled": stopwatch.sampled[WARM_UP:], "loaded_mb": before["now_mb"]}
    return memory() | split(stopwatch.clock.result()["seconds"], stopwatch.parts[WARM_UP:]) | facts


class Stopwatch:
    """Ends of steps, seconds of their parts, tokens sampled and prompts read on TRL's side."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.parts: list[dict[str, float]] = []
        self.sampled: list[int] = []
        self.prompts: set[tuple[int, ...]] = set()
        self._now = {"sample": 0.0, "score": 0.0}

    def add(self, name: str, work: Callable[[], Any]) -> Any:
        """Do the work and count its seconds."""
        start = time.perf_counter()
        out = work()
        self._now[name] += time.perf_counter() - start
        return out

    def callback(self) -> Any:
        from transformers import TrainerCallback

        watch = self

        class Stamp(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                watch.clock.stamp()
                watch.parts.append(watch._now)
                watch._now = {"sample": 0.0, "score": 0.0}

        return Stamp()


def timed(kind: type, watch: Stopwatch) -> type:
    """A trainer that notes what its generation, its grading and its teacher take."""

    class Timed(kind):
        def _tokenize_prompts(self, prompts: list) -> Any:
            out = super()._tokenize_prompts(prompts)
            watch.prompts |= {tuple(ids) for ids in out[0]}
            return out

        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            return watch.add("sample", lambda: super(Timed, self)._generate(*args, **kwargs))

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            out = super()._generate_single_turn(*args, **kwargs)
            watch.sampled.append(sum(map(len, out[0] if isinstance(out, tuple) else out)))
            return out

        def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
            return watch.add("sample", lambda: super(Timed, self)._calculate_rewards(*args, **kwargs))

        def _get_last_hidden_state(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            work = super()._get_last_hidden_state
            if teacher_of(self) is model:
                return watch.add("score", lambda: work(model, *args, **kwargs))
            return work(model, *args, **kwargs)

    return Timed


def digested(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """The reward of random words."""
    from limbeck.types import Problem

    pairs = zip(prompts, completions, strict=True)
    return [by_digest(Problem(id="p", prompt=p, answer="0", source=""), [text])[0] for p, text in pairs]


def teacher_of(trainer: Any) -> Any:
    teacher = getattr(trainer, "teacher_model", None)
    return None if teacher is None else trainer.accelerator.unwrap_model(teacher)


def right(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """1 where limbeck's grader takes the answer for right: both sides grade alike."""
    from limbeck.problems.grading import Outcome, grade_all

    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(grade.outcome == Outcome.CORRECT) for grade in grade_all(texts, answer)]


def dataset(root: str, tokenizer: Any) -> Any:
    """The problems as TRL reads them: turns where there is a chat template, else text."""
    from datasets import Dataset

    def prompt(text: str) -> Any:
        return [{"role": "user", "content": text}] if tokenizer.chat_template else text

    return Dataset.from_list([{"prompt": prompt(row["prompt"]), "answer": row["answer"]} for row in problems_of(root)])


def same_prompts(root: str, seen: set[tuple[int, ...]]) -> None:
    """What TRL read must be among what limbeck reads."""
    from limbeck.problems.prompts import prompt_ids
    from limbeck.train.models import load_tokenizer

    tokenizer = load_tokenizer(facts_of(root)["base"])
    known = {prompt_ids(tokenizer, row["prompt"]) for row in problems_of(root)}
    if not seen or not seen <= known:
        raise SystemExit(f"both sides must read the same prompts, received {len(seen - known)} of {len(seen)} others")


if __name__ == "__main__":
    answer({"prepare": prepare, "loaded": loaded, "ours": ours, "hundred": hundred, "theirs": theirs})

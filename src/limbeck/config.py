"""What a user may set: pydantic models that refuse unknown keys and answer with the nearest match.

TOML by hand, JSON by machine, both read by the same models. A field's docstring gives its meaning, unit and "off".
"""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from limbeck.digests import sound
from limbeck.errors import ConfigError, nearest
from limbeck.types import Normalizer


class Config(BaseModel):
    """Base of every section: frozen, no unknown keys, finite numbers, field docs from docstrings."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class LoraConfig(Config):
    """The adapter that every arm of a study shares."""

    rank: int = Field(default=16, ge=1)
    """Rank of each adapter."""
    alpha: float = Field(default=32.0, gt=0)
    """Numerator of the scale alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of dropping an adapter input; 0 is off. With it, gradients depend on how a step is cut."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Last names of the linear modules that get an adapter."""


LARGEST = 4 << 20  # bytes of a configuration
MANY_DOTS = re.compile(r"(?:[\w-]+[ \t]*\.[ \t]*){32}")
SECRET = re.compile(r"(https?://)[^\s'\"]*[@?][^\s'\"]*")  # a password or a key may stand in such an address
FRAMES_OF_NONE = ("random", "base")  # what a subspace may be of without another run


class SubspaceConfig(Config):
    """Where the update of every hidden matrix may go; for runs that train every weight."""

    of: str = "random"
    """Whose leading directions: those of the update of a run, kept step, adapter or whole model (its path; in a study an arm at
    the same seed, `arm` or `arm@step`), of the weights that the run starts from (`base`), or `random` ones."""
    against: str = ""
    """What that update is counted from; by default the model that its run says it was trained from."""
    k: int = Field(default=16, ge=1)
    """Directions of each matrix; fewer where there are fewer. All of them constrain nothing."""
    side: Literal["right", "left", "both"] = "right"
    """Of the input, of the output, or of both."""
    how: Literal["update", "gradient"] = "update"
    """`update`: what the optimizer did is projected, so the update stays inside, exactly. `gradient`: what it is told is, as
    published, which leaks through Adam and weight decay."""
    complement: bool = False
    """Stay outside of the directions instead of inside."""
    rest: Literal["frozen", "free"] = "frozen"
    """Embeddings, head, norms and biases, which no subspace constrains."""
    seed: int = 0
    """Of random directions, together with the run's own."""


class SparsifyConfig(Config):
    """Some tokens of each rollout for all of them: weight T / n on the n that are kept, 0 on the rest."""

    rule: Literal["random", "top", "top_abs", "bottom"] = "random"
    """Which: any, or those with the largest, the largest absolute or the smallest log-ratio of student over teacher, as the
    student is now. `random` alone is unbiased."""
    share: float = Field(default=0.5, gt=0, le=1)
    """How many: n = max(1, ceil(share * T)) of T scored tokens, rollout by rollout."""


class TrainConfig(Config):
    """One run: an objective, the rows it sees, and how the optimizer walks."""

    objective: str = "sft"
    """A name from `limbeck objectives`."""
    knobs: dict[str, float | int | str | bool] = Field(default_factory=dict)
    """The objective's own settings; `limbeck objectives NAME` lists them."""
    selection: Literal["all", "correct", "distinct", "paired"] = "all"
    """Which rollouts are trained on: all, the right ones (RFT), those without duplicates, or those that `pairs` pairs, so that an
    objective of rows sees what one of pairs does."""
    right_share: float | None = Field(default=None, ge=0, le=1)
    """Take one rollout of each problem that has right and wrong ones: a right one of this share of the problems, a wrong one of
    the others; `selection` then chooses among these. The problems are the same at every share. Off by default."""
    pairs: Literal["one_per_group", "zip", "all", "length_matched"] = "one_per_group"
    """How right and wrong rollouts of one problem become pairs; read by pair objectives and by `selection = "paired"`."""
    max_items: int | None = Field(default=None, ge=1)
    """Keep this many rows (or pairs), chosen by a hash of data_seed and their names; off by default."""
    rewards: Literal["graded", "mirror", "shuffled"] = "graded"
    """What the run takes for rewards: as graded; 1 - r, which trains an unlearned twin; permuted within each problem, a null."""
    credit: str | None = None
    """Advantage rule; by default the one that the objective was published with."""
    normalizer: Normalizer | None = None
    """Divisor of the summed values; by default the one that the objective was published with."""
    method: Literal["lora", "full"] = "lora"
    """What is trained: a low-rank adapter on a frozen base, or every weight."""
    optimizer: Literal["adamw", "sgd", "muon", "adafactor"] = "adamw"
    """From torch. muon takes the hidden matrices; embeddings, head, norms and biases go to AdamW beside it."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """How the rate goes on after its warm-up, from transformers; wsd stays and falls at the end."""
    learning_rate: float = Field(default=1e-3, gt=0, le=1e9)
    """Peak rate. muon's is scaled to the size of AdamW's updates, so that one rate suits both."""
    batch_size: int = Field(default=32, ge=1)
    """Items (rows or pairs) an optimizer step."""
    num_steps: int = Field(default=100, ge=1)
    """Optimizer steps."""
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps over which the rate rises."""
    decay_fraction: float = Field(default=0.2, gt=0, le=1)
    """Share of the steps over which wsd falls."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Pull towards zero of what is trained: decoupled, but for sgd, where it is added to the gradient."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of sgd and muon."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""
    stop_norm: float | None = Field(default=None, gt=0)
    """Stop at the first step whose update has this Frobenius norm; off by default."""
    kl_budget: float | None = Field(default=None, gt=0)
    """Trust region: measured after every step, the KL(student||reference) in nats a token may not pass this; the step that
    would is taken back and ends the run. Off by default."""
    kl_every: int = Field(default=0, ge=0)
    """Steps between measurements of that KL for the record, where there is no budget; 0 is off."""
    kl_rows: int = Field(default=64, ge=1)
    """Rollouts that it is measured on, chosen by a hash of data_seed and their names."""
    keep: tuple[int, ...] = ()
    """Steps after which the result so far is kept beside the run's own, each a checkpoint like any other; off by default."""
    trajectory: int = Field(default=0, ge=0)
    """Snapshots of the update's leading directions along the run, equally spaced, the last step among them; 0 is off."""
    trajectory_k: int = Field(default=32, ge=1, le=32)
    """Leading directions of a snapshot, of full-parameter runs; of adapters the whole factors are kept."""
    token_budget: int | None = Field(default=None, ge=1)
    """Padded tokens a micro-batch; changes speed and memory, never the gradient. By default as many as keep a quarter of a GPU's
    memory until backward, at most 32768; on a CPU as many as keep 256 MiB, at most 8192."""
    packing: bool = False
    """Put the rows of a micro-batch one after another in one, without padding; refused where attention cannot keep them apart."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input and run the layer again in backward: less memory, about a third more time."""
    liger: bool = False
    """Compute norms and MLPs of the student by Liger's fused kernels (`pip install 'limbeck[liger]'`); CUDA devices alone."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the products in forward and backward; what is trained is kept in fp32 always. auto: bf16 on a GPU that has it."""
    save_visible: bool = True
    """Save, beside the fp32 result, the trained matrices as bf16 would store them; two bytes a weight."""
    max_length: int | None = Field(default=None, ge=2)
    """Longest row in tokens; longer ones are dropped and counted. By default the model's context."""
    seed: int = 0
    """Order of the data, and dropout where it is on: what a second seed changes."""
    data_seed: int = 0
    """Which pairs are made and which rows `max_items` keeps; the same for all seeds of an arm."""
    init_seed: int = 0
    """Initial factors of an adapter; arms that share it start at the same point."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Steps between resumable checkpoints."""
    tracker: str | None = None
    """Also send metrics.jsonl to one of accelerate's trackers (tensorboard, wandb, ...); it cannot hold up a run. Off by
    default."""
    lora: LoraConfig = LoraConfig()
    """Of the adapter, where one is trained."""
    subspace: SubspaceConfig | None = None
    """Keep the update inside a subspace; off by default."""
    sparsify: SparsifyConfig | None = None
    """Train on some tokens of each rollout, rescaled; for objectives of one value a token. Off by default."""

    @property
    def pass_tokens(self) -> int:
        """Padded tokens of one forward pass: ``token_budget``, where that is not set 8192."""
        return self.token_budget or 8192


class StageConfig(Config):
    """One objective of several that follow each other in a live run; what is trained and its optimizer go on."""

    objective: str
    """A name from `limbeck objectives`."""
    knobs: dict[str, float | int | str | bool] = Field(default_factory=dict)
    """The objective's own settings."""
    credit: str | None = None
    """Advantage rule; by default the one that the objective was published with."""
    until: int | None = Field(default=None, ge=1)
    """The last step that follows it; off for the last stage, which lasts to the end of the run."""


class LiveConfig(Config):
    """On-policy: at every step the student answers problems, and what it wrote is what it is trained on."""

    problems: str
    """Where prompts come from: a JSONL or Parquet file, or a world's split such as `abacus:train`."""
    format: Literal["jsonl", "gsm8k", "math", "aime", "amc"] = "jsonl"
    """Field names of the file."""
    num_problems: int | None = Field(default=None, ge=1)
    """Use the first so many; all by default (a world: 1000)."""
    problems_seed: int = 0
    """Of a world's generator."""
    teacher: str | None = None
    """A local Hugging Face folder, or `abacus:teacher`; off by default, and loaded only where an objective reads it."""
    prompts_per_step: int = Field(default=8, ge=1)
    """Problems a step."""
    samples: int = Field(default=8, ge=1)
    """Rollouts a problem: the group that credit is assigned in."""
    sampling_temperature: float = Field(default=1.0, gt=0)
    """Divides the logits while sampling; objectives with an importance ratio need 1."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest response in tokens, and the length of the `constant` normalizer."""
    sampling_batch: int = Field(default=512, ge=1)
    """Rows decoded at a time; changes speed and memory, never what is sampled."""
    inner_epochs: int = Field(default=1, ge=1)
    """Passes over the rollouts of a step; from the second on they are no longer the student's own."""
    minibatches: int = Field(default=1, ge=1)
    """Optimizer steps that one pass is cut into; batch_size is not read in a live run."""
    dynamic_sampling: int | None = Field(default=None, ge=1)
    """Keep only groups with signal and draw again until prompts_per_step have it, at most so many times; off by default."""
    student_fraction: float = Field(default=1.0, ge=0, le=1)
    """Share of the prompts that the student answers; the others come, answers included, from the run's `rollouts`."""
    stages: tuple[StageConfig, ...] = ()
    """Objectives one after another, in place of train.objective, train.knobs and train.credit; off by default."""
    reference_every: int = Field(default=10, ge=0)
    """Steps between measurements of the KL to the base, the last step among them, where the objective does not need its
    scores; 0 is off."""
    reward_seconds: float = Field(default=10.0, gt=0)
    """For one call of a reward function of your own, from outside; the grader has its own limit."""
    reward_failures: float = Field(default=0.5, ge=0, lt=1)
    """Stop once more than this share of all groups so far got no reward because the reward function failed."""
    writer: Literal["student", "teacher"] = "student"
    """Who answers; the teacher's answers are trained on and graded like the student's."""
    staleness: int = Field(default=0, ge=0)
    """The student answers as it was so many steps ago, or at the start; 0 is off. So many copies of what is trained are kept."""
    importance: bool | None = None
    """Whether `old_logprobs` are the writer's, so that objectives weight by student over writer, or the student's as it is when
    the step begins, so that they do not. By default the writer's where the student writes, the student's where the teacher
    does."""

    @property
    def fresh(self) -> bool:
        """Whether the student writes its rollouts as it is when the step begins."""
        return self.writer == "student" and not self.staleness

    @property
    def weighs(self) -> bool:
        """Whether objectives weight by student over writer."""
        return self.writer == "student" if self.importance is None else self.importance


class RunConfig(Config):
    """Everything that `limbeck train` needs; a run folder's `config.json` is one."""

    base: str
    """The student: a local Hugging Face folder, or a world's model such as `abacus:base`."""
    rollouts: str = ""
    """A rollouts folder; a live run needs none."""
    scores: dict[str, str] = Field(default_factory=dict)
    """Per-token input (`reference_logprobs`, `teacher_logprobs`) to its scores folder."""
    anchor: str = ""
    """The model that reference scores and the KL budget are taken against; the base by default."""
    train: TrainConfig = TrainConfig()
    """Objective, optimizer and sizes."""
    live: LiveConfig | None = None
    """On-policy: the student answers problems as it goes; off by default."""


C = TypeVar("C", bound=Config)

# Settings that came after runs and studies had identities: while they are off, nothing knows of them.
LATER = {
    "train": {"subspace": None, "sparsify": None, "trajectory": 0, "trajectory_k": 32, "right_share": None},
    "live": {"writer": "student", "staleness": 0, "importance": None},
}


def settings_of(config: Config, section: Literal["train", "live"]) -> dict[str, Any]:
    """A section as JSON for an identity, without later settings that are off: an older result stays the same result.

    >>> sorted(set(TrainConfig.model_fields) - set(settings_of(TrainConfig(), "train")))
    ['right_share', 'sparsify', 'subspace', 'trajectory', 'trajectory_k']
    """
    values = config.model_dump(mode="json")
    return {name: value for name, value in values.items() if LATER[section].get(name, ...) != value}


def parse(model: type[C], values: Mapping[str, Any], *, where: str) -> C:
    """Validate one section.

    Raises:
        ConfigError: one sentence per fault, the first three.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(" ".join(_sentence(model, fault, where) for fault in error.errors()[:3])) from error


def load(path: Path) -> dict[str, Any]:
    """A TOML or JSON file as a dictionary.

    Raises:
        ConfigError: no such file, text that is neither, or a file that is not a table of keys.
    """
    if not path.is_file():
        raise ConfigError(f"a config must be an existing TOML or JSON file, received {path}. Check the path.")
    if path.stat().st_size > LARGEST:
        raise ConfigError(f"{path} must have at most {LARGEST >> 20} MiB, received more. Is this a study's file?")
    sound(path)
    try:
        text = path.read_text(encoding="utf-8")
        if MANY_DOTS.search(text):
            raise ValueError("a dotted key of more than 32 parts")  # for which tomllib takes the square of their number
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        _check_numbers(values)
    except (ValueError, RecursionError) as error:  # not UTF-8, not the language, or nested by the thousand
        raise ConfigError(
            f"{path} must be {path.suffix.lstrip('.').upper() or 'TOML'}: {error}. Fix that line."
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a table of keys, received {values!s:.40}. Put it in braces, under keys.")
    return values


def _check_numbers(value: Any) -> None:
    """Refuse integers that no machine counts with, as TOML does on paper."""
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_numbers(item)
    if isinstance(value, int) and value.bit_length() > 63:
        raise ValueError("a number beyond 64 bits")


def override(values: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Apply ``a.b=c`` settings; values are read as TOML where they parse, else as text.

    >>> override({"train": {"seed": 0}}, ["train.seed=3", "train.objective=dpo"])
    {'train': {'seed': 3, 'objective': 'dpo'}}

    Raises:
        ConfigError: a setting of another form, or a key that leads through a plain value or past a list's end.
    """
    out = copy.deepcopy(values)
    for setting in settings:
        key, sign, text = setting.partition("=")
        *parents, last = key.split(".")
        if not sign or not all((*parents, last)):
            raise ConfigError(f"--set must look like section.key=value, received {setting!r}. Write it so.")
        node: Any = out
        for depth, parent in enumerate(parents):
            slot: Any = _slot(node, parents[:depth], parent, setting)
            node = node[slot] if isinstance(node, list) else node.setdefault(slot, {})
        node[_slot(node, parents, last, setting)] = _value(text)
    return out


def _slot(node: Any, above: Sequence[str], part: str, setting: str) -> str | int:
    """The key or index by which ``part`` is reached in what stands at ``above``."""
    if isinstance(node, dict):
        return part
    name = ".".join(above)
    if not isinstance(node, list):
        raise ConfigError(f"--set {setting}: {name} must be a section, received {node!r:.40}. Set {name} itself.")
    if part not in map(str, range(len(node))):
        raise ConfigError(
            f"--set {setting}: after {name} must come the place of one of its {len(node)} entries, counted from 0, "
            f'received "{part}". Write {name}.0 for the first, or add entries in the file.'
        )
    return int(part)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _sentence(model: type[BaseModel], fault: Any, where: str) -> str:
    path = [str(part) for part in fault["loc"]]
    section = ".".join([where, *path[:-1]])
    if fault["type"] == "extra_forbidden":
        return f'[{section}] has no key "{path[-1]}". {nearest(path[-1], _keys(model, path[:-1]))}'
    name = ".".join([where, *path])
    received = SECRET.sub(r"\1...", repr(fault["input"]))
    return f"{name}: {fault['msg'][0].lower()}{fault['msg'][1:]}, received {received:.80}."


def _keys(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        kind = model.model_fields[part].annotation if part in model.model_fields else None
        arguments = [kind, *getattr(kind, "__args__", ())]
        inner = [k for k in arguments if isinstance(k, type) and issubclass(k, BaseModel)]
        model = inner[0] if inner else model
    return list(model.model_fields)

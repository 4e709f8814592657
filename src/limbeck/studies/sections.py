"""What the sections of a study's file say of problems, rollouts, answers and what is measured; the arms have :mod:`.config`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from limbeck.config import Config
from limbeck.rollouts.server import Server

Scalar = bool | int | float | str


class ProblemsConfig(Config):
    """Where problems come from: a world's generator or a file."""

    world: Literal["abacus"] | None = None
    """An embedded world; excludes `path`."""
    split: Literal["train", "validation", "test"] = "test"
    """Which split of the world."""
    path: str | None = None
    """A JSONL, Parquet or Arrow file, or a data set's folder; `folder:split` where it has several splits."""
    format: Literal["jsonl", "gsm8k", "math", "aime", "amc"] = "jsonl"
    """Field names: `prompt`, `answer` (and `id`, `solution`), or those of GSM8K, MATH, AIME or AMC."""
    fields: dict[Literal["prompt", "answer", "id", "solution"], str] = Field(default_factory=dict)
    """Other field names, ours to the file's, in place of a format: `{ prompt = "question", answer = "gold" }`."""
    num: int | None = Field(default=None, ge=1)
    """Use the first so many; all by default."""
    seed: int = 0
    """Of the world's generator."""
    template: str = ""
    """How a problem is asked, `{problem}` in it: `"{problem}\\nPut the answer into \\\\boxed{}."`; as it stands by default."""


class ServerConfig(Config):
    """A model behind one OpenAI-compatible server or several, and how it is asked for rollouts."""

    urls: tuple[str, ...] = Field(min_length=1)
    """Addresses, `http(s)://host[:port][/path]` each; they share the work. In no digest: a server may come back elsewhere."""
    model: str = Field(min_length=1)
    """The name that it is served by, at every address."""
    api: Literal["auto", "ids", "transformers", "text", "chat"] = "auto"
    """The way of asking; `auto` stays with the first that is taken, the most exact first."""
    concurrency: int = Field(default=32, ge=1)
    """Requests under way at once, over all addresses. In no digest."""
    timeout_seconds: float = Field(default=600.0, gt=0)
    """For one attempt at one answer. In no digest."""
    patience_seconds: float = Field(default=600.0, ge=0)
    """How long what fails is repeated before the study ends, to be gone on with by the same command. In no digest."""
    tempered_logprobs: bool = False
    """The server's log-probs are those after division by the sampling temperature."""
    require_logprobs: bool = False
    """Refuse answers without sampled ids and a log-prob for each."""

    def opened(self, api_key: str = "") -> Server:
        """What is asked.

        Raises:
            ConfigError: an address that is none, or holds a password or a query; those are not repeated.
        """
        return Server(**self.model_dump(), api_key=api_key)


class RolloutsConfig(Config):
    """Where rollouts come from: sampled from the teacher, written by a server, or read from a file or folder."""

    path: str | None = None
    """A JSONL or Parquet file, or a rollouts folder; excludes sampling."""
    by: str = "teacher"
    """Who writes them: `teacher`, `student`, or, in an arm's own rollouts, an arm at the same seed (`arm` or `arm@step`)."""
    server: ServerConfig | None = None
    """Who answers, in place of a model on disk; the student's tokenizer applies. Excludes `path` and `by`. Off by default."""
    problems: ProblemsConfig = ProblemsConfig()
    """What is asked."""
    samples: int = Field(default=4, ge=1)
    """Rollouts a problem."""
    sampling_temperature: float = Field(default=1.0, gt=0)
    """Of who writes them."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest rollout in tokens."""
    batch_size: int = Field(default=256, ge=1)
    """Rows decoded at a time; a server has its own."""
    seed: int = 0
    """Of the sampling."""


class MergeConfig(Config):
    """Adapters of other arms added up, in place of training: their updates, each times its weight."""

    arms: tuple[str, ...] = Field(min_length=1)
    """Arms at the same seed, or what they had at a step that they keep: `arm` or `arm@step`."""
    weights: Literal["sum", "mean"] | tuple[float, ...] = "sum"
    """Of each update: 1 (`sum`), 1 over their number (`mean`), or one number an arm. One arm with the weight 2 is its own update
    at twice the length, which is what a sum is to be held against."""

    @property
    def factors(self) -> list[float]:
        """One weight an arm."""
        named = {"sum": 1.0, "mean": 1 / len(self.arms)}
        return [named[self.weights]] * len(self.arms) if isinstance(self.weights, str) else list(self.weights)


class EvalConfig(Config):
    """What every checkpoint answers."""

    problems: ProblemsConfig = ProblemsConfig()
    """What is asked, held out from training."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer in tokens."""
    batch_size: int = Field(default=256, ge=1)
    """Rows decoded at a time."""
    samples: int = Field(default=1, ge=1)
    """Answers a problem; more than one for pass@k, with a sampling temperature above 0."""
    sampling_temperature: float = Field(default=0.0, ge=0)
    """0 is greedy."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Family-wise level of the paired tests, by Holm."""


class PathsConfig(Config):
    """Linear mode connectivity."""

    pairs: tuple[tuple[str, str], ...] = ()
    """Arm names; `base` stands for the untouched base. First seed of each; `arm@seed` names another."""
    seeds: Literal["first", "all"] = "first"
    """Whether a pair that names no seed is walked between first seeds, or once at every seed that both arms have."""
    alphas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Points of each path: 0 is its first end, 1 its second."""
    problems: int = Field(default=200, ge=1)
    """Items for the losses, from the evaluation set."""
    accuracy: bool = True
    """Also generate at every point."""
    answer_prefix: str = "#### "
    """What stands before the answer in a bare answer and in reference solutions."""


class GeometryConfig(Config):
    """Weight-space tables and representations."""

    ks: tuple[int, ...] = (1, 10)
    """Leading directions for principal angles."""
    draws: int = Field(default=200, ge=20)
    """Draws of each simulated null."""
    seeds: Literal["all", "first"] = "all"
    """Whose updates are measured: every run's, or one of each arm, where pairs of all would take longer than the study."""
    pairs: Literal["all", "near"] = "all"
    """Which runs are compared: all, or seeds of one arm, methods of one seed, and each run with the reference arm's."""
    cka_problems: int = Field(default=200, ge=0)
    """Problems whose solutions all arms read for CKA; 0 is off."""


class KLConfig(Config):
    """How far every result is from the student, on what it writes itself at temperature 1 to problems held out."""

    problems: ProblemsConfig = ProblemsConfig(split="validation", num=200)
    """What is asked."""
    samples: int = Field(default=2, ge=1)
    """Answers a problem."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer in tokens."""
    batch_size: int = Field(default=256, ge=1)
    """Rows decoded at a time."""
    seed: int = 0
    """Of the sampling."""
    drift_rollouts: int = Field(default=256, ge=1)
    """Of an arm's own rollouts, how many its drift is measured on."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Arms whose most accurate places are held against each other: accuracy, and by what factor their KL differs."""


StepKind = Literal[
    "rollouts", "served", "score", "train", "tune", "eval", "compare", "measure", "weights", "trajectory", "path", "cka",
    "merge", "signal", "kl", "combine", "rate", "factorial",
]  # fmt: skip


class StepResources(Config):
    """What steps of one kind take, where it is not what all take."""

    cpus: float | None = Field(default=None, gt=0)
    """As in [resources]."""
    gpus: float | None = Field(default=None, ge=0)
    """As in [resources]."""
    memory_gb: float | None = Field(default=None, gt=0)
    """As in [resources]."""


class ResourcesConfig(Config):
    """What a step takes of a Ray cluster (`study run --on`); no result depends on it but for the threads, and no digest."""

    cpus: float = Field(default=1.0, gt=0)
    """Cores of a step, and its threads. Sums differ in their last bits with another number of threads; 1 is what steps
    side by side have elsewhere."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs of a step; below 1 several steps share one. By default 1 for what runs a model where the cluster has GPUs, else 0."""
    memory_gb: float | None = Field(default=None, gt=0)
    """Memory that a step reserves, in GB; by default it is not counted."""
    retries: int = Field(default=3, ge=0)
    """How often a step is started again whose worker was killed or lost."""
    kinds: dict[StepKind, StepResources] = Field(default_factory=dict)
    """Steps of these kinds take something else: `kinds.train = { gpus = 1 }`; `limbeck study plan` lists the kinds."""

    def of(self, kind: str) -> StepResources:
        """What a step of a kind takes."""
        own = next((values for name, values in self.kinds.items() if name == kind), StepResources())
        shared = {"cpus": self.cpus, "gpus": self.gpus, "memory_gb": self.memory_gb}
        return StepResources.model_validate(shared | own.model_dump(exclude_none=True))

"""What a study is: one rollout set, arms that differ in what they do with it, seeds, and what is measured after.

One TOML file holds it; the packaged ones lie beside this module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from limbeck.addresses import is_url
from limbeck.batches.signal import SignalConfig
from limbeck.config import FRAMES_OF_NONE, Config, LiveConfig, SubspaceConfig, TrainConfig, load, override, parse
from limbeck.errors import ConfigError, nearest
from limbeck.storage import fetch

PACKAGED = Path(__file__).parent
WRITERS = ("teacher", "student")  # of rollouts, beside arms


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


class RolloutsConfig(Config):
    """Where rollouts come from: sampled from the teacher, or read from a file or folder."""

    path: str | None = None
    """A JSONL or Parquet file, or a rollouts folder; excludes sampling."""
    by: str = "teacher"
    """Who writes them: `teacher`, `student`, or, in an arm's own rollouts, an arm at the same seed (`arm` or `arm@step`)."""
    problems: ProblemsConfig = ProblemsConfig()
    """What is asked."""
    samples: int = Field(default=4, ge=1)
    """Rollouts a problem."""
    sampling_temperature: float = Field(default=1.0, gt=0)
    """Of who writes them."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest rollout in tokens."""
    batch_size: int = Field(default=256, ge=1)
    """Rows decoded at a time."""
    seed: int = 0
    """Of the sampling."""


class ArmSignal(SignalConfig):
    """The token signal of an arm, read out of other arms at the same seed; none of them is asked twice."""

    teachers: tuple[str, ...] = Field(min_length=1)
    """Arms that have learned something, or what they had at a step that they keep: `arm` or `arm@step`."""
    contrast: str | None = None
    """An unlearned arm to hold them against, at the same step; by default what the arm is anchored to."""
    require_worse: bool = True
    """Stop where the contrast answers no fewer problems than what it started from: it has not unlearned."""


class ArmConfig(Config):
    """One method with its settings; runs once per seed."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")
    """A name of its own; `base` and `teacher` are taken."""
    label: str = ""
    """For figures; the name by default."""
    role: Literal["method", "control", "null"] = "method"
    """A method is compared; a control isolates one cause; a null shows what chance or a seed does."""
    note: str = ""
    """Why this arm is here."""
    seeds: tuple[int, ...] | None = None
    """Overrides the study's seeds."""
    init_seed: int | None = None
    """Overrides the study's shared initial factors; only a null wants that."""
    match_norm: str | None = None
    """Stop at the update norm of this arm (same seed); num_steps is the limit."""
    match_items: str | None = None
    """Use only as many rows as this arm used (a pair is two rows)."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the study's [train]."""
    live: dict[str, Any] | None = None
    """Makes this a live arm, with overrides of the study's [live]; `{}` takes that as it is. Off: trained on the rollouts."""
    start: str | None = None
    """An arm whose result (or `arm@step`) this one starts from, merged into its base; by default the student."""
    anchor: Literal["round_start", "original"] = "round_start"
    """Which of the two reference scores and the KL budget are taken against, where `start` makes them differ."""
    rollouts: dict[str, Any] | None = None
    """Rollouts of its own, as overrides of the study's [rollouts]; arms that say the same share them. Off by default."""
    signal: ArmSignal | None = None
    """Where the token signal comes from, for the objectives that read one."""
    teacher: str | None = None
    """An arm that teaches a live arm, in place of the study's teacher."""
    subspace: SubspaceConfig | None = None
    """Keep the update inside a subspace; `of` names an arm at the same seed (`arm` or `arm@step`), whose update is counted from
    what that arm started from, or is `base` or `random`. Off by default."""
    tune: dict[str, tuple[float, ...]] = Field(default_factory=dict, max_length=1)
    """One of the objective's knobs and its grid: each value is trained at the first seed, and the one whose run answers
    most of the [tuning] problems is taken at every seed. Off by default."""


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
    "rollouts", "score", "train", "tune", "eval", "compare", "measure", "weights", "trajectory", "path", "cka", "merge",
    "signal", "kl",
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


class StudyConfig(Config):
    """A comparison: arms x seeds over one rollout set."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Of the study; for the report."""
    question: str
    """What the study is to answer; the report opens with it."""
    student: str
    """A local Hugging Face folder, or `abacus:base`."""
    teacher: str | None = None
    """Samples the rollouts unless `rollouts.path` is given; evaluated beside the arms."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Of every arm that names none of its own: the order of its data."""
    init_seed: int = 0
    """Initial adapter factors that all arms share."""
    workers: int = Field(default=0, ge=0)
    """Steps run at a time, one thread each; 0 takes the machine's cores for small students and 1 for others."""
    resources: ResourcesConfig = ResourcesConfig()
    """What a step takes of a Ray cluster; nothing else reads it."""
    reference_arm: str = ""
    """The arm that others are compared with in sentences; the first by default."""
    rollouts: RolloutsConfig = RolloutsConfig()
    """What the arms learn from, unless they say otherwise."""
    train: TrainConfig = TrainConfig()
    """What all arms share of training; an arm's own `train` goes over it."""
    live: dict[str, Any] = Field(default_factory=dict)
    """What live arms share, as in a run's [live]; the teacher is the study's."""
    tuning: ProblemsConfig = ProblemsConfig(split="validation", num=500)
    """What an arm's knob is chosen on; never the evaluation's problems."""
    arms: tuple[ArmConfig, ...] = Field(min_length=1)
    """What is compared; a run for each arm and seed."""
    eval: EvalConfig = EvalConfig()
    """What every result is asked."""
    geometry: GeometryConfig = GeometryConfig()
    """What is measured of the updates."""
    paths: PathsConfig = PathsConfig()
    """Straight lines between results; none by default."""
    kl: KLConfig | None = None
    """Measure the KL of every result and of every kept step; off by default."""

    def arm(self, name: str) -> ArmConfig:
        return {arm.name: arm for arm in self.arms}[name]

    def seeds_of(self, arm: ArmConfig) -> tuple[int, ...]:
        return arm.seeds or self.seeds

    def measured_seeds(self, arm: ArmConfig) -> tuple[int, ...]:
        """Seeds of an arm whose updates the geometry reads."""
        return self.seeds_of(arm)[: 1 if self.geometry.seeds == "first" else None]

    def training(self, arm: ArmConfig, seed: int) -> TrainConfig:
        """The arm's settings in full."""
        init_seed = self.init_seed if arm.init_seed is None else arm.init_seed
        values = {**self.train.model_dump(), **arm.train, "seed": seed, "init_seed": init_seed}
        if isinstance(arm.train.get("lora"), dict):
            values["lora"] = {**self.train.lora.model_dump(), **arm.train["lora"]}
        if arm.subspace:
            values["subspace"] = arm.subspace.model_dump()
        return parse(TrainConfig, values, where=f"arms.{arm.name}.train")

    def sampling(self, arm: ArmConfig) -> RolloutsConfig:
        """The rollouts section of an arm in full."""
        given = {**self.rollouts.model_dump(), **(arm.rollouts or {})}
        if arm.rollouts and isinstance(arm.rollouts.get("problems"), dict):
            given["problems"] = {**self.rollouts.problems.model_dump(), **arm.rollouts["problems"]}
        return parse(RolloutsConfig, given, where=f"arms.{arm.name}.rollouts")

    def living(self, arm: ArmConfig) -> LiveConfig | None:
        """The live section of an arm in full; None for one that trains on the rollouts."""
        if arm.live is None:
            return None
        values = {"teacher": self.teacher, **self.live, **arm.live}
        return parse(LiveConfig, values, where=f"arms.{arm.name}.live")


def packaged() -> dict[str, Path]:
    """The studies that come with limbeck, by name."""
    return {path.stem: path for path in sorted(PACKAGED.glob("*.toml"))}


def load_study(name: str, settings: tuple[str, ...] = ()) -> StudyConfig:
    """A packaged study by name, or a TOML or JSON file; relative paths in a file are relative to it.

    Raises:
        ConfigError: no such study, an unknown key, or arms that refer to what is not there.
    """
    path = Path(name)
    if name in packaged():
        path = packaged()[name]
    elif not path.suffix:
        raise ConfigError(f'there is no packaged study "{name}" and no file of that name. {nearest(name, packaged())}')
    values = override(load(path), settings)
    values = _anchored(values, Path() if name in packaged() else path.resolve().parent)
    config = parse(StudyConfig, values, where="study")
    _check(config)
    return config


def _anchored(values: dict[str, Any], root: Path) -> dict[str, Any]:
    """Paths that exist beside the file become absolute, URLs the copies of their folders; anything else stays as given."""

    def anchor(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: anchor(k, v) for k, v in value.items()}
        if key in ("student", "teacher", "path") and isinstance(value, str):
            if is_url(value):
                return str(fetch(value))
            name = value.rpartition(":")[0] if key == "path" and not (root / value).exists() else value
            return str(root / value) if name and (root / name).exists() else value
        return value

    return anchor("", values)


def arms_read(config: StudyConfig, arm: ArmConfig) -> list[tuple[str, str]]:
    """Where an arm names another, and which: `arm`, or `arm@step` for a step that it keeps."""
    writer = config.sampling(arm).by if arm.rollouts else ""
    found = [
        (f"arms.{arm.name}.start", arm.start),
        (f"arms.{arm.name}.teacher", arm.teacher),
        (f"arms.{arm.name}.subspace.of", subspace_arm(arm)),
        (f"arms.{arm.name}.match_norm", arm.match_norm),
        (f"arms.{arm.name}.match_items", arm.match_items),
        (f"arms.{arm.name}.rollouts.by", writer if writer not in WRITERS else None),
    ]
    if arm.signal:
        found += [(f"arms.{arm.name}.signal.teachers", name) for name in arm.signal.teachers]
        found += [(f"arms.{arm.name}.signal.contrast", arm.signal.contrast)]
    return [(where, name) for where, name in found if name]


def subspace_arm(arm: ArmConfig) -> str | None:
    """The arm, or what it keeps, whose update gives this one its directions."""
    return arm.subspace.of if arm.subspace and arm.subspace.of not in FRAMES_OF_NONE else None


def split_step(name: str) -> tuple[str, int | None]:
    """An arm and the step that it keeps, if one is named.

    Raises:
        ConfigError: what follows the sign is no step.

    >>> split_step("extreme@64"), split_step("extreme")
    (('extreme', 64), ('extreme', None))
    """
    arm, sign, step = name.partition("@")
    if sign and not step.isdecimal():
        raise ConfigError(f'a kept step is written arm@step with a whole number, received "{name}". Write it so.')
    return arm, int(step) if sign else None


def _check_chain(config: StudyConfig, arm: ArmConfig) -> None:
    """Refuse references to steps that nobody keeps, and a signal that nothing reads."""
    for where, name in arms_read(config, arm):
        other, step = split_step(name)
        kept = config.training(config.arm(other), 0).keep
        if step is not None and step not in kept:
            raise ConfigError(
                f"{where} must name a step that the arm keeps, received {name}, which keeps "
                f"{', '.join(map(str, kept)) or 'none'}. Add it to that arm's train.keep."
            )
    if arm.signal and arm.signal.contrast:
        twin = config.training(config.arm(arm.signal.contrast), 0)
        lacking = [
            n for n in arm.signal.teachers if (split_step(n)[1] or twin.num_steps) not in (*twin.keep, twin.num_steps)
        ]
        if lacking:
            raise ConfigError(
                f"arms.{arm.name}.signal.contrast must keep the step of every teacher, received {lacking[0]} and "
                f'"{arm.signal.contrast}" without that step. Give both arms the same train.keep.'
            )
    if arm.teacher and arm.live is None:
        raise ConfigError(
            f'arms.{arm.name}.teacher is read by live arms alone, received "{arm.teacher}". Add live = {{}}.'
        )


def _overlap(one: ProblemsConfig, other: ProblemsConfig) -> bool:
    """Whether two sections name one source; the splits of a world have nothing in common, whatever their seeds."""
    if one.path or other.path:
        return one.path == other.path
    return (one.world, one.split) == (other.world, other.split)


def _check(config: StudyConfig) -> None:
    names = [arm.name for arm in config.arms]
    if len(set(names)) != len(names) or {"base", "teacher"} & set(names):
        raise ConfigError(
            f'arms need names of their own, and "base" and "teacher" are taken, received {", ".join(names)}.'
        )
    referred = [(where, split_step(name)[0]) for arm in config.arms for where, name in arms_read(config, arm)]
    referred += [("paths.pairs", end.partition("@")[0]) for pair in config.paths.pairs for end in pair if end != "base"]
    referred += [("kl.pairs", end) for pair in (config.kl.pairs if config.kl else ()) for end in pair]
    referred += [("reference_arm", config.reference_arm)] if config.reference_arm else []
    for where, name in referred:
        if name not in names:
            raise ConfigError(f'{where} must name an arm, received "{name}". {nearest(name, names)}')
    for end in (end for pair in config.paths.pairs for end in pair if "@" in end):
        name, _, seed = end.partition("@")
        seeds = config.seeds_of(config.arm(name))
        if seed not in map(str, seeds):
            raise ConfigError(
                f'paths.pairs: arm "{name}" runs at seeds {", ".join(map(str, seeds))}, received "{end}".'
            )
    if config.rollouts.by not in WRITERS:
        raise ConfigError(
            f'rollouts.by must be {" or ".join(WRITERS)} for the study\'s own rollouts, received "{config.rollouts.by}". '
            "An arm may be named in an arm's rollouts."
        )
    if not config.rollouts.path and not config.teacher and config.rollouts.by == "teacher":
        raise ConfigError("a study needs rollouts.path or a teacher to sample from, received neither.")
    if config.eval.samples > 1 and config.eval.sampling_temperature == 0:
        raise ConfigError(
            f"eval.samples = {config.eval.samples} greedy answers would all be the same. Set eval.sampling_temperature."
        )
    if any(arm.tune for arm in config.arms) and _overlap(config.tuning, config.eval.problems):
        raise ConfigError(
            f"a knob must be tuned on other problems than those of the evaluation, received {config.tuning.split} of "
            f"{config.tuning.path or config.tuning.world} for both. Give [tuning] another split or file."
        )
    for arm in config.arms:
        config.living(arm)
        for seed in config.seeds_of(arm):
            config.training(arm, seed)
        _check_chain(config, arm)

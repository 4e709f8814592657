"""What a study is: one rollout set, arms that differ in what they do with it, seeds, and what is measured after.

One TOML file holds it; the packaged ones lie beside this module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from limbeck.config import Config, TrainConfig, load, override, parse
from limbeck.errors import ConfigError, nearest

PACKAGED = Path(__file__).parent


class ProblemsConfig(Config):
    """Where problems come from: a world's generator or a file."""

    world: Literal["abacus"] | None = None
    """An embedded world; excludes `path`."""
    split: Literal["train", "validation", "test"] = "test"
    """Which split of the world."""
    path: str | None = None
    """A JSONL or Parquet file."""
    format: Literal["jsonl", "gsm8k", "math", "aime"] = "jsonl"
    """Field names: `prompt`, `answer` (and `id`, `solution`), or those of GSM8K, MATH or AIME."""
    num: int | None = Field(default=None, ge=1)
    """Use the first so many; all by default."""
    seed: int = 0
    """Of the world's generator."""


class RolloutsConfig(Config):
    """Where rollouts come from: sampled from the teacher, or read from a file or folder."""

    path: str | None = None
    """A JSONL or Parquet file, or a rollouts folder; excludes sampling."""
    problems: ProblemsConfig = ProblemsConfig()
    """What the teacher is asked."""
    samples: int = Field(default=4, ge=1)
    """Rollouts a problem."""
    sampling_temperature: float = Field(default=1.0, gt=0)
    """Of the teacher."""
    max_new_tokens: int = Field(default=256, ge=1)
    batch_size: int = Field(default=256, ge=1)
    """Rows decoded at a time."""
    seed: int = 0


class ArmConfig(Config):
    """One method with its settings; runs once per seed."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")
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


class EvalConfig(Config):
    """What every checkpoint answers."""

    problems: ProblemsConfig = ProblemsConfig()
    max_new_tokens: int = Field(default=256, ge=1)
    batch_size: int = Field(default=256, ge=1)
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Family-wise level of the paired tests, by Holm."""


class PathsConfig(Config):
    """Linear mode connectivity."""

    pairs: tuple[tuple[str, str], ...] = ()
    """Arm names; `base` stands for the untouched base. First seed of each; `arm@seed` names another."""
    alphas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
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
    cka_problems: int = Field(default=200, ge=0)
    """Problems whose solutions all arms read for CKA; 0 is off."""


class StudyConfig(Config):
    """A comparison: arms x seeds over one rollout set."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    question: str
    """What the study is to answer; the report opens with it."""
    student: str
    """A local Hugging Face folder, or `abacus:base`."""
    teacher: str | None = None
    """Samples the rollouts unless `rollouts.path` is given; evaluated beside the arms."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    init_seed: int = 0
    """Initial adapter factors that all arms share."""
    workers: int = Field(default=0, ge=0)
    """Steps run at a time, one thread each; 0 takes the machine's cores for small students and 1 for others."""
    reference_arm: str = ""
    """The arm that others are compared with in sentences; the first by default."""
    rollouts: RolloutsConfig = RolloutsConfig()
    train: TrainConfig = TrainConfig()
    arms: tuple[ArmConfig, ...] = Field(min_length=1)
    eval: EvalConfig = EvalConfig()
    geometry: GeometryConfig = GeometryConfig()
    paths: PathsConfig = PathsConfig()

    def arm(self, name: str) -> ArmConfig:
        return {arm.name: arm for arm in self.arms}[name]

    def seeds_of(self, arm: ArmConfig) -> tuple[int, ...]:
        return arm.seeds or self.seeds

    def training(self, arm: ArmConfig, seed: int) -> TrainConfig:
        """The arm's settings in full."""
        init_seed = self.init_seed if arm.init_seed is None else arm.init_seed
        values = {**self.train.model_dump(), **arm.train, "seed": seed, "init_seed": init_seed}
        if isinstance(arm.train.get("lora"), dict):
            values["lora"] = {**self.train.lora.model_dump(), **arm.train["lora"]}
        return parse(TrainConfig, values, where=f"arms.{arm.name}.train")


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
    if name not in packaged():
        values = _anchored(values, path.resolve().parent)
    config = parse(StudyConfig, values, where="study")
    _check(config)
    return config


def _anchored(values: dict[str, Any], root: Path) -> dict[str, Any]:
    """Paths that exist beside the file become absolute; anything else stays as it was given."""

    def anchor(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: anchor(k, v) for k, v in value.items()}
        if key in ("student", "teacher", "path") and isinstance(value, str) and (root / value).exists():
            return str(root / value)
        return value

    return anchor("", values)


def _check(config: StudyConfig) -> None:
    names = [arm.name for arm in config.arms]
    if len(set(names)) != len(names) or {"base", "teacher"} & set(names):
        raise ConfigError(
            f'arms need names of their own, and "base" and "teacher" are taken, received {", ".join(names)}.'
        )
    referred = [(f"arms.{a.name}.match_norm", a.match_norm) for a in config.arms if a.match_norm]
    referred += [(f"arms.{a.name}.match_items", a.match_items) for a in config.arms if a.match_items]
    referred += [("paths.pairs", end.partition("@")[0]) for pair in config.paths.pairs for end in pair if end != "base"]
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
    if not config.rollouts.path and not config.teacher:
        raise ConfigError("a study needs rollouts.path or a teacher to sample from, received neither.")
    for arm in config.arms:
        for seed in config.seeds_of(arm):
            config.training(arm, seed)

"""The runs of a study and what each stands on: rollouts, scores, a signal, a start. Arms may stand on arms.

Whatever several runs need is one step: two arms that read the same policy's scores of the same rollouts share them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from limbeck.batches.collate import BEHAVIOR, PER_TOKEN_INPUTS
from limbeck.batches.whole import FROZEN_LOGITS
from limbeck.config import settings_of
from limbeck.errors import ConfigError
from limbeck.objectives import find
from limbeck.objectives import inputs as objective_inputs
from limbeck.problems.files import find_source
from limbeck.studies.config import (
    SOURCES,
    WRITERS,
    ArmConfig,
    ArmSignal,
    StudyConfig,
    arms_read,
    split_step,
    subspace_arm,
)
from limbeck.studies.identity import check_vocabulary, problems_of, rollouts_params, served_params
from limbeck.studies.sections import RolloutsConfig
from limbeck.studies.step import Plan
from limbeck.train.checks import check
from limbeck.train.models import input_digest
from limbeck.worlds.named import problems_named

Params = dict[str, Any]
Inputs = dict[str, str]
TRIALS = 2  # runs by which a rate is found: lengths then agree within a few percent


def run_name(arm: str, seed: int) -> str:
    """The name of one arm at one seed, everywhere."""
    return f"{arm}-s{seed}"


class Point(NamedTuple):
    """What an arm had at one seed after a step that it keeps, or at its end (None)."""

    run: str
    step: int | None

    @property
    def name(self) -> str:
        return self.run if self.step is None else f"{self.run}@{self.step}"


class Runs:
    """Adds the steps of every run to a plan.

    Attributes:
        student: parameters that identify the study's student.
        asked: parameters that identify the evaluation.
        final: run name to the step that trains it, in the order of the study.
        starts: run name to the merged model that it started from; absent for those that started at the student.
    """

    def __init__(self, plan: Plan, config: StudyConfig) -> None:
        self._plan, self._config = plan, config
        self.student: Params = {"base": config.student, "base_digest": input_digest(config.student)}
        self.asked: Params = {"problems": problems_of(config.eval.problems), **_decoding(config)}
        self.final: dict[str, str] = {}
        self.starts: dict[str, str] = {}
        self._rollouts: dict[str, str] = {}
        self.shared = self._sampled("rollouts", config.rollouts)

    def add_all(self) -> None:
        """Every run, each after those that it stands on.

        Raises:
            ConfigError: arms that stand on each other in a circle, or on an arm that does not run at their seed.
        """
        config = self._config
        order = [(arm, seed) for arm in config.arms for seed in config.seeds_of(arm)]
        waiting = order
        while waiting:
            ready = [(arm, seed) for arm, seed in waiting if self._can_run(arm, seed)]
            if not ready:
                _refuse(waiting)
            for arm, seed in ready:
                self._add(arm, seed)
            waiting = [item for item in waiting if item not in ready]
        self.final = {run: self.final[run] for run in (run_name(arm.name, seed) for arm, seed in order)}

    def _can_run(self, arm: ArmConfig, seed: int) -> bool:
        return all(run_name(split_step(other)[0], seed) in self.final for _, other in arms_read(self._config, arm))

    def _add(self, arm: ArmConfig, seed: int) -> None:
        run = run_name(arm.name, seed)
        if arm.merge:
            self.final[run] = self._combined(arm, seed)
            return
        read: Inputs = {}
        if arm.start:
            read["base"] = self.starts[run] = self.merged(_point(arm.start, seed))
        if arm.teacher:
            read["teacher"] = self.merged(_point(arm.teacher, seed))
        if subspace_arm(arm):
            read |= self._subspace(arm, seed)
        rollouts = self._rollouts[run] = self.rollouts(arm, seed)
        read |= {"rollouts": rollouts} if self._reads_rollouts(arm) else {}
        for name in _scores_read(self._config, arm):
            read[name] = self.signal(arm, seed) if name == "signal" else self._score(arm, seed, name)
        read |= {"tuned": self._tuning(arm, read)} if arm.tune else {}
        read |= {"rate": self._rate(arm, read)} if self._config.reach_norm else {}
        for role, other in (("norm_of", arm.match_norm), ("items_of", arm.match_items)):
            read |= {role: self.final[run_name(other, seed)]} if other else {}
        params, cost = self._training(arm, seed), _cost(self._config, arm)
        self.final[run] = self._plan.add(f"train/{run}", "train", params, read, cost)

    # ------------------------------------------------------------------------------------- what runs leave and stand on

    def at(self, point: Point) -> tuple[Params, Inputs]:
        """What a step that opens this result has to be given."""
        read = {"run": self.final[point.run]}
        read |= {"base": self.starts[point.run]} if point.run in self.starts else {}
        return {**self.student, **({} if point.step is None else {"at": point.step})}, read

    def merged(self, point: Point) -> str:
        """A result as a model of its own."""
        return self._plan.once(f"merge/{point.name}", "merge", *self.at(point), 2)

    def rollouts(self, arm: ArmConfig, seed: int) -> str:
        """The arm's own rollouts, or the study's."""
        if arm.rollouts is None:
            return self.shared
        given = self._config.sampling(arm)
        if given.path or given.by in WRITERS:
            return self._sampled(f"rollouts/{'server' if given.server else given.by}", given)
        point = _point(given.by, seed)
        params = given.model_dump(mode="json", exclude={*SOURCES, "problems"})
        params |= {"by": point.name, "problems": problems_of(given.problems)}
        return self._plan.once(f"rollouts/{point.name}", "rollouts", params, {"model": self.merged(point)}, 30)

    def _sampled(self, name: str, given: RolloutsConfig) -> str:
        """Rollouts of a server, of a model on disk, or of a file."""
        if given.server is None:
            return self._plan.once(name, "rollouts", rollouts_params(self._config, given), {}, 30)
        params, manner = served_params(self._config, given, given.server)
        return self._plan.once(name, "served", params, {}, 30, manner)

    def _subspace(self, arm: ArmConfig, seed: int) -> Inputs:
        """The run whose update gives the arm its directions, and what that run started from."""
        point = _point(subspace_arm(arm) or "", seed)
        start = {"subspace_base": self.starts[point.run]} if point.run in self.starts else {}
        return {"subspace": self.final[point.run], **start}

    def _combined(self, arm: ArmConfig, seed: int) -> str:
        """Adapters of other arms added up, in the place of a run."""
        assert arm.merge is not None  # the caller has looked
        points = [_point(name, seed) for name in arm.merge.arms]
        parts = [
            {"run": point.run, "at": point.step, "weight": weight}
            for point, weight in zip(points, arm.merge.factors, strict=True)
        ]
        read = {point.run: self.final[point.run] for point in points}
        return self._plan.add(f"train/{run_name(arm.name, seed)}", "combine", {**self.student, "parts": parts}, read, 2)

    def _score(self, arm: ArmConfig, seed: int, name: str) -> str:
        """What a frozen model says of the arm's rollouts: the study's teacher, or what the arm is anchored to."""
        run = run_name(arm.name, seed)
        read = {"rollouts": self._rollouts[run]}
        if name.startswith("reference") and run in self.starts and arm.anchor == "round_start":
            read["base"] = self.starts[run]
        return self._plan.once(f"score/{name}", "score", _scorer(self._config, name), read, 8)

    def scored(self, point: Point, rollouts: str) -> str:
        """Log-probs that a result gives to rollouts."""
        params, read = self.at(point)
        params |= {"token_budget": self._config.train.pass_tokens}
        return self._plan.once(f"score/{point.name}", "score", params, {**read, "rollouts": rollouts}, 8)

    def signal(self, arm: ArmConfig, seed: int) -> str:
        """The token signal on the arm's rollouts, from stored scores."""
        given, run = arm.signal, run_name(arm.name, seed)
        if given is None:
            raise ConfigError(
                f'arm "{arm.name}" reads a signal, received none. Say which arms it is read out of: '
                'signal = { teachers = ["..."] }.'
            )
        rollouts = self._rollouts[run]
        points = [_point(name, seed) for name in given.teachers]
        read = {"rollouts": rollouts, "reference": self._score(arm, seed, "reference_logprobs")}
        read |= {f"teacher:{point.name}": self.scored(point, rollouts) for point in points}
        params: Params = given.model_dump(mode="json", exclude={"teachers", "contrast", "require_worse"})
        params["teachers"] = [{"name": point.name, "contrast": None} for point in points]
        if given.contrast:
            params |= self._contrast(given, seed, points, rollouts, read)
        return self._plan.once(f"signal/{run}", "signal", params, read, 2)

    def _contrast(self, given: ArmSignal, seed: int, points: list[Point], rollouts: str, read: Inputs) -> Params:
        """Scores of every step that the unlearned arm keeps; which one a teacher is held against by its own step."""
        assert given.contrast is not None  # the caller asked
        twin, keep = run_name(given.contrast, seed), self._config.training(self._config.arm(given.contrast), seed).keep
        last = self._config.training(self._config.arm(given.contrast), seed).num_steps
        for step in (None, *keep):
            point = Point(twin, step)
            read[f"contrast:{point.name}"] = self.scored(point, rollouts)
        matched = [Point(twin, None if point.step == last else point.step) for point in points]
        params: Params = {
            "teachers": [{"name": p.name, "contrast": m.name} for p, m in zip(points, matched, strict=True)]
        }
        if given.require_worse:
            read["twin_table"] = self.table(twin)
            read["start_table"] = self._table_of_start(twin, given.contrast, seed)
        return params

    def _table_of_start(self, run: str, arm: str, seed: int) -> str:
        start = self._config.arm(arm).start
        if start is None:
            return self.base_table()
        point = _point(start, seed)
        return self.table(point.run, point.step)

    # -------------------------------------------------------------------------------------------- what results are asked

    def base_table(self) -> str:
        """Answers of the student before any training."""
        return self._plan.once("eval/base", "eval", {**self.student, **self.asked, "name": "base"}, {}, 2)

    def table(self, run: str, step: int | None = None) -> str:
        """Answers of a result."""
        point = Point(run, step)
        params, read = self.at(point)
        return self._plan.once(f"eval/{point.name}", "eval", {**params, **self.asked, "name": point.name}, read, 2)

    def points(self) -> list[Point]:
        """Every result: the end of each run, after the steps that it keeps."""
        out: list[Point] = []
        for arm in self._config.arms:
            for seed in self._config.seeds_of(arm):
                kept = sorted(set(self._config.training(arm, seed).keep))
                out += [Point(run_name(arm.name, seed), step) for step in (*kept, None)]
        return out

    def add_points(self) -> None:
        """Answers of kept steps, and the KL of every result where the study asks for it."""
        kl = self._config.kl
        for point in self.points():
            if point.step is not None:
                self.table(point.run, point.step)
        if kl is None:
            return
        given: Params = {
            **kl.model_dump(mode="json", exclude={"problems", "pairs"}),
            "problems": problems_of(kl.problems),
        }
        sampled = {**given, "teacher": self._config.student, "teacher_digest": self.student["base_digest"]}
        sampled = {name: value for name, value in sampled.items() if name != "drift_rollouts"}
        base = self._plan.once("kl-rollouts/base", "rollouts", {**sampled, "sampling_temperature": 1.0}, {}, 10)
        self._plan.once("kl/base", "kl", {**self.student, **given}, {"base_rollouts": base}, 10)
        for point in self.points():
            params, read = self.at(point)
            trained_on = {"rollouts": self._rollouts[point.run]} if point.run in self._rollouts else {}
            read = {**read, "base_rollouts": base, **trained_on}
            self._plan.once(f"kl/{point.name}", "kl", {**params, **given}, read, 10)

    # ----------------------------------------------------------------------------------------------------------- settings

    def _reads_rollouts(self, arm: ArmConfig) -> bool:
        live = self._config.living(arm)
        return live is None or live.student_fraction < 1

    def _training(self, arm: ArmConfig, seed: int) -> Params:
        config = self._config
        params = {**self.student, "train": settings_of(config.training(arm, seed), "train")}
        other = subspace_arm(arm)
        if other and (step := split_step(other)[1]) is not None:
            params["subspace_at"] = step
        if arm.start and arm.anchor == "original":
            params["anchor"] = config.student
        live = config.living(arm)
        if live is None:
            return params
        live = live.model_copy(update={"teacher": None}) if arm.teacher else live
        named = problems_named(live.problems, live.format, live.num_problems, live.problems_seed)
        source = {} if not named.get("path") else {"problems_digest": find_source(named["path"]).digest}
        teacher = {"teacher_digest": input_digest(live.teacher)} if live.teacher else {}
        return {**params, "live": settings_of(live, "live"), **source, **teacher}

    def _tuning(self, arm: ArmConfig, read: Inputs) -> str:
        """A run and its answers for every value of the grid, and the choice among them."""
        config, name, [(knob, grid)] = self._config, f"tune/{arm.name}", arm.tune.items()
        if name in self._plan.steps:
            return name
        problems, seed = problems_of(config.tuning), config.seeds_of(arm)[0]
        base = {"base": read["base"]} if "base" in read else {}
        tables = {}
        for value in grid:
            params = self._training(arm, seed)
            settings = params["train"]
            params["train"] = {**settings, "knobs": {**settings["knobs"], knob: value}}
            tried = f"{arm.name}-{knob}={value:g}"
            run = self._plan.add(f"train/{tried}", "train", params, dict(read), _cost(config, arm))
            asked = {**self.student, "problems": problems, **_decoding(config), "name": tried}
            tables[f"{value:g}"] = self._plan.add(f"tuning/{tried}", "eval", asked, {"run": run, **base}, 2)
        return self._plan.add(name, "tune", {"knob": knob, "grid": list(grid)}, tables, 1)

    def _rate(self, arm: ArmConfig, read: Inputs) -> str:
        """The peak rate at which the arm's run ends at the study's norm, by trial runs at its first seed."""
        name, seed = f"rate/{arm.name}", self._config.seeds_of(arm)[0]
        if name in self._plan.steps:
            return name
        params, cost, rate = self._training(arm, seed), _cost(self._config, arm), dict[str, str]()
        for trial in range(1, TRIALS + 1):
            run = self._plan.add(f"train/{arm.name}-trial-{trial}", "train", params, {**read, **rate}, cost)
            found = name if trial == TRIALS else f"{name}-{trial}"
            rate = {"rate": self._plan.add(found, "rate", {"norm": self._config.reach_norm}, {"run": run}, 1)}
        return name


def _point(name: str, seed: int) -> Point:
    arm, step = split_step(name)
    return Point(run_name(arm, seed), step)


def _cost(config: StudyConfig, arm: ArmConfig) -> float:
    training, live = config.training(arm, 0), config.living(arm)
    if live is None:
        rows = 2 if find(training.objective).unit == "pair" else 1
        return training.num_steps * training.batch_size * rows / 200
    return training.num_steps * live.prompts_per_step * live.samples * live.inner_epochs / 30


def _decoding(config: StudyConfig) -> Params:
    given = config.eval
    several = {"samples": given.samples, "sampling_temperature": given.sampling_temperature}
    own = several if given.sampling_temperature else {}
    return {"max_new_tokens": given.max_new_tokens, "batch_size": given.batch_size, **own}


def _refuse(waiting: list[tuple[ArmConfig, int]]) -> None:
    names = ", ".join(run_name(arm.name, seed) for arm, seed in waiting)
    raise ConfigError(
        f"arms that match, start from or read other arms must name such as run at the same seed and do not stand on each "
        f"other in a circle, received {names}. Give those arms the same seeds."
    )


def _scores_read(config: StudyConfig, arm: ArmConfig) -> list[str]:
    objective = check(config.training(arm, 0))
    if arm.live is not None:
        return []
    return [n for n in objective_inputs(objective) if n in (*PER_TOKEN_INPUTS, *FROZEN_LOGITS) and n not in BEHAVIOR]


def _scorer(config: StudyConfig, name: str) -> Params:
    """Which model gives a per-token input, and what is kept of it: the teacher its own, the base the reference."""
    model = config.teacher if name.startswith("teacher") else config.student
    if model is None:
        raise ConfigError(f"an arm reads {name}: the study needs a teacher that gives it, received none.")
    check_vocabulary(config.student, model)
    keep = {"keep": "hidden"} if name in FROZEN_LOGITS else {}
    return {"base": model, "base_digest": input_digest(model), "token_budget": config.train.pass_tokens, **keep}

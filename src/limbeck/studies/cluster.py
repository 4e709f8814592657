"""Steps as Ray tasks on a cluster that is running, each with what the study's ``[resources]`` gives it.

Ray places tasks, and starts one again elsewhere whose worker or node was lost. Results go through the steps' folder, which
every node must see under the same path; nothing of size goes through Ray.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import limbeck
from limbeck.errors import ConfigError, LimbeckError
from limbeck.studies.executors import Task, Tell
from limbeck.studies.sections import ResourcesConfig
from limbeck.studies.worker import LOOK, Board, Here, run_step

AHEAD = 4  # tasks beyond what the cluster holds, so that no worker waits for the next
COUNT = 10.0  # seconds for which a count of the nodes holds
MODEL_KINDS = ("rollouts", "score", "train", "eval", "kl", "path", "cka", "signal")  # that a GPU makes faster
ENVIRONMENT = (  # what a worker is to have as this process has it
    "HF_HUB_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_NO_ADVISORY_WARNINGS", "TOKENIZERS_PARALLELISM",
)  # fmt: skip
Needs = dict[str, float]  # Ray's resources by name; memory in bytes


def check_address(address: str) -> None:
    """Refuse early what cannot be connected to.

    Raises:
        ConfigError: no address of a cluster, or Ray is not installed.
    """
    if address != "auto" and not address.startswith("ray://"):
        raise ConfigError(
            f'--on must be local, auto (the Ray cluster of this machine) or ray://HOST:PORT, received "{address}". '
            "Choose one of these."
        )
    lacking = [name for name in ("ray", *(["grpc"] if address != "auto" else [])) if not importlib.util.find_spec(name)]
    if lacking:
        raise ConfigError(
            f"--on {address} needs Ray, received an installation without {' and '.join(lacking)}. "
            'Run `pip install "limbeck[ray]"`, or leave --on out to run here.'
        )


class Cluster:
    """Steps on a Ray cluster.

    Args:
        address: ``auto`` or ``ray://HOST:PORT``; a connection that this process has is taken as it is.
        resources: what steps take.
        kinds: of the steps that will come.
        tell: told their progress.

    Raises:
        ConfigError: no cluster, or none of its nodes has what a step takes.
    """

    def __init__(self, address: str, resources: ResourcesConfig, kinds: Sequence[str], tell: Tell) -> None:
        self._own = _connect(address)
        import ray

        self._ray, self._resources, self._tell = ray, resources, tell
        self._nodes: list[Needs] = []
        self._counted = -COUNT
        self._asked: Future[dict[str, float]] | None = None
        self._looked = 0.0
        try:
            self._count()
            for kind in kinds:
                self._check(kind)
        except ConfigError:
            self.__exit__()
            raise
        # a process that was shown no GPU does not find those of a later task: where there are any, each task gets its own
        self._run: Any = ray.remote(max_calls=int(self._has_gpus()))(run_step)
        self._board = ray.remote(num_cpus=0, max_restarts=-1)(Board).remote()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        if self._own:
            self._ray.shutdown()

    def room(self, running: Collection[Task], task: Task) -> bool:
        self._count()
        needs = [self._needs(one.kind) for one in (*running, task)]
        return beyond(needs, sum(map(Counter, self._nodes), Counter())) <= AHEAD

    def submit(self, task: Task) -> Future[float | None]:
        needs = self._needs(task.kind)
        options = {
            "num_cpus": needs["CPU"],
            "num_gpus": needs.get("GPU", 0),
            "memory": needs.get("memory"),
            "max_retries": self._resources.retries,
            "name": task.name,
        }
        here = Here(
            version=limbeck.__version__,
            folder=os.getcwd(),
            environment={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        )
        return self._run.options(**options).remote(task, self._board, max(1, int(needs["CPU"])), here).future()

    def poll(self) -> None:
        if self._asked is None and time.monotonic() - self._looked > LOOK:
            self._asked = self._board.take.remote().future()  # pyright: ignore[reportFunctionMemberAccess]
        if self._asked is not None and self._asked.done():
            shares = {} if self._asked.exception() else self._asked.result()  # a board that was lost starts again
            for name, share in shares.items():
                self._tell(name, share)
            self._asked, self._looked = None, time.monotonic()

    def explain(self, errors: Mapping[str, BaseException]) -> BaseException:
        first = next(iter(errors.values()))
        lost = {
            name: error
            for name, error in errors.items()
            if isinstance(error, self._ray.exceptions.RayError)
            and not isinstance(error, self._ray.exceptions.RayTaskError)
        }
        if first not in lost.values():
            cause = getattr(first, "cause", None)
            if not isinstance(cause, BaseException):
                return first
            cause.__cause__ = first  # Ray wraps what a step raises, with the worker's traceback
            return cause
        reasons = ", ".join(sorted({type(error).__name__ for error in lost.values()}))
        return LimbeckError(
            f"every step must end by itself, received none from {', '.join(sorted(lost))} in {self._resources.retries + 1} "
            f"tries: each time its worker was killed or its node was lost (Ray says {reasons}), perhaps for memory. "
            "Set resources.memory_gb or smaller batches, and run the same command to continue."
        )

    def _needs(self, kind: str) -> Needs:
        own = self._resources.of(kind)
        gpus = float(self._has_gpus() and kind in MODEL_KINDS) if own.gpus is None else own.gpus
        found = {"CPU": own.cpus or 1.0, "GPU": gpus, "memory": (own.memory_gb or 0) * 1e9}
        return {name: value for name, value in found.items() if value}

    def _has_gpus(self) -> bool:
        return any(node.get("GPU", 0) for node in self._nodes)

    def _count(self) -> None:
        if time.monotonic() - self._counted >= COUNT:
            self._nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            self._counted = time.monotonic()

    def _check(self, kind: str) -> None:
        needs = self._needs(kind)
        if not any(all(node.get(name, 0) >= value for name, value in needs.items()) for node in self._nodes):
            most = {name: max((node.get(name, 0) for node in self._nodes), default=0) for name in needs}
            raise ConfigError(
                f"a node must have what a step of kind {kind} takes, {_words(needs)}, received a cluster whose nodes have at "
                f"most {_words(most)}. Start a node that has it, or lower [resources]."
            )


def beyond(needs: Iterable[Needs], held: Mapping[str, float]) -> int:
    """How many tasks, taken in order, find no place in what is held.

    >>> beyond([{"CPU": 2}, {"CPU": 2}, {"CPU": 1}], {"CPU": 3})
    1
    """
    left, outside = dict(held), 0
    for task in needs:
        if all(left.get(name, 0) >= value for name, value in task.items()):
            left |= {name: left[name] - value for name, value in task.items()}
        else:
            outside += 1
    return outside


def _words(needs: Mapping[str, float]) -> str:
    units = {"CPU": ("", 1, " CPUs"), "GPU": ("", 1, " GPUs"), "memory": ("", 1e9, " GB of memory")}
    return ", ".join(f"{value / units[name][1]:g}{units[name][2]}" for name, value in needs.items())


def _connect(address: str) -> bool:
    """Connect this process; whether it was not before."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")  # read as ray is imported
    check_address(address)
    import ray

    if ray.is_initialized():
        return False
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--on {address} must name a Ray cluster that is running, received none ({_root(error)}). Start one with "
            "`ray start --head`, or leave --on out to run here."
        ) from error
    return True


def _root(error: BaseException) -> str:
    """The first line of what began a chain of errors, Ray's own being long."""
    while error.__cause__:
        error = error.__cause__
    return str(error).partition("\n")[0].strip()

"""What distinguishes one kind of run from another between loading the base and saving the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from limbeck.batches.whole import Top
from limbeck.config import TrainConfig
from limbeck.heads import Head
from limbeck.train.engine import Engine


class Job(NamedTuple):
    """A run that is ready to start.

    Attributes:
        config: as the optimizers and their schedules have to see it.
        frozen: heads of models whose whole distributions are read in every step, by input name.
        identity: what decides the result besides base and settings; another one may not go on with the same folder.
        record: JSON files for the run folder, by name.
        walk: takes all steps in the folder, calls its last argument after each, returns the last one.
        facts: for the manifest, given the last step.
    """

    config: TrainConfig
    frozen: Mapping[str, Head | Top]
    identity: dict[str, object]
    record: dict[str, object]
    walk: Callable[[Engine, Path, Callable[[int], None]], int]
    facts: Callable[[int], dict[str, object]]

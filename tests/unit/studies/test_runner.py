"""Steps side by side: a process that is killed ends the study in a sentence that names what ran."""

from __future__ import annotations

import signal

import pytest

from limbeck.errors import LimbeckError
from limbeck.studies.plan import Step
from limbeck.studies.runner import run_plan


class Killed:
    """Kills the process that unpickles it, as the system does when memory runs out."""

    def __reduce__(self):
        return signal.raise_signal, (signal.SIGKILL,)


def test_a_killed_process_is_told_in_a_sentence(tmp_path):
    steps = [
        Step(name="train/big", kind="train", params={"x": Killed()}, digest="0" * 64, cost=1.0),
        Step(name="after", kind="train", params={}, inputs={"run": "train/big"}, digest="1" * 64, cost=1.0),
    ]
    words = r"received none from train/big: its process was killed, probably for memory\. Set workers = 1 or smaller"
    with pytest.raises(LimbeckError, match=words):
        run_plan(steps, tmp_path, workers=2, show=lambda title, done, total: None)

"""A tracker sees every step, and one that fails or hangs costs a sentence."""

from __future__ import annotations

import time

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from limbeck.digests import is_complete
from limbeck.errors import ConfigError
from limbeck.train import trackers
from limbeck.train.record import read_metrics
from limbeck.train.run import RunConfig, train


class Kept(GeneralTracker):
    name = "kept"
    requires_logging_directory = True
    told: list

    def __init__(self, run_name, logging_dir):
        super().__init__()
        Kept.told = [(run_name, logging_dir.name)]

    @property
    def tracker(self):
        return None

    def store_init_configuration(self, values):
        Kept.told.append(values["train.objective"])

    def log(self, values, step, **more):
        Kept.told.append((step, values["loss"]))

    def finish(self):
        Kept.told.append("end")


class Failing(Kept):
    def log(self, values, step, **more):
        if step == 3:
            raise ConnectionError("the network is gone")


class Hanging(Kept):
    def log(self, values, step, **more):
        time.sleep(60)


@pytest.fixture
def tracked(base, rollouts, settings, tmp_path, monkeypatch):
    def run(kind):
        monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "kept", kind)
        monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["kept"])
        monkeypatch.setattr(trackers, "LAST_SECONDS", 0.5)
        config = RunConfig(base=base, rollouts=rollouts, train=settings.model_copy(update={"tracker": "kept"}))
        return train(config, tmp_path / "run")

    return run


def test_a_tracker_is_told_every_step(tracked):
    out = tracked(Kept)
    lines = read_metrics(out / "metrics.jsonl")
    assert Kept.told == [("run", "kept"), "sft", *((line["step"], line["loss"]) for line in lines), "end"]


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Failing, "failed after 2 steps and was left alone: ConnectionError: the network is gone"),
        (Hanging, "did not answer"),
    ],
)
def test_a_tracker_never_ends_a_run(tracked, kind, sentence):
    with pytest.warns(RuntimeWarning, match=sentence):
        out = tracked(kind)
    assert is_complete(out)
    assert len(read_metrics(out / "metrics.jsonl")) == 10


def test_an_unknown_tracker_is_refused(base, rollouts, settings, tmp_path):
    for name, sentence in (("wandbb", 'Did you mean "wandb"'), ("wandb", "needs its package, which is not installed")):
        config = RunConfig(base=base, rollouts=rollouts, train=settings.model_copy(update={"tracker": name}))
        with pytest.raises(ConfigError, match=sentence):
            train(config, tmp_path / "run")

"""A base and rollouts on disk, small enough to train on in seconds."""

from __future__ import annotations

import pytest

from limbeck.config import LoraConfig, TrainConfig
from limbeck.rollouts.store import write_rollouts

from .toy import tiny_model, tiny_rollouts


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def rollouts(tmp_path_factory) -> str:
    return str(write_rollouts(tiny_rollouts(), tmp_path_factory.mktemp("data") / "rollouts"))


@pytest.fixture
def settings() -> TrainConfig:
    return TrainConfig(
        learning_rate=1e-2,
        batch_size=8,
        num_steps=10,
        checkpoint_every=3,
        lora=LoraConfig(rank=4, alpha=8.0, dropout=0.1),
    )

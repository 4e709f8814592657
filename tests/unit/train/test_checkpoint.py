"""A run goes on from the newest checkpoint that is whole, and says which was not, and why."""

from __future__ import annotations

import pytest

from limbeck.config import LoraConfig, RunConfig, TrainConfig
from limbeck.digests import MANIFEST, file_digest
from limbeck.rollouts.store import write_rollouts
from limbeck.train.run import train

from .toy import tiny_model, tiny_rollouts

RESULT = "adapter/adapter_model.safetensors"


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("name", [MANIFEST, "weights.safetensors", "state.pt"])
def test_one_flipped_bit_in_the_newest_checkpoint(tmp_path, name):
    tiny_model().save_pretrained(tmp_path / "base")
    write_rollouts(tiny_rollouts(), tmp_path / "rollouts")
    settings = TrainConfig(batch_size=4, num_steps=6, checkpoint_every=2, lora=LoraConfig(rank=2, alpha=4.0))
    config = RunConfig(base=str(tmp_path / "base"), rollouts=str(tmp_path / "rollouts"), train=settings)
    out = train(config, tmp_path / "run")
    digests = {path.name: file_digest(path) for path in (out / "adapter").iterdir()}
    (out / MANIFEST).unlink()  # as if it had been killed while it wrote its result
    (out / RESULT).unlink()
    card = out / "adapter/README.md"
    card.write_text(card.read_text()[:99])  # peft would go on with what it finds
    file = out / "checkpoints/step-000004" / name
    text = bytearray(file.read_bytes())
    text[len(text) // 2] ^= 4
    file.write_bytes(text)
    with pytest.warns(RuntimeWarning, match=rf"step-000004 is damaged \({name}\) and was skipped"):
        train(config, out)
    assert {path.name: file_digest(path) for path in (out / "adapter").iterdir()} == digests

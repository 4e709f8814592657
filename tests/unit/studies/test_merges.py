"""A merge is the sum of its parts' updates, exactly."""

from __future__ import annotations

import pytest
import torch

from limbeck.config import LoraConfig
from limbeck.geometry.adapters import read_adapter
from limbeck.studies.merges import add_up
from limbeck.train.models import add_adapter, load_model

WEIGHTS = {1: [2.0], 2: [0.5, 0.5], 3: [1.0, -0.25, 3.0]}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    root, draw = tmp_path_factory.mktemp("adapters"), torch.Generator().manual_seed(0)
    for place, (rank, alpha) in enumerate([(4, 8.0), (3, 1.0), (4, 5.0)]):
        model = add_adapter(load_model("abacus:base"), LoraConfig(rank=rank, alpha=alpha), init_seed=place)
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                weight.data.normal_(0, 0.05, generator=draw)
        model.save_pretrained(root / str(place))
    return [root / str(place) for place in range(3)]


def dense(folder):
    return {
        name: factors.left.double() @ factors.right.double() for name, factors in read_adapter(folder).modules.items()
    }


@pytest.mark.parametrize("num", [1, 2, 3])
def test_it_is_the_weighted_sum_of_the_updates_in_float64(adapters, tmp_path, num):
    out = tmp_path / "run" / "adapter"
    out.parent.mkdir()
    add_up("abacus:base", adapters[:num], WEIGHTS[num], out)
    parts, found = [dense(folder) for folder in adapters[:num]], dense(out)
    assert found.keys() == parts[0].keys()
    for name, update in found.items():
        expected = sum(weight * part[name] for weight, part in zip(WEIGHTS[num], parts, strict=True))
        torch.testing.assert_close(update, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    assert [path.name for path in out.parent.iterdir()] == ["adapter"]

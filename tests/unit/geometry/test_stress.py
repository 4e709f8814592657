"""Degenerate updates: every number is finite and inside its range, or NaN beside a reason; damaged files are named."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from tests.unit.geometry.dense import factories

from limbeck.errors import ConfigError, ModelError
from limbeck.geometry.adapters import read_adapter
from limbeck.geometry.dense.checkpoints import open_checkpoint
from limbeck.geometry.dense.suite import measure as measure_dense
from limbeck.geometry.suite import measure
from limbeck.types import Delta, LowRank, Measurement

ROWS, COLUMNS = 24, 16
RANGES = {
    "cosine": (-1, 1),
    "degree": (0, 90),
    "fraction": (0, 1 + 1e-9),
    "rank": (1 - 1e-9, ROWS),
    "relative_norm": (0, math.inf),
    "nss": (0, math.inf),
}


def factors(rank: int, rows: int = ROWS, columns: int = COLUMNS, scale: float = 1.0, seed: int = 0) -> LowRank:
    draw = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, rank, generator=draw)
    return LowRank(left * scale, torch.randn(rank, columns, generator=draw))


def entry() -> LowRank:
    """One weight of the whole matrix moved."""
    left, right = torch.zeros(ROWS, 4), torch.zeros(4, COLUMNS)
    left[3, 0] = right[0, 5] = 1.0
    return LowRank(left, right)


UPDATES = {
    "zero": LowRank(torch.zeros(ROWS, 4), factors(4).right),
    "both factors zero": LowRank(torch.zeros(ROWS, 4), torch.zeros(4, COLUMNS)),
    "one entry": entry(),
    "rank 1": factors(1),
    "full rank": factors(COLUMNS),
    "beyond full rank": factors(40),
    "twin": factors(COLUMNS),
    "opposite": LowRank(-factors(COLUMNS).left, factors(COLUMNS).right),
    "bf16 subnormals": LowRank(torch.full((ROWS, 2), 9.2e-41), torch.full((2, COLUMNS), 9.2e-41)),
    "1e-30": factors(4, scale=1e-30),
    "1e30": LowRank(factors(4).left * 1e30, factors(4).right * 1e30),
}
THIN = {
    "one row": [factors(3, rows=1, seed=1), factors(1, rows=1, seed=2)],
    "one column": [factors(3, columns=1, seed=1), factors(1, columns=1, seed=2)],
    "one entry in all": [factors(3, rows=1, columns=1, seed=1), factors(1, rows=1, columns=1, seed=2)],
}


def check(rows: list[Measurement]) -> None:
    assert rows
    for row in rows:
        if math.isnan(row.value):
            assert row.reason, row
            continue
        assert math.isfinite(row.value), row
        low, high = RANGES.get(row.metric) or RANGES.get(row.unit) or (-math.inf, math.inf)
        assert low <= row.value <= high, row
        null = (row.null.mean, row.null.q05, row.null.q95)
        assert not any(map(math.isinf, null)), row
        if row.null.id and not math.isnan(row.null.q05):
            assert row.null.q05 <= row.null.q95, row


def deltas(*updates: LowRank) -> list[Delta]:
    return [
        Delta(name=f"arm{i}", base="b", init_digest="same", modules={"model.layers.0.q_proj": update})
        for i, update in enumerate(updates)
    ]


def test_degenerate_updates_among_each_other():
    rows = measure(deltas(*UPDATES.values()), ks=(1, 10), draws=20, signs=True, workers=1)
    check(rows)
    names = list(UPDATES)
    found = {
        (names[int(r.arm[3:])], names[int(r.other[3:])]): r
        for r in rows
        if (r.metric, r.aggregation) == ("cosine", "module")
    }
    assert found["full rank", "twin"].value == pytest.approx(1.0)
    assert found["full rank", "opposite"].value == pytest.approx(-1.0)
    assert found["zero", "rank 1"].reason == "zero_norm"
    signs = {
        (names[int(r.arm[3:])], names[int(r.other[3:])]): r.value
        for r in rows
        if (r.metric, r.aggregation) == ("sign_agreement", "module")
    }
    assert signs["full rank", "twin"] == 1.0
    assert signs["full rank", "opposite"] == 0.0
    assert signs["1e-30", "1e30"] == 1.0  # a scale has no sign


@pytest.mark.parametrize("pair", THIN.values(), ids=list(THIN))
def test_thin_matrices(pair):
    check(measure(deltas(*pair), ks=(1, 10), draws=20, signs=True, workers=1))


def test_ranks_of_updates_whose_answer_is_known():
    rows = measure(deltas(UPDATES["one entry"], UPDATES["rank 1"]), ks=(1,), draws=20, workers=1)
    ranks = [r.value for r in rows if r.unit == "rank" and r.aggregation == "module"]
    assert ranks == pytest.approx([1.0] * len(ranks))
    assert ranks


@pytest.mark.parametrize("draws", [0, 1])
def test_nulls_of_hardly_any_draws_are_refused(draws):
    with pytest.raises(ConfigError, match=f"draws >= 20, received .* draws = {draws}"):
        measure(deltas(factors(1)), draws=draws)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_that_is_not_finite_is_named_by_tensor(tmp_path, bad, dtype):
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    left = torch.zeros(ROWS, 2, dtype=dtype)
    left[1, 1] = bad
    save_file(
        {key.format("A"): torch.ones(2, COLUMNS, dtype=dtype), key.format("B"): left},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    with pytest.raises(ModelError, match=r"must be finite, received 1 NaN or infinite entries in '.*lora_B"):
        read_adapter(tmp_path)


# --- whole checkpoints --------------------------------------------------------------------------------------------

SHAPES = {
    "model.layers.0.self_attn.q_proj.weight": (ROWS, COLUMNS),
    "model.layers.0.self_attn.k_proj.weight": (1, COLUMNS),
    "model.layers.0.self_attn.o_proj.weight": (ROWS, 1),
    "model.norm.weight": (COLUMNS,),
}


def changed(base, function):
    return {name: function(weight.clone()) for name, weight in base.items()}


def one_entry(weight):
    weight.view(-1)[-1] += 0.5
    return weight


CHANGES = {
    "zero": lambda w: w,
    "one entry": one_entry,
    "rank one": lambda w: w + 0.01 * torch.ones_like(w),
    "subnormal": lambda w: torch.full_like(w, 9.2e-41),
    "all zero": torch.zeros_like,
    "1e18": lambda w: w * 1e20,
}


@pytest.mark.parametrize(("dtype", "spectra"), [(torch.bfloat16, "gram"), (torch.float32, "ritz")])
def test_degenerate_checkpoints(tmp_path, dtype, spectra):
    base = factories.weights(shapes=SHAPES)
    opened = [open_checkpoint(factories.save(tmp_path / "base", base, dtype=dtype))]
    for i, function in enumerate(CHANGES.values()):
        folder = factories.save(tmp_path / f"arm{i}", changed(base, function), dtype=dtype)
        opened.append(open_checkpoint(folder, name=f"arm{i}"))
    check(measure_dense(opened[0], opened[1:], ks=(1, 10), spectra=spectra, nulls="all", workers=1))


@pytest.mark.parametrize("start", [torch.zeros_like, lambda w: torch.full_like(w, 9.2e-41)], ids=["zero", "subnormal"])
def test_a_degenerate_base(tmp_path, start):
    base = factories.weights(shapes=SHAPES)
    opened = open_checkpoint(factories.save(tmp_path / "base", changed(base, start)))
    others = [
        open_checkpoint(factories.save(tmp_path / name, tuned), name=name)
        for name, tuned in (("moved", base), ("same", changed(base, start)))
    ]
    check(measure_dense(opened, others, ks=(1, 10), nulls="all", workers=1))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [SHAPE for SHAPE in SHAPES if "q_proj" in SHAPE or "norm" in SHAPE])
@pytest.mark.parametrize("of_base", [True, False])
def test_a_checkpoint_that_is_not_finite_is_named_by_tensor(tmp_path, bad, name, of_base):
    base = factories.weights(shapes=SHAPES)
    damaged = {**base, name: base[name].clone()}
    damaged[name].view(-1)[2] = bad
    sides = (damaged, base) if of_base else (base, damaged)
    one, two = (open_checkpoint(factories.save(tmp_path / n, w), name=n) for n, w in zip("ab", sides, strict=True))
    with pytest.raises(ModelError, match=rf"must be finite, received 1 NaN or infinite entries in '{name}'"):
        measure_dense(one, [two], ks=(1,), workers=1)

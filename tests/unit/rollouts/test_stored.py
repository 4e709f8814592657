"""Rollouts that stay on disk are the rollouts that were written, and what is made of them is the same to the last bit."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from limbeck import folders, records
from limbeck.batches.collate import collate, micro_batches, plan
from limbeck.config import TrainConfig
from limbeck.errors import DataError
from limbeck.objectives import find, inputs
from limbeck.rollouts import select, store, stored
from limbeck.rollouts.digest import Digest
from limbeck.rollouts.relabel import relabelled
from limbeck.rollouts.store import read_rollouts, write_rollouts, write_stream
from limbeck.train.data import prepare
from limbeck.types import Finish, Rollout, RolloutSet, outline

ODD = (
    *(0.0, -0.0, math.nan, -1.0, -2.0, -20.0, -99.89, -99.95, -123.456789, -12.1, 3.25, -0.3, -0.12, -1e-300),
    *(
        -1e-7,
        -4.9e-7,
        -5e-7,
        -5.1e-7,
        -1e-6,
        -1.5e-6,
        -2.5e-6,
        -99e-6,
        -1e-4,
        -9.95e-5,
    ),  # written with an exponent, or not
    *(-0.0078125, -7812.5e-6, -0.1234565, -0.1234575, -0.1234585),  # half way between two numbers of six decimals
)


def rollout(problem, sample, ids, logprobs, **changes):
    base = {"prompt_ids": (3, 14), "reward": float(sample % 2), "finish": Finish.STOP, "response": f"é {sample}"}
    own = {"problem_id": problem, "sample": sample, "response_ids": tuple(ids), "behavior_logprobs": tuple(logprobs)}
    return Rollout(**{**base, **own, **changes})


def many(num=60, seed=0):
    """Rollouts of all lengths, some equal, some cut, in no order."""
    rng = random.Random(seed)
    out = []
    for i in range(num):
        size = rng.choice([1, 2, 3, 8, 21])
        ids = [rng.choice([0, 7, 999, 1000, 1001, 31_000, 151_935]) for _ in range(size)] if i % 5 else [5] * 2
        changes = {"finish": Finish.LENGTH, "reward": 0.0} if i % 7 == 0 else {}
        logprobs = [-rng.expovariate(1) * 10 ** -rng.randrange(8) for _ in ids]
        out.append(rollout(f"p{i // 6}", i % 6, ids, logprobs, **changes))
    rng.shuffle(out)
    return tuple(out)


def kept(rollouts, folder):
    """The same rollouts, read from a folder."""
    return read_rollouts(write_rollouts(RolloutSet(rollouts=tuple(rollouts), provenance={}), folder, shard_rows=25))


@pytest.mark.parametrize("cut", [1, 4, 100])
@pytest.mark.parametrize(
    "logprobs",
    [ODD, tuple(x for x in ODD if not x < -99.9), (-1234.5678915, -0.5), (-1e16, -1e22, math.nan), (math.nan,) * 3],
    ids=["odd", "within", "wide", "huge", "unknown"],
)
def test_digest_from_columns_is_that_of_the_definition(logprobs, cut):
    rows = [rollout("a", 0, range(len(logprobs)), logprobs), rollout('q"\\\u2028é', 3, [999_999], [-0.25], reward=-1.5)]
    rows += many(12)
    digest = Digest()
    for begin in range(0, len(rows), cut):
        digest.update(store._table(rows[begin : begin + cut]))
    assert digest.hexdigest() == RolloutSet(rollouts=tuple(rows), provenance={}).digest


def test_digest_from_columns_of_other_ids_none_and_infinity():
    for ids in ([10**6, 4], [2**31 - 1], [-1, 0]):
        rows = [rollout("a", 0, ids, [-0.5] * len(ids))]
        digest = Digest()
        digest.update(store._table(rows))
        assert digest.hexdigest() == RolloutSet(rollouts=tuple(rows), provenance={}).digest
    digest = Digest()
    assert digest.hexdigest() == RolloutSet(rollouts=(), provenance={}).digest
    table = store._table([rollout("a", 0, [1, 2], [-0.5, -0.25])])
    infinite = pa.array([[-0.5, -math.inf]], pa.list_(pa.float64()))
    column = table.schema.get_field_index("behavior_logprobs")
    with pytest.raises(ValueError, match="JSON"):
        digest.update(table.set_column(column, table.schema.field(column), infinite))


def test_random_logprobs_are_rounded_as_python_rounds():
    rng = np.random.default_rng(0)
    values = [
        -(10.0 ** rng.uniform(-9, 3, 5000)),
        -rng.integers(0, 10**7, 5000) / 1e7,
        -rng.integers(0, 2**18, 5000) / 2**14,
    ]
    rows = [rollout("a", i, [1] * 5000, part.tolist()) for i, part in enumerate(values)]
    digest = Digest()
    digest.update(store._table(rows))
    assert digest.hexdigest() == RolloutSet(rollouts=tuple(rows), provenance={}).digest


def test_folders_of_before_are_read_and_keep_their_digest(tmp_path):
    """One row group a shard, columns as ``Table.from_pylist`` made them; the digest as it was computed then."""
    folder = write_rollouts(RolloutSet(rollouts=many(), provenance={}), tmp_path / "r")
    rows = [{name: getattr(r, name) for name in store.SCHEMA.names} for r in many()]
    table = pa.Table.from_pylist(rows, schema=store.SCHEMA)
    pq.write_table(table, folder / "rollouts-00000.parquet", compression="zstd")
    folders.amend(folder, "rollouts-00000.parquet")
    assert read_rollouts(folder).digest == "a01dd1e14ab9e916384ea60cc691d76abe8a5d713c4b948f0c826dad0ccbbf39"


@pytest.mark.parametrize("limit", [stored.IN_MEMORY, 100])
def test_rows_come_back_in_any_order_from_memory_and_from_a_file(limit, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "IN_MEMORY", limit)
    monkeypatch.setattr(store, "GROUP_ROWS", 7)
    monkeypatch.setattr(store, "GROUP_TOKENS", 40)
    given = many()
    found = kept(given, tmp_path / "r").rollouts
    assert (found.records._file is None) == (limit > 100)
    order = random.Random(1).sample(range(-len(given), len(given)), 50)
    assert [found[i] for i in order] == [given[i] for i in order]
    assert tuple(found) == given
    assert tuple(found[5:50:3]) == given[5:50:3]
    with pytest.raises(IndexError):
        found[len(given)]
    assert list(found[3:9].outline.every_key()) == [r.key for r in given[3:9]]
    whole = outline(given)
    for name in ("sample", "reward", "truncated", "prompt_tokens", "response_tokens", "known", "tokens"):
        np.testing.assert_array_equal(getattr(found.outline, name), getattr(whole, name))


def test_a_stream_is_written_as_it_comes(tmp_path):
    provenance, given = {}, many()

    def rollouts():
        yield from given
        provenance["num_asked"] = len(given)

    found = read_rollouts(write_stream(rollouts(), tmp_path / "r", provenance=provenance, shard_rows=16))
    assert found.digest == RolloutSet(rollouts=given, provenance={}).digest
    assert found.provenance == {"num_asked": 60}
    assert len(list((tmp_path / "r").glob("*.parquet"))) == 4
    with pytest.raises(DataError, match="received 61 rollouts with 60 distinct keys"):
        write_stream([*given, given[7]], tmp_path / "twice", provenance={})
    assert not (tmp_path / "twice").exists()


def test_a_row_that_no_rollout_can_be_is_refused_by_name(tmp_path):
    folder = write_rollouts(RolloutSet(rollouts=many(), provenance={}), tmp_path / "r")
    rows = pq.read_table(folder / "rollouts-00000.parquet").to_pylist()
    for name, value, says in (("response_ids", [], "at least one token"), ("reward", math.nan, "a finite number")):
        bad = [*rows[:9], {**rows[9], name: value}]
        pq.write_table(pa.Table.from_pylist(bad, schema=store.SCHEMA), folder / "rollouts-00000.parquet")
        folders.amend(folder, "rollouts-00000.parquet")
        with pytest.raises(DataError, match=f"'{rows[9]['problem_id']}' sample {rows[9]['sample']}: .*{says}"):
            read_rollouts(folder)


def test_selections_and_other_rewards_do_not_need_the_rows_in_memory(tmp_path):
    given = RolloutSet(rollouts=many(), provenance={})
    found = kept(given.rollouts, tmp_path / "r")
    for choose in (select.correct, select.distinct, lambda s: select.rows(s, 11, seed=3)):
        chosen = choose(found)
        assert chosen == choose(given)
        taken = select.take(found, chosen)
        assert isinstance(taken.rollouts, stored.StoredRollouts)
        assert tuple(taken.rollouts) == select.take(given, chosen).rollouts
        assert taken.digest == select.take(given, chosen).digest
    assert len(select.distinct(given).indices) < 60
    for rule in select.PAIR_RULES:
        assert select.pairs(found, rule, seed=1) == select.pairs(given, rule, seed=1)
    for rule in ("mirror", "shuffled"):
        other, expected = relabelled(found, rule, seed=2), relabelled(given, rule, seed=2)
        assert isinstance(other.rollouts, stored.StoredRollouts)
        assert tuple(other.rollouts) == expected.rollouts
        assert other.digest == expected.digest != given.digest
    assert found.groups == given.groups


@pytest.mark.parametrize(
    ("objective", "changes"),
    [
        ("sft", {"selection": "correct", "max_length": 12}),
        ("sft", {"selection": "distinct", "max_items": 20}),
        ("sft", {"selection": "paired", "right_share": 0.5}),
        ("offline_grpo:krafton", {"rewards": "shuffled"}),
        ("dpo", {"pairs": "all", "max_items": 9}),
    ],
)
def test_an_epoch_of_rows_on_disk_is_that_of_rows_in_memory(objective, changes, tmp_path):
    given = RolloutSet(rollouts=many(), provenance={})
    row, config = find(objective), TrainConfig(learning_rate=1e-3, batch_size=4, num_steps=12, **changes)
    scores = {"reference_logprobs": [[-0.5] * len(r.response_ids) for r in given.rollouts]}
    scores = {name: value for name, value in scores.items() if name in inputs(row)}
    names = (*inputs(row), "behavior_logprobs", "rewards")
    sides = []
    for rollouts in (given, kept(given.rollouts, tmp_path / "r")):
        prepared = prepare(config, row, rollouts, scores, context=None)
        steps = list(plan(prepared.data.keys, batch_size=4, num_steps=12, seed=1))
        cuts = [cut for items in steps for cut in micro_batches(prepared.data, items, token_budget=64)]
        sides.append((prepared, steps, [collate(prepared.data, cut, names) for cut in cuts]))
    (first, steps, batches), (second, other_steps, others) = sides
    assert first.facts == second.facts
    assert records.digest_of(first.selection) == records.digest_of(second.selection)
    assert steps == other_steps
    for a, b in zip(batches, others, strict=True):
        for name in ("ids", "lengths", "mask", "row_index"):
            assert torch.equal(getattr(a, name), getattr(b, name))
        assert a.inputs.keys() == b.inputs.keys()
        assert all(torch.equal(a.inputs[name], b.inputs[name]) for name in a.inputs)


MEMORY = """
import sys
from pathlib import Path
from limbeck.batches.collate import collate, micro_batches, plan
from limbeck.config import TrainConfig
from limbeck.objectives import find
from limbeck.rollouts import stored
from limbeck.rollouts.store import read_rollouts, write_stream
from limbeck.train.data import prepare
from limbeck.types import Finish, Rollout

stored.IN_MEMORY = 2**20

def peak():
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

def rows(num):
    for i in range(num):
        ids = tuple(range(1000 + i, 1040 + i))
        yield Rollout(
            problem_id=f"p{i // 8}", sample=i % 8, prompt_ids=(1, 2), response_ids=ids,
            behavior_logprobs=tuple([-x / (i + 1) for x in ids]), reward=i % 3 / 2, finish=Finish.STOP, response="",
        )

def job(num, out):
    rollout_set = read_rollouts(write_stream(rows(num), out, provenance={}))
    config = TrainConfig(learning_rate=1e-3, batch_size=64, num_steps=num // 64)
    data = prepare(config, find("offline_grpo:krafton"), rollout_set, {}, context=None).data
    for items in plan(data.keys, batch_size=64, num_steps=num // 64, seed=0):
        for cut in micro_batches(data, items, token_budget=8192):
            collate(data, cut, ("advantages", "behavior_logprobs"))
    return rollout_set

job(2_000, Path(sys.argv[1]) / "few")
few = peak()
many = job(50_000, Path(sys.argv[1]) / "many")
grown = peak() - few
held = tuple(many.rollouts)
print(grown, peak() - few - grown)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from Linux's /proc")
def test_memory_does_not_grow_with_rows(tmp_path):
    """Written, read, credited and collated: 25 times the rows. To hold them all is the control."""
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    grown, held = map(float, done.stdout.split())
    assert held > 100
    assert grown < 40

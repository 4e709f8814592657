"""Rollouts come back as they were written, and changed ones are recognised."""

from __future__ import annotations

import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.errors import DataError, FolderError, ProvenanceError
from limbeck.folders import amend
from limbeck.rollouts.store import read_rollouts, write_rollouts
from limbeck.types import Finish, Rollout, RolloutSet


def rollout(problem="p0", sample=0, reward=1.0, ids=(5, 6), **changes):
    base = {
        "problem_id": problem,
        "sample": sample,
        "prompt_ids": (1, 2, 3),
        "response_ids": tuple(ids),
        "behavior_logprobs": (math.nan, -0.1234565)[: len(ids)] + (-0.5,) * (len(ids) - 2),
        "reward": reward,
        "finish": Finish.STOP,
        "response": "4 \u2028 \ud800 <script>",
    }
    return Rollout(**{**base, **changes})


def rollout_set(num=5):
    rollouts = tuple(rollout(f"p{i // 2}", i % 2, reward=i % 2 * 1.0, ids=(7, 8, i)) for i in range(num))
    return RolloutSet(rollouts=rollouts, provenance={"model": "m", "seed": 3})


@pytest.mark.parametrize("num", [0, 1, 5, 6])
def test_round_trip_over_shards(tmp_path, num):
    written = rollout_set(num)
    write_rollouts(written, tmp_path / "r", shard_rows=2)
    assert len(list((tmp_path / "r").glob("*.parquet"))) == max(1, math.ceil(num / 2))
    back = read_rollouts(tmp_path / "r")
    assert back.digest == written.digest
    assert back.provenance == {"model": "m", "seed": 3}
    assert [r.key for r in back.rollouts] == [r.key for r in written.rollouts]
    assert all(r.response == "4 \u2028 ? <script>" for r in back.rollouts)
    assert all(math.isnan(r.behavior_logprobs[0]) for r in back.rollouts)


def test_logprobs_survive_to_the_last_bit(tmp_path):
    values = tuple(-math.pi * 10.0**-k for k in range(12))
    one = RolloutSet(rollouts=(rollout(ids=range(12), behavior_logprobs=values),), provenance={})
    write_rollouts(one, tmp_path / "r")
    assert read_rollouts(tmp_path / "r").rollouts[0].behavior_logprobs == values


def test_changed_and_lost_content_is_refused(tmp_path):
    write_rollouts(rollout_set(6), tmp_path / "r", shard_rows=2)
    shard = tmp_path / "r/rollouts-00001.parquet"
    table = pq.read_table(shard)
    rewards = pa.array([1.0, 1.0])
    pq.write_table(table.set_column(table.column_names.index("reward"), table.schema.field("reward"), rewards), shard)
    with pytest.raises(ProvenanceError, match=r"rollouts-00001.parquet must match its manifest's digest"):
        read_rollouts(tmp_path / "r")
    amend(tmp_path / "r", shard.name)  # who changes the file's digest too is found by the rows' own
    with pytest.raises(ProvenanceError, match=r"must match their manifest's digest .* \(6 of 6 rows\)"):
        read_rollouts(tmp_path / "r")
    pq.write_table(table, shard)
    amend(tmp_path / "r", shard.name)
    read_rollouts(tmp_path / "r")
    shard.unlink()
    with pytest.raises(ProvenanceError, match=r"\(4 of 6 rows\)"):
        read_rollouts(tmp_path / "r")


def test_garbage_shard_and_wrong_folder(tmp_path):
    write_rollouts(rollout_set(2), tmp_path / "r")
    (tmp_path / "r/rollouts-00000.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    amend(tmp_path / "r", "rollouts-00000.parquet")
    with pytest.raises(DataError, match="must be a Parquet shard"):
        read_rollouts(tmp_path / "r")
    with pytest.raises(FolderError, match="existing folder"):
        read_rollouts(tmp_path / "absent")


def test_existing_folder_is_refused_and_bad_ids_too(tmp_path):
    write_rollouts(rollout_set(2), tmp_path / "r")
    with pytest.raises(FolderError, match="--overwrite"):
        write_rollouts(rollout_set(3), tmp_path / "r")
    write_rollouts(rollout_set(3), tmp_path / "r", overwrite=True)
    assert len(read_rollouts(tmp_path / "r")) == 3
    bad = RolloutSet(rollouts=(rollout("p\ud800"),), provenance={})
    with pytest.raises(DataError, match="valid Unicode"):
        write_rollouts(bad, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()

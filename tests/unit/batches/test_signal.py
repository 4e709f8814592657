"""The token signal as data: equals its definition, refuses silence, floors and counts, chooses a twin by its drift."""

from __future__ import annotations

import math

import numpy as np
import pytest
from typer.testing import CliRunner

from limbeck import cli
from limbeck.batches.score import read_scores, score_rollouts, write_scores
from limbeck.batches.signal import SignalConfig, Teacher, make_signal, write_signal
from limbeck.config import RunConfig, TrainConfig
from limbeck.errors import DegenerateError, FolderError
from limbeck.evals.apply import applied
from limbeck.geometry.adapters import read_adapter
from limbeck.records import read_json
from limbeck.rollouts.store import write_rollouts
from limbeck.train.run import train

from ..train.toy import tiny_model, tiny_rollouts

GIVEN = tiny_rollouts(groups=4)
RNG = np.random.default_rng(0)
NONE = SignalConfig()


def scores(shift: float = 0.0, noise: float = 0.5) -> list[list[float]]:
    return [[float(-2 + shift + noise * RNG.normal()) for _ in r.response_ids] for r in GIVEN.rollouts]


BASE, STRONG, WEAK = scores(), scores(), scores(noise=0.2)


def flat(rows) -> np.ndarray:
    return np.array([x for row in rows for x in row])


def test_one_teacher_gives_the_clamped_log_ratio():
    made = make_signal(GIVEN, [Teacher("t", STRONG, {"base": BASE})], BASE, SignalConfig(limit=0.6))
    raw = flat(STRONG) - flat(BASE)
    np.testing.assert_allclose(flat(made.rows), np.clip(raw, -0.6, 0.6), rtol=1e-12)
    (told,) = made.facts["teachers"]
    assert told["clamped_share"] == pytest.approx(np.mean(np.abs(raw) > 0.6))
    assert told["drift"] == pytest.approx(np.mean(np.exp(raw) - raw - 1))
    assert [len(row) for row in made.rows] == [len(r.response_ids) for r in GIVEN.rollouts]


def test_length_and_scale():
    made = make_signal(GIVEN, [Teacher("t", STRONG, {"base": BASE})], BASE, SignalConfig(scale="std", length="inverse"))
    raw = flat(STRONG) - flat(BASE)
    lengths = np.repeat([len(r) for r in STRONG], [len(r) for r in STRONG])
    np.testing.assert_allclose(flat(made.rows), np.clip(raw / raw.std(), -5, 5) / lengths, rtol=1e-9)


def test_several_teachers_are_each_divided_by_their_own_spread():
    teachers = [Teacher("a", STRONG, {"base": BASE}), Teacher("b", WEAK, {"base": BASE})]
    one, other = (flat(s) - flat(BASE) for s in (STRONG, WEAK))
    mean = (np.clip(one / one.std(), -5, 5) + np.clip(other / other.std(), -5, 5)) / 2
    np.testing.assert_allclose(flat(make_signal(GIVEN, teachers, BASE, NONE).rows), mean, rtol=1e-9)
    agreed = make_signal(GIVEN, teachers, BASE, SignalConfig(combine="agree")).rows
    np.testing.assert_allclose(flat(agreed), np.where(one * other >= 0, mean, 0), rtol=1e-9)


def test_a_teacher_equal_to_its_contrast_is_refused_in_words():
    near = [[x + 1e-6 for x in row] for row in BASE]
    with pytest.raises(
        DegenerateError, match=r"received extreme and base, equal to within 0.0001 nats on every one of"
    ):
        make_signal(GIVEN, [Teacher("extreme", near, {"base": BASE})], BASE, NONE)
    opposed = [[2 * b - s for b, s in zip(*rows, strict=True)] for rows in zip(BASE, STRONG, strict=True)]
    teachers = [Teacher("a", STRONG, {"base": BASE}), Teacher("b", opposed, {"base": BASE})]
    with pytest.raises(DegenerateError, match="signs agree on none of them"):
        make_signal(GIVEN, teachers, BASE, SignalConfig(combine="agree"))


def test_probability_zero_is_floored_and_counted_and_unknown_scores_are_silent():
    twin = [list(row) for row in BASE]
    twin[0][0] = -math.inf
    own = [list(row) for row in STRONG]
    own[1] = [math.nan] * len(own[1])
    made = make_signal(GIVEN, [Teacher("t", own, {"u": twin})], BASE, NONE)
    assert made.rows[0][0] == 5  # -20 nats below, clamped
    assert not any(made.rows[1])
    assert made.facts["teachers"][0]["contrast_floored"] == 1


def test_a_twin_that_drifted_otherwise_gives_way_to_the_checkpoint_nearest_in_drift():
    far, near = scores(noise=3.0), scores()
    matched = Teacher("t", STRONG, {"u@8": near, "u@4": far})
    assert make_signal(GIVEN, [matched], BASE, NONE).facts["teachers"][0]["contrast"] == "u@8"
    other = make_signal(GIVEN, [Teacher("t", STRONG, {"u@8": far, "u@4": near})], BASE, NONE)
    assert other.facts["teachers"][0]["contrast"] == "u@4"
    np.testing.assert_allclose(flat(other.rows), np.clip(flat(STRONG) - flat(near), -5, 5), rtol=1e-9)


def test_agreement_counts_pairs_of_right_and_wrong():
    right = [[float(r.reward > 0)] * len(r.response_ids) for r in GIVEN.rollouts]
    zeros = [[0.0] * len(row) for row in right]
    assert make_signal(GIVEN, [Teacher("t", right, {"z": zeros})], None, NONE).facts["agreement"] == 1
    assert make_signal(GIVEN, [Teacher("t", zeros, {"z": right})], None, NONE).facts["agreement"] == 0


def test_the_verb_writes_what_the_function_makes(tmp_path):
    write_rollouts(GIVEN, tmp_path / "rollouts")
    for name, given in (("strong", STRONG), ("base", BASE)):
        write_scores(tmp_path / name, GIVEN, given, model_digest=name)
    where = {"rollouts": "rollouts", "teacher": "strong", "contrast": "base", "out": "made"}
    options = [part for option, name in where.items() for part in (f"--{option}", str(tmp_path / name))]
    result = CliRunner().invoke(cli.app, ["signal", *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    made = make_signal(GIVEN, [Teacher("strong", STRONG, {"base": BASE})], None, NONE)
    np.testing.assert_allclose(
        flat(read_scores(tmp_path / "made", GIVEN, kind="signal")), flat(made.rows), rtol=1e-5, atol=1e-6
    )
    assert read_json(tmp_path / "made" / "signal.json")["teachers"][0]["contrast"] == "base"
    with pytest.raises(FolderError, match="must be a logprobs folder, received one of kind 'signal'"):
        read_scores(tmp_path / "made", GIVEN)
    assert write_signal(tmp_path / "again", GIVEN, made).is_dir()


TRAIN = TrainConfig(num_steps=2, keep=(1,), batch_size=4, warmup_fraction=0.0, schedule="constant")


def test_runs_and_kept_steps_are_scored_like_models(tmp_path):
    given = tmp_path / "rollouts"
    write_rollouts(GIVEN, given)
    tiny_model().save_pretrained(tmp_path / "base")
    config = RunConfig(base=str(tmp_path / "base"), rollouts=str(given), train=TRAIN)
    run = train(config, tmp_path / "run")
    found = []
    for name, model in (("base", "base"), ("kept", "run/kept/step-000001"), ("end", "run")):
        options = ["--model", str(tmp_path / model), "--rollouts", str(given), "--out", str(tmp_path / name / "scores")]
        result = CliRunner().invoke(cli.app, ["score", *options], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        found.append(flat(read_scores(tmp_path / name / "scores", GIVEN)))
    with applied(tiny_model(), read_adapter(run)) as tuned:
        np.testing.assert_allclose(found[2], flat(score_rollouts(tuned, GIVEN.rollouts)), rtol=1e-4, atol=1e-5)
    assert np.abs(found[2] - found[1]).max() > 1e-4
    assert np.abs(found[1] - found[0]).max() > 1e-4

"""Rollouts before training: sizes, endings, rewards, and what groups have to say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from limbeck.config import TrainConfig
from limbeck.doctor.finding import Finding
from limbeck.problems.extract import THINK_TAG
from limbeck.problems.prompts import template_digest
from limbeck.rollouts.importing import import_rollouts
from limbeck.rollouts.store import read_rollouts
from limbeck.types import Finish, Outline, Rollout, RolloutSet, is_right

found = partial(Finding, about="rollouts")
LONGEST = 3  # rows that are named
TRUNCATED_SHARE = 0.1  # from which on it is worth a note
QUANTILES = {"smallest": 0.0, "half": 0.5, "90 %": 0.9, "99 %": 0.99, "largest": 1.0}


class Reader(NamedTuple):
    """What reads the rollouts: a tokenizer, its end ids, the ids that the model has rows for, and its longest row."""

    tokenizer: PreTrainedTokenizerBase
    stops: tuple[int, ...]
    num_ids: int
    context: int | None
    opens_thinking: bool


def read_any(path: Path, tokenizer: PreTrainedTokenizerBase) -> RolloutSet:
    """A rollouts folder, or a file as `limbeck import` reads it; rows beyond the context stay in, to be counted.

    Raises:
        LimbeckError: what cannot be read, with file and line.
    """
    return read_rollouts(path) if (path / "manifest.json").is_file() else import_rollouts(path, tokenizer)


def examine_rollouts(rollout_set: RolloutSet, reader: Reader, config: TrainConfig) -> list[Finding]:
    """Everything about the rows themselves; what objectives make of them is another section."""
    rollouts = rollout_set.rollouts
    return [
        _rows(rollout_set),
        _tokens(rollout_set.outline),
        _lengths(rollout_set.outline, reader.context, config.max_length),
        _ids(rollouts, reader.num_ids),
        _template(rollout_set, reader),
        _truncated(rollout_set),
        _ends(rollouts, reader.stops),
        _rewards(rollout_set),
        _groups(rollout_set),
        _logprobs(rollout_set),
    ]


def _rows(rollout_set: RolloutSet) -> Finding:
    sizes = Counter(len(rows) for rows in rollout_set.groups.values())
    spread = f"{min(sizes)}" if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"
    facts = {
        "rows": len(rollout_set),
        "groups": len(rollout_set.groups),
        "group_sizes": {str(k): n for k, n in sorted(sizes.items())},
    }
    says = f"{len(rollout_set)} of {len(rollout_set.groups)} problems, {spread} each"
    if max(sizes) > 1:
        return found(name="rows", says=says, facts=facts)
    remedy = "Where several answers are of one problem, give them one problem_id. Else sample more of each for pairs and credit."
    return found(name="rows", level="note", says=says, remedy=remedy, facts=facts)


def _tokens(outline: Outline) -> Finding:
    counts = outline.response_tokens
    facts = {name: int(np.quantile(counts, q, method="higher")) for name, q in QUANTILES.items()}
    says = "; ".join(f"{name} {value}" for name, value in facts.items())
    return found(name="trainable tokens a row", says=says, facts={**facts, "all": int(counts.sum())})


def _lengths(outline: Outline, context: int | None, max_length: int | None) -> Finding:
    limit = min((x for x in (context, max_length) if x), default=None)
    longest = np.argsort(-outline.tokens, kind="stable")[:LONGEST]
    told = [[*outline.key(row), int(outline.tokens[row])] for row in longest]
    named = ", ".join(f"{length} ({problem} / {sample})" for problem, sample, length in told)
    beyond = 0 if limit is None else int((outline.tokens > limit).sum())
    facts = {
        "longest": told,
        "context": context,
        "limit": limit,
        "beyond": beyond,
    }
    allowed = "the model's config names no longest row" if limit is None else f"{limit} are allowed"
    if not beyond:
        return found(name="longest rows", says=f"{named} tokens; {allowed}", facts=facts)
    return found(
        name="longest rows", level="problem" if beyond == len(outline) else "note", facts=facts,
        says=f"{beyond} of {len(outline)} rows are longer than the {limit} tokens allowed and will be dropped: {named}",
        remedy="Raise train.max_length, where that is the limit; else take a model with a longer context or shorter responses.",
    )  # fmt: skip


def _ids(rollouts: Sequence[Rollout], num_ids: int) -> Finding:
    largest = max(max(max(r.prompt_ids), max(r.response_ids)) for r in rollouts)
    facts = {"largest_id": largest, "embedding_rows": num_ids}
    if largest < num_ids:
        return found(name="ids", says=f"up to {largest}, the model has {num_ids}", facts=facts)
    return found(
        name="ids", level="problem", says=f"up to {largest}, but the model has only {num_ids}", facts=facts,
        remedy="These rollouts were made with another tokenizer: import their text again with this model.",
    )  # fmt: skip


def _template(rollout_set: RolloutSet, reader: Reader) -> Finding:
    made = rollout_set.provenance.get("template_digest")
    own = template_digest(reader.tokenizer)
    twice = sum(_opens(r.response) for r in rollout_set.rollouts) if reader.opens_thinking else 0
    facts = {"template_digest": made, "model_template_digest": own, "opened_twice": twice}
    if twice:
        return found(
            name="template", level="note", facts=facts,
            says=f"{twice} responses open a thinking block that the prompt has opened already",
            remedy="Take the opening tag off those responses; the template writes it.",
        )  # fmt: skip
    if made is None:
        return found(
            name="template", level="note", says="the folder does not say which template the prompts were made with", facts=facts,
            remedy="Import the text again, or make sure that prompts end as this model's template does.",
        )  # fmt: skip
    if made != own:
        return found(
            name="template", level="note", says="prompts were made with another chat template than this model's", facts=facts,
            remedy="Evaluate with the template that the rollouts have, or import their text again with this model.",
        )  # fmt: skip
    return found(name="template", says="prompts were made with this model's template", facts=facts)


def _opens(response: str) -> bool:
    tag = THINK_TAG.match(response.lstrip())
    return tag is not None and not (tag[1] or tag[2])


def _truncated(rollout_set: RolloutSet) -> Finding:
    num, cut = len(rollout_set), int(rollout_set.outline.truncated.sum())
    assumed = str(rollout_set.provenance.get("finish", "")).startswith("assumed")
    facts = {"truncated": cut, "share": cut / num, "assumed": assumed}
    says = f"{cut} of {num} rows were cut by the length limit ({cut / num:.1%})"
    remedies = []
    if assumed:
        says += "; the file does not say how all of them ended, and those count as stopped"
        remedies.append('Add the column "finish" with "stop" or "length".')
    if cut / num > TRUNCATED_SHARE:
        remedies.append(
            "Cut rows have no end to learn from and mostly count as wrong: sample with a higher max_new_tokens."
        )
    level = "note" if remedies else "ok"
    return found(name="truncated", level=level, says=says, remedy=" ".join(remedies), facts=facts)


def _ends(rollouts: Sequence[Rollout], stops: Sequence[int]) -> Finding:
    stopped = [r for r in rollouts if r.finish == Finish.STOP]
    num = sum(r.response_ids[-1] not in stops for r in stopped)
    facts = {"stopped": len(stopped), "without_end": num, "stops": list(stops)}
    if not num:
        return found(
            name="ends", says=f"all {len(stopped)} that stopped end in an end token of this model", facts=facts
        )
    return found(
        name="ends", level="note", says=f"{num} of {len(stopped)} that stopped end in no end token of this model", facts=facts,
        remedy="They do not teach the student to end: import their text again with this model.",
    )  # fmt: skip


def _rewards(rollout_set: RolloutSet) -> Finding:
    rewards = rollout_set.outline.reward.tolist()
    right = sum(map(is_right, rewards)) / len(rewards)
    how = str(rollout_set.provenance.get("rewards", "given"))
    facts = {"right_share": right, "smallest": min(rewards), "largest": max(rewards), "how": how}
    if how.startswith("assumed"):
        return found(
            name="rewards", level="note", says=f"missing for all {len(rewards)} rows, which count as right", facts=facts,
            remedy='Right for demonstrations. Else add a column "reward", or "answer" to be graded by.',
        )  # fmt: skip
    if min(rewards) == max(rewards):
        return found(
            name="rewards", level="note", says=f"{rewards[0]:g} for every row", facts=facts,
            remedy="There is nothing to tell right from wrong by: check the grading, or keep to objectives that read no rewards.",
        )  # fmt: skip
    return found(
        name="rewards", says=f"{right:.1%} right, from {min(rewards):g} to {max(rewards):g}, {how}", facts=facts
    )


def _groups(rollout_set: RolloutSet) -> Finding:
    kinds = Counter(
        "mixed" if 0 < right < len(rows) else "all_right" if right else "all_wrong"
        for rows in rollout_set.groups.values()
        for right in [sum(is_right(float(rollout_set.outline.reward[i])) for i in rows)]
    )
    num = len(rollout_set.groups)
    facts = {name: kinds[name] for name in ("mixed", "all_right", "all_wrong")} | {"share": kinds["mixed"] / num}
    says = f"{kinds['mixed']} of {num} ({kinds['mixed'] / num:.1%}); "
    says += f"{kinds['all_right']} all right, {kinds['all_wrong']} all wrong"
    if kinds["mixed"]:
        return found(name="mixed groups", says=says, facts=facts)
    return found(
        name="mixed groups", level="note", says=says, facts=facts,
        remedy="Pairs and group-relative credit learn from problems with right and wrong answers: sample more of each, or "
        "problems of another difficulty.",
    )  # fmt: skip


def _logprobs(rollout_set: RolloutSet) -> Finding:
    have = int(rollout_set.outline.known.sum())
    temperature = rollout_set.provenance.get("sampling_temperature", 1.0)
    facts = {"with": have, "without": len(rollout_set) - have, "sampling_temperature": temperature}
    says = f"{have} of {len(rollout_set)} rows have their sampler's, at temperature {temperature}"
    if have == len(rollout_set) and temperature == 1.0:
        return found(name="log-probs", says=says, facts=facts)
    return found(
        name="log-probs", level="note", says=says, facts=facts,
        remedy="Objectives with a ratio need all of them at temperature 1: score the rollouts with the model that wrote them "
        "(limbeck score).",
    )  # fmt: skip

"""Tokenizer, template and end tokens of a model, and whether a teacher means the same by an id."""

from __future__ import annotations

from functools import partial
from typing import Any

import jinja2
from transformers import AutoConfig, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from limbeck.doctor.finding import Finding
from limbeck.errors import LimbeckError, ModelError
from limbeck.objectives.vocabulary import check_same_map
from limbeck.problems.extract import opens_thinking
from limbeck.problems.prompts import stop_ids, turn_end
from limbeck.train.models import foreign, load_tokenizer, model_folder

found = partial(Finding, about="tokenizer")
VOCABULARIES = ("tokenizer.json", "*.model", "vocab*", "*.tiktoken")


def config_of(model: str) -> PretrainedConfig:
    """A model's config, from its folder alone."""
    folder = model_folder(model)
    with foreign(f"{folder / 'config.json'} must be a configuration of transformers"):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def generation_of(model: str) -> GenerationConfig | None:
    """The generation config beside a model, if there is one.

    Raises:
        ModelError: there is one that cannot be read.
    """
    folder = model_folder(model)
    if not (folder / "generation_config.json").is_file():
        return None
    with foreign(f"{folder / 'generation_config.json'} must be readable"):
        return GenerationConfig.from_pretrained(folder, local_files_only=True)


def examine_tokenizer(model: str, teacher: str | None) -> tuple[list[Finding], PreTrainedTokenizerBase | None]:
    """What a model reads and where its answers end; the tokenizer itself where it loads."""
    try:
        tokenizer = _loaded(model)
    except LimbeckError as error:
        remedy = "Copy the tokenizer's files of the model that this one was made from into its folder."
        return [found(name="loads", level="problem", says=str(error), remedy=remedy)], None
    try:
        findings = [
            _vocabulary(tokenizer, config_of(model)),
            _template(tokenizer),
            _pad(tokenizer),
            _ends(model, tokenizer),
        ]
    except jinja2.TemplateError as error:
        remedy = "Mend chat_template.jinja: a prompt is one user turn, a demonstration a user's and an assistant's."
        return [found(name="chat template", level="problem", says=str(error), remedy=remedy)], None
    return findings + (_beside_teacher(model, tokenizer, teacher) if teacher else []), tokenizer


def _loaded(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer, from files that hold a vocabulary: without any, transformers makes one of a single token."""
    folder = model_folder(model)
    if not any(path for pattern in VOCABULARIES for path in folder.glob(pattern)):
        raise ModelError(f"{folder} must hold a tokenizer's vocabulary ({', '.join(VOCABULARIES)}), received none.")
    return load_tokenizer(model)


def rows_of(config: PretrainedConfig) -> int:
    """Rows of the embedding: the ids that a model can read."""
    return int(config.get_text_config().vocab_size)


def _vocabulary(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> Finding:
    ids, rows = max(tokenizer.get_vocab().values()) + 1, rows_of(config)
    facts = {"ids": ids, "embedding_rows": rows}
    if ids > rows:
        return found(
            name="vocabulary", level="problem", facts=facts,
            says=f"ids up to {ids - 1}, but the model's embedding has {rows} rows",
            remedy="Take the tokenizer that belongs to these weights, or load the model, call "
            f"resize_token_embeddings({ids}) and save it.",
        )  # fmt: skip
    spare = f", {rows - ids} rows of padding" if rows > ids else ""
    return found(name="vocabulary", says=f"{ids} ids, {rows} embedding rows{spare}", facts=facts)


def thinks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template opens a thinking block before the answer."""
    if not tokenizer.chat_template:
        return False
    turn = [{"role": "user", "content": "q"}]
    return opens_thinking(str(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)))


def _template(tokenizer: PreTrainedTokenizerBase) -> Finding:
    if not tokenizer.chat_template:
        return found(
            name="chat template", level="note", facts={"template": False},
            says="none: a prompt is its text and a newline",
            remedy="Right for a base model. Where the model was trained on turns, add its chat_template.jinja.",
        )  # fmt: skip
    facts = {"template": True, "opens_thinking": thinks(tokenizer)}
    if facts["opens_thinking"]:
        return found(
            name="chat template", level="note", says="there, and opens a thinking block before the answer",
            remedy="Rollouts must begin inside the thinking: no opening tag of their own, but a closing one.", facts=facts,
        )  # fmt: skip
    return found(name="chat template", says="there, opens no thinking block", facts=facts)


def _pad(tokenizer: PreTrainedTokenizerBase) -> Finding:
    pad, end = tokenizer.pad_token, tokenizer.eos_token
    says = "none" if pad is None else f"{pad!r}, the end-of-sequence token too" if pad == end else f"{pad!r}"
    facts = {"pad_token": pad, "pad_is_eos": pad is not None and pad == end}
    if facts["pad_is_eos"]:
        return found(
            name="pad", level="note", says=says, facts=facts,
            remedy="Nothing to do here: rows are masked by length and their end is trained. Programs that mask by this id "
            "would not train it; give them another pad token.",
        )  # fmt: skip
    return found(name="pad", says=f"{says}; rows are padded by length, not by id", facts=facts)


def _ends(model: str, tokenizer: PreTrainedTokenizerBase) -> Finding:
    """The token that closes a written answer, and whether those who generate stop at it."""
    try:
        end, listed = turn_end(tokenizer), listed_ends(generation_of(model))
    except ModelError as error:
        remedy = "Set eos_token in tokenizer_config.json, and the same id as eos_token_id in generation_config.json."
        return found(name="end", level="problem", says=str(error), remedy=remedy)
    rows = rows_of(config_of(model))
    unknown = [i for i in listed if not 0 <= i < rows]
    says = f"{_words(tokenizer, [end])} closes a turn"
    facts = {"turn_end": end, "eos_token_id": tokenizer.eos_token_id, "generation_eos": listed}
    if not unknown and end in listed:
        return found(name="end", says=f"{says}, and the generation config stops at it", facts=facts)
    ends = sorted({end, *listed}.difference(unknown))
    remedy = f'Other programs would read on where a student was trained to end: set "eos_token_id": {ends} in '
    remedy += "generation_config.json."
    if not listed:
        says += "; no generation config names an end"
        return found(name="end", level="note", says=says, remedy=remedy, facts=facts)
    if unknown:
        says += f", but the generation config names {unknown}, which are no ids of the model"
    else:
        says += f", but the generation config stops at {_words(tokenizer, listed)} only"
    return found(name="end", level="problem", says=says, remedy=remedy, facts=facts)


def listed_ends(generation: GenerationConfig | None) -> list[int]:
    """End ids of a generation config; none where it has none."""
    ends: Any = None if generation is None else generation.eos_token_id
    return list(ends) if isinstance(ends, list) else [] if ends is None else [int(ends)]


def _words(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return ", ".join(f"{tokenizer.convert_ids_to_tokens(i)!r} ({i})" for i in ids)


def _beside_teacher(model: str, tokenizer: PreTrainedTokenizerBase, teacher: str) -> list[Finding]:
    try:
        other = _loaded(teacher)
        return [_same_map(tokenizer, other, model, teacher), _same_ends(tokenizer, other, model, teacher)]
    except (LimbeckError, jinja2.TemplateError) as error:
        remedy = "Give a folder with the teacher's weights and its whole tokenizer."
        return [found(name="teacher", level="problem", says=str(error), remedy=remedy)]


def _same_map(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, model: str, teacher: str) -> Finding:
    name, own, theirs = "teacher's vocabulary", tokenizer.get_vocab(), other.get_vocab()
    same = sum(theirs.get(token) == number for token, number in own.items())
    widths = [rows_of(config_of(which)) for which in (model, teacher)]
    facts = {"tokens": len(own), "teacher_tokens": len(theirs), "same": same, "widths": widths}
    try:
        check_same_map(own, theirs)
    except ModelError as error:
        return found(
            name=name, level="problem", facts=facts,
            says=f"{same} of {len(own)} tokens have the same id: {error}",
            remedy="Its scores and logits would be of other words. Take a teacher with the student's tokenizer, or sample "
            "answers from this one and train on their text.",
        )  # fmt: skip
    says = f"the same id for each of {len(own)} tokens"
    if widths[0] != widths[1]:
        says += f"; heads of {widths[0]} and {widths[1]} rows are cut to {max(own.values()) + 1}"
    return found(name=name, says=says, facts=facts)


def _same_ends(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, model: str, teacher: str) -> Finding:
    own, theirs = stop_ids(tokenizer, generation_of(model)), stop_ids(other, generation_of(teacher))
    facts = {"own": list(own), "teacher": list(theirs)}
    if own[0] == theirs[0]:
        return found(name="teacher's end", says="both close a turn with the same id", facts=facts)
    return found(
        name="teacher's end", level="problem", facts=facts,
        says=f"the student closes a turn with {own[0]}, the teacher with {theirs[0]}: a teacher that goes on where the "
        "student ends teaches it not to end",
        remedy="Take a teacher with the student's template, or give the student the teacher's chat template.",
    )  # fmt: skip

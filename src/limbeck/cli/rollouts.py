"""Verbs that make, bring in and score rollouts: sample, import, score."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli.options import (
    Api,
    Concurrency,
    FieldNames,
    Format,
    Out,
    Overwrite,
    Patience,
    Servers,
    Template,
    Timeout,
    Tokenizer,
    app,
)


@app.command()
def sample(
    model: Annotated[str, typer.Option(help="Who answers: a local folder, `abacus:teacher`, or the --server's name.")],
    problems: Annotated[str, typer.Option(help="A data file or folder, `folder:split`, or `abacus:train`.")],
    out: Out,
    samples: Annotated[int, typer.Option(min=1, help="Rollouts a problem.")] = 4,
    num: Annotated[int | None, typer.Option(min=1, help="Use the first so many problems.")] = None,
    file_format: Format = "jsonl",
    field_names: FieldNames = "",
    template: Template = "",
    sampling_temperature: Annotated[float, typer.Option(min=1e-6, help="Divides the logits.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    seed: int = 0,
    server: Servers = None,
    tokenizer: Tokenizer = None,
    api: Api = "auto",
    concurrency: Concurrency = 32,
    timeout: Timeout = 600.0,
    patience: Patience = 600.0,
    require_logprobs: Annotated[bool, typer.Option(help="With --server: refuse answers without log-probs.")] = False,
    tempered_logprobs: Annotated[bool, typer.Option(help="With --server: log-probs are after temperature.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Model and problems to graded rollouts; the model may be behind a server (key in LIMBECK_API_KEY)."""
    from limbeck.errors import ConfigError
    from limbeck.folders import refuse_existing
    from limbeck.progress import bar
    from limbeck.rollouts.sample import Decoding
    from limbeck.rollouts.server import Server, key_from_environment
    from limbeck.rollouts.store import write_rollouts
    from limbeck.studies.sampling import refuse_unfinished, sample_from_server, sample_rollouts
    from limbeck.train.models import load_model, load_tokenizer, model_digest
    from limbeck.worlds.named import problems_named, problems_record, read_problems

    refuse_existing(out, overwrite=overwrite)
    if bool(server) != bool(tokenizer):
        raise ConfigError("--server and --tokenizer belong together, received one of them. Give both or neither.")
    named = problems_named(problems, file_format, num, seed, field_names, template)
    picked = [problem for problem, _ in read_problems(named)]
    decoding = Decoding(sampling_temperature=sampling_temperature, max_new_tokens=max_new_tokens, seed=seed)
    if server and tokenizer:
        asked = Server(
            urls=tuple(server),
            model=model,
            api=api,
            concurrency=concurrency,
            timeout_seconds=timeout,
            patience_seconds=patience,
            require_logprobs=require_logprobs,
            tempered_logprobs=tempered_logprobs,
            api_key=key_from_environment(),
        )
        with bar("sample", len(picked) * samples) as advance:
            sample_from_server(
                asked, tokenizer, picked, decoding, out,
                samples=samples, source={"problems": problems_record(named)}, overwrite=overwrite,
                advance=advance, tell=partial(typer.echo, err=True),
            )  # fmt: skip
        typer.echo(out)
        return
    if not overwrite:
        refuse_unfinished(out)
    source = {"model": model, "model_digest": model_digest(model), "problems": problems_record(named)}
    with bar("sample", len(picked) * samples) as advance:
        rollout_set = sample_rollouts(
            load_model(model), load_tokenizer(model), picked, decoding, samples=samples, source=source, advance=advance
        )
    typer.echo(write_rollouts(rollout_set, out, overwrite=overwrite))


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="JSONL or Parquet rollouts: ours, TRL's or verl's columns.")],
    model: Annotated[str, typer.Option(help="The student, whose tokenizer and context apply.")],
    out: Out,
    overwrite: Overwrite = False,
) -> None:
    """Your own rollouts to a rollouts folder."""
    from limbeck.folders import refuse_existing
    from limbeck.studies.inputs import write_any_rollouts

    refuse_existing(out, overwrite=overwrite)
    typer.echo(write_any_rollouts(file, model, out, overwrite=overwrite))


@app.command()
def score(
    model: Annotated[str, typer.Option(help="Who scores, frozen: a model, a run, a step that it kept, or an adapter.")],
    rollouts: Annotated[Path, typer.Option(help="A rollouts folder.")],
    out: Out,
    keep: Annotated[
        str, typer.Option(help="logprobs of the tokens; hidden states and head, or the topk likeliest ids.")
    ] = "logprobs",
    dtype: Annotated[str, typer.Option(help="Of hidden states on disk: fp32, or bf16 at half the size.")] = "fp32",
    k: Annotated[int, typer.Option(min=1, help="Likeliest ids to keep with --keep topk.")] = 64,
    token_budget: Annotated[int, typer.Option(min=1, help="Padded tokens a forward pass.")] = 16384,
    server: Servers = None,
    api: Annotated[str, typer.Option(help="With --server: auto, vllm, sglang or echo.")] = "auto",
    concurrency: Concurrency = 32,
    timeout: Timeout = 600.0,
    patience: Patience = 600.0,
    overwrite: Overwrite = False,
) -> None:
    """What a frozen model says of rollouts, once, for all arms: log-probs, or whole distributions.

    The model may be behind a server, as for sample (key in LIMBECK_API_KEY); it gives log-probs only.
    """
    from limbeck.batches.distributions import write_hidden, write_likeliest
    from limbeck.batches.score import score_from_server, score_rollouts, write_scores
    from limbeck.errors import ConfigError, nearest
    from limbeck.evals.apply import applied
    from limbeck.evals.checkpoints import locate, scorer_digest
    from limbeck.folders import refuse_existing
    from limbeck.geometry.adapters import read_adapter
    from limbeck.progress import bar
    from limbeck.records import digest_of
    from limbeck.rollouts.server import Server, key_from_environment
    from limbeck.rollouts.store import read_rollouts
    from limbeck.studies.sampling import refuse_unfinished
    from limbeck.train.models import load_model, load_tokenizer

    kept = ("logprobs", "hidden", "topk")
    if keep not in kept:
        raise ConfigError(f"--keep must be one of {', '.join(kept)}, received {keep!r}. {nearest(keep, kept)}")
    if server and keep != "logprobs":
        raise ConfigError(f"with --server, --keep must be logprobs, received {keep}: a server gives no distributions.")
    refuse_existing(out, overwrite=overwrite)
    rollout_set = read_rollouts(rollouts)
    if server:
        asked = Server(
            urls=tuple(server),
            model=model,
            api=api,
            concurrency=concurrency,
            timeout_seconds=timeout,
            patience_seconds=patience,
            api_key=key_from_environment(),
        )
        with bar("score", len(rollout_set)) as advance:
            tell = partial(typer.echo, err=True)
            score_from_server(asked, rollout_set, out, overwrite=overwrite, advance=advance, tell=tell)
        typer.echo(out)
        return
    if not overwrite:
        refuse_unfinished(out)
    where = locate(model)
    digest, delta = scorer_digest(where.identity), read_adapter(where.adapter) if where.adapter else None
    with applied(load_model(where.weights), delta) as scorer, bar("score", len(rollout_set)) as advance:
        if keep == "logprobs":
            scores = score_rollouts(scorer, rollout_set.rollouts, token_budget=token_budget, advance=advance)
            typer.echo(write_scores(out, rollout_set, scores, model_digest=digest, overwrite=overwrite))
            return
        tokens = load_tokenizer(where.tokenizer).get_vocab()
        write = partial(write_hidden, dtype=dtype) if keep == "hidden" else partial(write_likeliest, k=k)
        path = write(
            out,
            rollout_set,
            scorer,
            model_digest=digest,
            num_ids=max(tokens.values()) + 1,
            facts={"token_map_digest": digest_of(tokens)},
            token_budget=token_budget,
            overwrite=overwrite,
            advance=advance,
        )
    typer.echo(path)

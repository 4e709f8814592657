"""What the docs show is true of the code: commands parse, marked ones run, links and the site's pages exist."""

from __future__ import annotations

import re
import shlex
import sys
import textwrap
from collections.abc import Iterator
from typing import get_args

import pytest
import torch
import yaml

from documented import FENCE, GENERATED, MARK, PAGES, ROOT, commands, marked, run, verb_of
from limbeck.config import Config, RunConfig
from limbeck.studies.config import StudyConfig, load_study
from limbeck.studies.sections import RolloutsConfig

README, DESIGN = PAGES["README.md"], PAGES["docs/design.md"]


def block(text: str, language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)[1]


def spans(text: str) -> Iterator[str]:
    """Code in running text that begins with limbeck, joined where a line ended in it."""
    for span in re.findall(r"`(limbeck [^`]+)`", FENCE.sub("", text)):
        yield re.sub(r" > .*", "", " ".join(span.replace("\\|", "|").split()))


COMMANDS = [(page, command) for page, text in PAGES.items() for command in commands(text)]
SPANS = sorted({(page, span) for page, text in PAGES.items() for span in spans(text)})


def parse(words: list[str]) -> None:
    """As the command line would: options, types, counts; raises what it would say."""
    command, name, rest = verb_of(words)
    command.make_context(name, rest)


def known_options(words: list[str]) -> None:
    """That the verb has each option; values may be missing."""
    command, name, rest = verb_of(words)
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in rest:
        assert not word.startswith("-") or word in known, f"limbeck {name} has no option {word}"


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda text: text)
def test_every_command_parses(page, command):
    words = shlex.split(re.sub(r"\[[^]]*\]", "", command))[1:]  # [OPTIONAL ...]
    known_options(words) if "..." in words else parse(words)


@pytest.mark.parametrize(("page", "span"), SPANS, ids=lambda text: text)
def test_every_verb_and_option_in_running_text_exists(page, span):
    words = shlex.split(re.sub(r"\[[^]]*\]", "", span))[1:]
    if words[0].startswith("-"):
        return
    parse(words) if "--out" in words and "..." not in words else known_options(words)


def test_what_does_not_parse_is_found():
    with pytest.raises(Exception, match="No such option"):
        parse(["eval", "--problems", "p", "--out", "o", "--bse", "abacus:base"])
    with pytest.raises(Exception, match="Missing parameter: out"):
        parse(["compare", "a", "b"])
    with pytest.raises(AssertionError, match="no verb"):
        parse(["scores", "improt", "log"])
    with pytest.raises(AssertionError, match="no option"):
        known_options(["study", "run", "--otu", "DIR"])


def is_setting(key: str, model: type[Config]) -> bool:
    """Whether `--set key=...` names a field; what is below a table of free keys is not known here."""
    name, _, rest = key.partition(".")
    if name not in model.model_fields:
        return False
    annotation = model.model_fields[name].annotation
    inner = [
        kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type) and issubclass(kind, Config)
    ]
    return is_setting(rest, inner[0]) if rest and inner else True


def test_every_key_that_is_set_exists():
    keys = {key for text in PAGES.values() for key in re.findall(r"--set ([a-z_.]+)=", text)}
    assert len(keys) > 5
    assert [
        key for key in keys - {"section.key"} if not (is_setting(key, RunConfig) or is_setting(key, StudyConfig))
    ] == []
    assert not is_setting("train.lora.rnk", RunConfig)


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if MARK in text])
def test_marked_commands_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    lines = marked(PAGES[page])
    assert lines
    for line in lines:
        result = run(line)
        assert result.exit_code == 0, (line, result.exception, result.stderr)


def test_the_readme_study_is_a_study(tmp_path):
    (tmp_path / "study.toml").write_text(block(README, "toml"))
    study = load_study(str(tmp_path / "study.toml"))
    assert [arm.name for arm in study.arms] == ["sft", "rft", "dpo", "sft-seed"]
    assert study.training(study.arm("dpo"), 0).learning_rate == 1e-5


def test_the_tutorial_shows_the_study_that_it_runs():
    example = (ROOT / "examples" / "learning_rate.toml").read_text(encoding="utf-8")
    assert block(PAGES["docs/tutorial.md"], "toml") == example


STUDIES = [
    (page, text)
    for page in PAGES
    if page.startswith("docs/results/")
    for text in re.findall(r"```toml\n(.*?)```", PAGES[page], re.DOTALL)
]


@pytest.mark.parametrize(("page", "text"), STUDIES, ids=lambda text: text[:40])
def test_studies_that_results_pages_propose_are_studies(page, text, tmp_path):
    (tmp_path / "study.toml").write_text(text)
    assert load_study(str(tmp_path / "study.toml")).arms


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", FENCE.sub("", PAGES[page])):
        there = ((ROOT / page).parent / target).resolve()
        made = there.is_relative_to(ROOT / "docs") and str(there.relative_to(ROOT / "docs")) in GENERATED
        assert made or there.exists(), target


def test_the_site_has_every_page():
    def leaves(entry):
        if isinstance(entry, str):
            return [entry]
        return [leaf for part in (entry.values() if isinstance(entry, dict) else entry) for leaf in leaves(part)]

    pages = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(pages) == sorted({page.removeprefix("docs/") for page in PAGES} - {"README.md"} | GENERATED)


def test_the_settings_page_has_every_table():
    page = PAGES["docs/reference/settings.md"]
    for module, least in ((RunConfig.__module__, 6), (StudyConfig.__module__, 3), (RolloutsConfig.__module__, 6)):
        tables = [
            kind for kind in vars(sys.modules[module]).values() if isinstance(kind, type) and issubclass(kind, Config)
        ]
        here = [kind.__name__ for kind in tables if kind.__module__ == module and kind is not Config]
        assert len(here) >= least
        assert [name for name in here if f"::: {module}.{name}\n" not in page] == []


def test_the_objective_that_the_design_page_adds_works_as_shown():
    code = textwrap.dedent(block(DESIGN, "python"))
    imports = (
        "from typing import Annotated\nfrom limbeck.objectives.offline import Tokens\n"
        "from limbeck.objectives.signature import Domain\nfrom limbeck.types import Values\n"
    )
    namespace: dict = {}
    exec(compile(imports + code, "design.md", "exec", dont_inherit=True), namespace)
    logprobs = torch.tensor([[-3.0, -0.5]], requires_grad=True)
    values = namespace["floor"](logprobs, floor=-1.0)
    assert values.values.tolist() == [[4.0, 0.0]]
    values.values.sum().backward()
    assert logprobs.grad.tolist() == [[-4.0, 0.0]]

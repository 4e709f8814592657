"""A chat template is a program of whoever made the model: it is tried within limits before it is used.

transformers renders it in Jinja's sandbox, from which it reaches no file and no interpreter. That leaves time and memory:
a template is rendered once in a process of its own, with a clock and a limit, when its tokenizer is loaded. POSIX only.
"""

from __future__ import annotations

import resource
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from limbeck.bounds import in_child
from limbeck.errors import ModelError

SECONDS = 2  # of processor time for one try; the longest templates in use take milliseconds
PATIENCE = 120  # seconds by the clock, on a machine that is busy with other work
MEMORY_BYTES = 256 << 20  # beyond what the process has
LONGEST = 1 << 20  # characters of the two turns of a try
TURNS: list[dict[str, str]] = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
STATM = Path("/proc/self/statm")
_known: dict[str, str] = {}  # template to what its try spent too much of


def rendered(tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, str]], **how: Any) -> Any:
    """What the tokenizer's template makes of some turns: ids, or text with ``tokenize=False``.

    Raises:
        ModelError: the template fails, or reaches for what its sandbox does not give.
    """
    try:
        return tokenizer.apply_chat_template(list(turns), return_dict=False, **how)
    except Exception as error:  # a program of somebody else's may raise anything
        raise ModelError(
            f"a chat template must render turns of {', '.join(sorted({t['role'] for t in turns}))}, received "
            f"{type(error).__name__}: {str(error)[:200].rstrip('.')}. Take the model's own template, or mend chat_template.jinja."
        ) from error


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a template that takes seconds or hundreds of megabytes for one question and its answer.

    Raises:
        ModelError: says which.
    """
    template = tokenizer.chat_template
    if isinstance(template, str):
        spent = _tried(template, tokenizer)
        if spent:
            raise ModelError(
                f"a chat template must render one question within {SECONDS} seconds and {MEMORY_BYTES >> 20} MiB, received "
                f"one that takes {spent}. Take the model's own template, or mend chat_template.jinja."
            )


def _tried(template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What a try spent too much of; empty where the limits hold, whether or not the template raises."""
    if template not in _known:
        code, spent = in_child(lambda: _spent(tokenizer))
        _known[template] = f"more than {SECONDS} seconds" if code else str(spent)
    return _known[template]


def _spent(tokenizer: PreTrainedTokenizerBase) -> str:
    """The child's side: the kernel ends it where time is up."""
    for name in (signal.SIGALRM, signal.SIGXCPU):
        signal.signal(name, signal.SIG_DFL)
    signal.alarm(PATIENCE)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    if STATM.is_file():
        limit = int(STATM.read_text().split()[0]) * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for turns in (TURNS[:1], TURNS):
        try:
            text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=len(turns) == 1))
        except MemoryError:
            return "more memory or text"
        except Exception:  # said where it is rendered for use
            return ""
        if len(text) > LONGEST:
            return "more memory or text"
    return ""

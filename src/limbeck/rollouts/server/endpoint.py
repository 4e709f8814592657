"""Where answers come from, and how patiently they are asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import httpx2

from limbeck.errors import ConfigError, nearest
from limbeck.rollouts.server.wire import APIS

KEY_VARIABLES = ("LIMBECK_API_KEY", "OPENAI_API_KEY")
AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """An OpenAI-compatible server and the manners in which to ask it.

    Attributes:
        url: ``http(s)://host[:port][/path]``; without a path, ``/v1``.
        model: the name that the server serves it by.
        api: a way to ask out of ``wire.APIS``, or ``auto``: the first that the server takes.
        concurrency: requests under way at once.
        timeout_seconds: for one attempt at one answer.
        patience_seconds: how long a failing request is repeated, see :class:`limbeck.rollouts.server.retries.Patience`.
        require_logprobs: refuse answers without sampled ids and their log-probs, as on-policy use must.
        tempered_logprobs: the server's log-probs are those after division by the sampling temperature. Elsewhere they
            are taken for those of temperature 1, and dropped where another was sampled at.
        api_key: sent to the server and nowhere else, never written; see :func:`key_from_environment`.
    """

    url: str
    model: str
    api: str = AUTO
    concurrency: int = 32
    timeout_seconds: float | int = 600
    patience_seconds: float | int = 600
    require_logprobs: bool = False
    tempered_logprobs: bool = False
    api_key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.api not in (AUTO, *APIS):
            raise ConfigError(f'there is no api "{self.api}". {nearest(self.api, (AUTO, *APIS))}')
        if not self.model or self.concurrency < 1 or self.timeout_seconds <= 0 or self.patience_seconds < 0:
            raise ConfigError(
                "a server needs a model's name, concurrency >= 1, timeout > 0 and patience >= 0, received "
                f"{self.model!r}, {self.concurrency}, {self.timeout_seconds} and {self.patience_seconds}."
            )
        if not self.api_key.isascii() or (self.api_key and not self.api_key.isprintable()):
            raise ConfigError(f"an API key must be printable ASCII, received other text. Check {KEY_VARIABLES[0]}.")
        _check_url(self.url)

    @property
    def base(self) -> str:
        """The address that paths are appended to.

        >>> Server(url="http://localhost:8000", model="m").base
        'http://localhost:8000/v1/'
        """
        return self.url.rstrip("/") + ("/v1/" if httpx2.URL(self.url).path in ("", "/") else "/")


def key_from_environment() -> str:
    """The key in ``LIMBECK_API_KEY`` or ``OPENAI_API_KEY``, empty where neither is set."""
    return next((os.environ[name].strip() for name in KEY_VARIABLES if os.environ.get(name)), "")


def _check_url(url: str) -> None:
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError) as error:
        raise ConfigError(
            f"a server's address must be http(s)://host[:port][/path], received {url!r}: {error}."
        ) from error
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise ConfigError(  # not repeated: it may hold a secret
            "a server's address must be http(s)://host[:port][/path] without user, password or query, received one with "
            f"them. Put the key into {KEY_VARIABLES[0]}."
        )
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(
            f"a server's address must be http(s)://host[:port][/path], received {url!r}. "
            "An example: http://localhost:8000/v1."
        )

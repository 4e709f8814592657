"""Where answers come from, and how patiently they are asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import httpx2

from limbeck.errors import ConfigError, nearest
from limbeck.rollouts.server.scoring import SCORING_APIS
from limbeck.rollouts.server.wire import APIS

KEY_VARIABLES = ("LIMBECK_API_KEY", "OPENAI_API_KEY")
AUTO = "auto"
KNOWN = (AUTO, *APIS, *SCORING_APIS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One model behind one address or several, and the manners in which to ask there.

    Attributes:
        urls: ``http(s)://host[:port][/path]`` each; without a path, ``/v1``.
        model: the name that it is served by, at all of them.
        api: a way to ask out of ``wire.APIS`` (to score, out of ``scoring.SCORING_APIS``), or ``auto``: the first that is taken.
        concurrency: requests under way at once, over all addresses; each has an equal share at most,
            rounded up.
        timeout_seconds: for one attempt at one answer.
        patience_seconds: how long a failing request is repeated, see :class:`limbeck.rollouts.server.retries.Patience`.
        require_logprobs: refuse answers without sampled ids and their log-probs, as on-policy use must.
        tempered_logprobs: the server's log-probs are those after division by the sampling temperature. Elsewhere they
            are taken for those of temperature 1, and dropped where another was sampled at.
        api_key: sent to these addresses and nowhere else, never written; see :func:`key_from_environment`.
    """

    urls: tuple[str, ...]
    model: str
    api: str = AUTO
    concurrency: int = 32
    timeout_seconds: float | int = 600
    patience_seconds: float | int = 600
    require_logprobs: bool = False
    tempered_logprobs: bool = False
    api_key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.api not in KNOWN:
            raise ConfigError(f'there is no api "{self.api}". {nearest(self.api, KNOWN)}')
        if not self.model or self.concurrency < 1 or self.timeout_seconds <= 0 or self.patience_seconds < 0:
            raise ConfigError(
                "a server needs a model's name, concurrency >= 1, timeout > 0 and patience >= 0, received "
                f"{self.model!r}, {self.concurrency}, {self.timeout_seconds} and {self.patience_seconds}."
            )
        if not self.api_key.isascii() or (self.api_key and not self.api_key.isprintable()):
            raise ConfigError(f"an API key must be printable ASCII, received other text. Check {KEY_VARIABLES[0]}.")
        for url in self.urls:
            _check_url(url)
        if not self.urls or len(set(self.bases)) < len(self.urls):
            raise ConfigError(
                f"a server needs addresses that differ, one or several, received {', '.join(self.urls) or 'none'}. "
                "Name each once; --concurrency says how much is asked at once."
            )

    @property
    def bases(self) -> tuple[str, ...]:
        """The addresses that paths are appended to.

        >>> Server(urls=("http://localhost:8000", "http://h/llm/v1/"), model="m").bases
        ('http://localhost:8000/v1/', 'http://h/llm/v1/')
        """
        return tuple(url.rstrip("/") + ("/v1/" if httpx2.URL(url).path in ("", "/") else "/") for url in self.urls)


def key_from_environment() -> str:
    """The key in ``LIMBECK_API_KEY`` or ``OPENAI_API_KEY``, empty where neither is set."""
    return next((os.environ[name].strip() for name in KEY_VARIABLES if os.environ.get(name)), "")


def _check_url(url: str) -> None:
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError) as error:
        received = "one that cannot be read" if "@" in url or "?" in url else f"{url!r}: {error}"  # as below
        raise ConfigError(f"a server's address must be http(s)://host[:port][/path], received {received}.") from None
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

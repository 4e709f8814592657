"""The state as a page on this machine: it asks for the state every two seconds and draws it.

Only this machine can ask, only by a name of its own, only to read, and only the page, the state, the report and its CSVs.
What a folder says travels as JSON and becomes text in the page, never markup.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

from limbeck.errors import ConfigError, LimbeckError
from limbeck.records import plain
from limbeck.watch.planned import Watch

HOST = "127.0.0.1"
HTTP_PORT = 80  # which browsers leave out
METHODS = ("GET", "HEAD")
COMMON = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
REPORT_POLICY = (
    f"{COMMON}; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"  # its own is stricter
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def serve_page(watch: Watch, port: int, *, tell: Callable[[str], None]) -> None:
    """Answer until interrupted; ``tell`` gets the page's address.

    Raises:
        ConfigError: the port is taken.
    """
    with make_server(watch, port) as server:
        tell(f"http://{HOST}:{server.server_port}/")
        server.serve_forever()


class Server(ThreadingHTTPServer):
    """Threads that end with the process; a reader who leaves in the middle of an answer is no error."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def make_server(watch: Watch, port: int) -> Server:
    """A server that listens; port 0 takes a free one."""

    class Bound(Handler):
        readings = watch

    try:
        return Server((HOST, port), Bound)
    except OSError as error:
        raise ConfigError(f"--port must be free on {HOST}, received {port} ({error}). Give another, or 0.") from error


class Handler(BaseHTTPRequestHandler):
    """Every request passes one gate, :meth:`parse_request`, and names the page, the state, the report, a CSV of it or nothing."""

    readings: Watch
    server_version, sys_version = "limbeck", ""
    timeout = 30  # seconds that a silent connection is kept

    def parse_request(self) -> bool:
        """Refuse what does not read, or was not asked of this machine by name: a page elsewhere may have bent its own here."""
        if not super().parse_request():
            return False
        if self.command not in METHODS:
            self._answer(HTTPStatus.METHOD_NOT_ALLOWED, "This page is only read.\n")
        elif not self._asked_by_name():
            self._answer(HTTPStatus.FORBIDDEN, "The host of a request must be localhost or 127.0.0.1, with the port.\n")
        else:
            return True
        self.close_connection = True
        return False

    def _asked_by_name(self) -> bool:
        port = self.connection.getsockname()[1]
        suffix = "" if port == HTTP_PORT else f":{port}"
        given = [host.lower() for host in self.headers.get_all("Host", [])]
        return given in ([f"{HOST}{suffix}"], [f"localhost{suffix}"])

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/":
            text, policy = page()
            self._answer(HTTPStatus.OK, text, "text/html", policy)
        elif path == "/state.json":
            self._state()
        elif path == "/report.html":
            self._report()
        elif path in (sheets := self._sheets()):
            self._answer(HTTPStatus.OK, sheets[path].read_bytes().decode("utf-8", "replace"), "text/csv")
        else:
            self._answer(
                HTTPStatus.NOT_FOUND, "There is /, /state.json and, once it is written, /report.html and its CSVs.\n"
            )

    do_HEAD = do_GET  # noqa: N815 - as above

    def _state(self) -> None:
        try:
            self._answer(HTTPStatus.OK, state_json(self.readings), "application/json")
        except LimbeckError as error:
            self._answer(HTTPStatus.OK, json.dumps({"error": str(error)}), "application/json")

    def _sheets(self) -> dict[str, Path]:
        """Files that the report's links lead to, by the only way in which each can be asked for."""
        try:
            report = self.readings.state().report
            found = list((Path(report).parent / "figures").iterdir()) if report else []
        except (OSError, LimbeckError):
            return {}
        return {f"/figures/{p.name}": p for p in found if p.suffix == ".csv" and p.is_file() and not p.is_symlink()}

    def _report(self) -> None:
        try:
            path = self.readings.state().report
            text = Path(path).read_text(encoding="utf-8") if path else ""
        except (OSError, ValueError, LimbeckError):
            text = ""
        if text:
            self._answer(HTTPStatus.OK, text, "text/html", REPORT_POLICY)
        else:
            self._answer(HTTPStatus.NOT_FOUND, "The report is not written yet.\n")

    def _answer(self, status: int, text: str, kind: str = "text/plain", policy: str = COMMON) -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        facts = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body)), **HEADERS}
        allow = {"Allow": ", ".join(METHODS)} if status == HTTPStatus.METHOD_NOT_ALLOWED else {}
        for name, value in {**facts, **allow, "Content-Security-Policy": policy}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What does not read as a request, in plain text under the same headers."""
        self.close_connection = True
        self._answer(code, f"{message or HTTPStatus(code).phrase}\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that the base class gives it
        """Nothing: a poll every two seconds is no news."""


def state_json(watch: Watch) -> str:
    """The state as the page reads it."""
    state = watch.state()
    return json.dumps(plain({**dataclasses.asdict(state), "counts": state.counts}), ensure_ascii=True, allow_nan=False)


@cache
def page() -> tuple[str, str]:
    """The page with its style and script inside, and the policy that allows these two and reading from here."""
    folder = files("limbeck.watch") / "templates"
    text, style, script = (
        (folder / name).read_text(encoding="utf-8") for name in ("page.html", "style.css", "page.js")
    )
    policy = f"{COMMON}; connect-src 'self'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}"
    return text.replace("/*style*/", style).replace("/*script*/", script), policy


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

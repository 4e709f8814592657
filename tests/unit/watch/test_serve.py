"""The page and its answers over a real socket: who may ask, how, for what; and the page in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
from tests.browser import CHROMIUM, opened

from limbeck.errors import ConfigError
from limbeck.watch.planned import Watch
from limbeck.watch.serve import make_server, page, serve_page

from .conftest import grpo


@contextmanager
def served(folder: Path) -> Iterator[int]:
    """The port of a server that answers for a folder."""
    with Watch(folder) as watch, make_server(watch, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def port(watched) -> Iterator[int]:
    with served(watched.folder) as port:
        yield port


def ask(port: int, target: str = "/", method: str = "GET", host: str | None = "") -> tuple[HTTPResponse, str]:
    """The answer and its body; ``host`` is right by default, None sends none."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest(method, target, skip_host=True)
    if host is not None:
        connection.putheader("Host", host or f"localhost:{port}")
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer, body


def raw(port: int, request: bytes) -> str:
    """Whatever comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()


def test_the_page_is_whole_and_its_policy_allows_its_own_script_alone(port):
    answer, body = ask(port)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", body, re.DOTALL)
        assert policy[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert set(re.findall(r"https?://[^\"' ]*", body)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert body == page()[0]


def test_the_state_is_what_is_read_of_the_folder(port, watched):
    answer, body = ask(port, "/state.json?whatever")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Access-Control-Allow-Origin"] is None
    state = json.loads(body)
    assert (state["status"], state["name"], state["share"]) == ("complete", "tiny", 1.0)
    assert state["counts"] == {"done": len(state["steps"])}
    lines = [json.loads(line) for line in (grpo(watched.folder) / "metrics.jsonl").read_text().splitlines()]
    curves = {run["name"]: run["curves"] for run in state["runs"]}
    assert curves["train/grpo-s0"]["reward"] == [
        [line["step"], pytest.approx(line["reward"], rel=1e-4)] for line in lines
    ]


def test_the_report_is_given_once_it_is_there(port, watched, halfway):
    answer, body = ask(port, "/report.html")
    assert answer.status == 200
    assert body == (watched.folder / "report.html").read_text()
    assert "connect-src" not in answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    with served(halfway) as other:
        assert ask(other, "/report.html")[0].status == 404


@pytest.mark.parametrize("target", ["/", "/state.json", "/report.html", "/nowhere"])
def test_head_says_what_get_would_and_sends_nothing(port, target):
    head, nothing = ask(port, target, "HEAD")
    answer, body = ask(port, target)
    assert nothing == ""
    assert head.status == answer.status
    if target != "/state.json":  # which is of another moment
        assert head.headers["Content-Length"] == answer.headers["Content-Length"] == str(len(body.encode()))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "WHATEVER"])
def test_nothing_but_reading_is_answered(port, method):
    answer, body = ask(port, "/state.json", method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert body == "This page is only read.\n"


@pytest.mark.parametrize("good", ["localhost:{}", "127.0.0.1:{}", "LOCALHOST:{}"])
def test_this_machine_may_ask_by_its_own_names(port, good):
    assert ask(port, "/state.json", host=good.format(port))[0].status == 200


@pytest.mark.parametrize(
    "bad",
    [None, "evil.example", "evil.example:{}", "localhost", "127.0.0.1", "localhost:1", "localhost:{}.evil.example",
     "[::1]:{}", "0.0.0.0:{}", "user@localhost:{}", "127.0.0.1:0{}"],
)  # fmt: skip
@pytest.mark.parametrize("target", ["/", "/state.json", "/report.html"])
def test_by_another_name_it_is_somebody_elses_page_that_asks(port, target, bad):
    answer, body = ask(port, target, host=bad.format(port) if bad else bad)
    assert answer.status == 403
    assert "tiny" not in body


def test_two_host_names_are_none(port):
    request = f"GET /state.json HTTP/1.1\r\nHost: localhost:{port}\r\nHost: evil.example\r\n\r\n"
    assert raw(port, request.encode()).startswith("HTTP/1.0 403")


@pytest.mark.parametrize(
    "target",
    ["/config.json", "/manifest.json", "/../config.json", "/%2e%2e/config.json", "/..%2f..%2fetc/passwd", "//etc/passwd",
     "/report.html/../config.json", "/steps/", "/./report.html", "/state.json/", "report.html", "\\..\\config.json",
     "/%00", "http://localhost/config.json", "/.limbeck", "/figures/", "/figures", "/figures/../config.json",
     "/figures/%2e%2e/config.json", "/figures/../../{csv}", "/figures/./{csv}", "/figures/{csv}/",
     "/figures/{csv}%00", "/figures/none.csv", "/{csv}", "/results/measurements.parquet"],
)  # fmt: skip
def test_no_file_is_served_but_the_report_and_what_it_links_to(port, watched, target):
    (csv, *_) = sorted(path.name for path in (watched.folder / "figures").iterdir())
    answer, body = ask(port, target.replace("{csv}", csv))
    assert answer.status == 404
    assert body == "There is /, /state.json and, once it is written, /report.html and its CSVs.\n"


def test_every_csv_that_the_report_links_to_is_served_and_no_link_out_of_the_folder(port, watched, halfway):
    _, report = ask(port, "/report.html")
    links = set(re.findall(r'href="(figures/[^"]+)"', report))
    assert links
    for link in links:
        answer, body = ask(port, f"/{link}")
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/csv; charset=utf-8")
        assert body.encode() == (watched.folder / link).read_bytes()
    shutil.copytree(watched.folder / "figures", halfway / "figures")
    (halfway / "report.html").write_text(report)
    (halfway / "figures" / "secret.csv").symlink_to(halfway / "config.json")
    with served(halfway) as other:
        assert ask(other, "/figures/secret.csv")[0].status == 404
        assert ask(other, f"/{min(links)}")[0].status == 200


@pytest.mark.parametrize(
    "request_", [b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n"]
)
def test_what_is_no_request_gets_a_plain_refusal(port, request_):
    said = raw(port, request_)
    assert re.search(r"Bad request|Invalid HTTP version|Request-URI Too Long", said)
    assert "<" not in said
    assert ask(port, "/state.json")[0].status == 200  # and it goes on


def test_only_this_machines_own_address_is_bound(port):
    for address in ("127.0.0.2", socket.gethostbyname(socket.gethostname())):
        if address != "127.0.0.1":
            with pytest.raises(OSError):  # noqa: PT011 - refused, or no route
                socket.create_connection((address, port), timeout=5)


def test_a_port_that_is_taken_is_named(port, watched):
    with Watch(watched.folder) as watch, pytest.raises(ConfigError, match=rf"--port must be free .* received {port} "):
        serve_page(watch, port, tell=print)


def test_a_folder_that_goes_is_said_on_the_page_and_not_in_a_traceback(halfway, capfd, monkeypatch):
    monkeypatch.setattr("limbeck.watch.planned.LASTS", 0.0)
    with served(halfway) as port:
        shutil.rmtree(halfway)
        answer, body = ask(port, "/state.json")
        assert ask(port, "/report.html")[0].status == 404
    assert answer.status == 200
    assert "watch needs the folder of a study" in json.loads(body)["error"]
    assert capfd.readouterr().err == ""


EVIL = '</script><script>window.owned = 1</script><img src=x onerror="window.owned=1"> {{ 7*7 }} \u202e\u2028 &amp;'


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine, so the page is not opened in a browser")
def test_in_a_browser_the_page_follows_the_folder_and_takes_every_name_for_text(halfway, tmp_path, claimed):
    config = json.loads((halfway / "config.json").read_text())
    (halfway / "config.json").write_text(json.dumps({**config, "question": EVIL}))
    run = grpo(halfway)
    other = shutil.copytree(run, halfway / "steps" / f"train-{EVIL.replace('/', '')}-{'0' * 12}")
    (other / "config.json").write_text(json.dumps({"base": "x", "train": {"objective": EVIL, "num_steps": 3}}))
    text = "document.body.innerText"
    with served(halfway) as port, opened(f"http://127.0.0.1:{port}/", tmp_path / "profile") as tab:
        with claimed(halfway, run):
            tab.wait(f"{text}.includes('step 2 of 3')")
            tab.wait(f"{text}.includes('Steps, share and time by the plan')")  # made meanwhile
            assert tab.evaluate(
                "[...document.querySelectorAll('.curve path')].every((p) => p.getAttribute('d').length > 5)"
            )
            kept = tab.evaluate(
                "window.kept = document.querySelector('#steps tr'); document.querySelectorAll('.run').length"
            )
            assert kept == 2
            with (run / "metrics.jsonl").open("a") as file:  # the half line is made good
                file.write('\n{"step": 3, "loss": 0.125, "reward": 0.875, "tokens": 64, "seconds": 2.0}\n')
            tab.wait(f"{text}.includes('step 3 of 3') && {text}.includes('0.875') && {text}.includes('32 tokens/s')")
            assert tab.evaluate("window.kept.isConnected")  # what did not change was not made again
        tab.wait(f"{text}.includes('Not running') && {text}.includes('limbeck study run')")
        tab.wait(f"document.getElementById('question').textContent === {json.dumps(EVIL)}")
        assert tab.evaluate("window.owned === undefined && !document.querySelector('main img, header img')")
        assert tab.said == []

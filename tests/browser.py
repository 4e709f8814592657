"""A page opened in the machine's Chromium, driven over its DevTools pipe: real frames, real time, no driver to install."""

import fcntl
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Tab:
    """One page: `evaluate` runs JavaScript in it, `wait` until an expression is true, `said` is what its console said."""

    def __init__(self, send: int, receive: int):
        self.send, self.receive, self.ids, self.rest = send, receive, itertools.count(1), b""
        self.session: str | None = None
        self.said: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self.ids)
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                self.said.append(json.dumps(answer["params"]))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def read(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            part = os.read(self.receive, 1 << 20)
            assert part, "the browser has gone"
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def open(self, address: str) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=address)

    def evaluate(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait(self, expression: str, seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"not true within {seconds} s: {expression}; console: {self.said}"
            time.sleep(0.1)


@contextmanager
def opened(page: Path | str, profile: Path, width: int = 1280, height: int = 1000) -> Iterator[Tab]:
    """`page`, a file or an address, in a headless Chromium whose profile is the new folder `profile`."""
    (read_in, write_in), (read_out, write_out) = os.pipe(), os.pipe()
    ends = [
        fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read_in, write_out)
    ]  # neither is 3 or 4, which it reads and writes
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
        "--remote-debugging-pipe", f"--user-data-dir={profile}", f"--window-size={width},{height}",
    ]  # fmt: skip
    moved = f"import os, sys; os.dup2({ends[0]}, 3); os.dup2({ends[1]}, 4); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", moved, str(CHROMIUM), *flags]
    process = subprocess.Popen(command, pass_fds=ends, stderr=subprocess.DEVNULL)
    for end in (read_in, write_out, *ends):
        os.close(end)
    try:
        tab = Tab(write_in, read_out)
        tab.open(page if isinstance(page, str) else page.as_uri())
        yield tab
    finally:
        os.close(write_in)
        os.close(read_out)
        process.kill()
        process.wait()

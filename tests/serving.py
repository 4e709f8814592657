"""A real HTTP server that speaks OpenAI's completions, answers by any function, and misbehaves on demand."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = dict[str, Any] | tuple[int, dict[str, Any]]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Serving

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(raw)
        with self.server.lock:
            number = len(self.server.asked)
            self.server.asked.append(
                {"path": self.path, "body": body, "time": time.monotonic(), "headers": self.headers}
            )
        fault = self.server.fault(number, body)
        if fault == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if fault == "delay":
            time.sleep(self.server.delay)
        status, reply, more = 200, None, {}
        if fault in ("429", "503", "500"):
            status, reply, more = int(fault), {"error": "busy"}, {"Retry-After": "0.02"}
        else:
            reply = self.server.answer(self.path, body)
            if isinstance(reply, tuple):
                status, reply = reply
        if fault == "other":
            reply = {**reply, "model": "somebody-else"}
        if fault == "duplicate":
            reply = {**reply, "choices": reply["choices"] * 2}
        if fault == "none":
            reply = {**reply, "choices": []}
        data = {"garbage": b"<html>oops</html>", "empty": b""}.get(fault or "", json.dumps(reply).encode())
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **more}.items():
            self.send_header(name, value)
        self.end_headers()
        if fault == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


class Serving(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, answer: Callable[[str, dict], Reply], fault: Callable[[int, dict], str | None], port: int
    ) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.answer, self.fault = answer, fault
        self.lock, self.asked, self.delay = threading.Lock(), [], 0.3

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that was killed, or the fault itself


@contextmanager
def serving(
    answer: Callable[[str, dict], Reply],
    fault: Callable[[int, dict], str | None] = lambda number, body: None,
    port: int = 0,
):
    server = Serving(answer, fault, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def completion(
    ids: list[int], logprobs: list[float] | None, finish: str = "stop", model: str = "m", **more: Any
) -> dict:
    """An answer as vLLM and SGLang give it."""
    choice = {"index": 0, "text": "", "finish_reason": finish, "token_ids": ids}
    choice["logprobs"] = None if logprobs is None else {"token_logprobs": logprobs}
    usage = {"completion_tokens": len(ids)}
    return {"object": "text_completion", "model": model, "choices": [choice | more], "usage": usage}


def text_completion(text: str, finish: str = "stop", model: str = "m", **usage: int) -> dict:
    """An answer of a server that knows of text only."""
    return {"model": model, "choices": [{"index": 0, "text": text, "finish_reason": finish}], "usage": usage}

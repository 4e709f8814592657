"""A real HTTP server that speaks OpenAI's completions, answers by any function, and misbehaves on demand.

``python tests/serving.py PORT SECONDS`` serves :func:`echoes` on that port until it is killed, each answer after so long.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = dict[str, Any] | tuple[int, dict[str, Any]]
Answer = Callable[[str, dict], Reply]
FAULTS = ["drop", "cut", "delay", "429", "503", "500", "garbage", "empty", "none", "duplicate", "other"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Serving

    def do_GET(self) -> None:
        data = json.dumps({"object": "list", "data": [{"id": self.server.model, "object": "model"}]}).encode()
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(raw)
        with self.server.lock:
            number = len(self.server.asked)
            self.server.asked.append(
                {"path": self.path, "body": body, "time": time.monotonic(), "headers": self.headers}
            )
            self.server.under_way += 1
            self.server.most_under_way = max(self.server.most_under_way, self.server.under_way)
        try:
            self.reply(number, body)
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def reply(self, number: int, body: dict[str, Any]) -> None:
        fault = self.server.fault(number, body)
        if fault == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if fault == "delay":
            time.sleep(self.server.delay)
        status, reply, more = 200, None, {}
        if fault in ("429", "503", "500"):
            status, reply, more = int(fault), {"error": "busy"}, {"Retry-After": self.server.retry_after}
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

    def __init__(self, answer: Answer, fault: Callable[[int, dict], str | None], port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.answer, self.fault = answer, fault
        self.lock, self.asked, self.delay, self.retry_after = threading.Lock(), [], 0.3, "0.02"
        self.under_way, self.most_under_way, self.model = 0, 0, "m"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that was killed, or the fault itself


@contextmanager
def serving(answer: Answer, fault: Callable[[int, dict], str | None] = lambda number, body: None, port: int = 0):
    server = Serving(answer, fault, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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


def told(seed: int) -> list[int]:
    """Ids that tell who asked, made from the request's seed, so that a mix-up would show."""
    return [10 + seed // 150**n % 150 for n in range(3)]


def echoes(path: str, body: dict) -> dict:
    """What a server does that only tells who asked, in three ids and the first of those that end a response."""
    return completion([*told(body["seed"]), body["stop_token_ids"][0]], [-0.5] * 4)


def samples_of(model: Any) -> Answer:
    """What a server does that samples from the model: the request's seed names the random stream."""
    from limbeck.rollouts.sample import Decoding, complete

    lock = threading.Lock()

    def answer(path: str, body: dict) -> dict:
        decoding = Decoding(sampling_temperature=body["temperature"], max_new_tokens=body["max_tokens"])
        with lock:
            [done] = complete(model, [body["prompt"]], [str(body["seed"])], decoding, stop_ids=body["stop_token_ids"])
        found = list(done.ids), list(done.logprobs), str(done.finish)
        return completion(*found, model=body["model"], prompt_token_ids=body["prompt"])

    return answer


def scores_of(model: Any, form: str) -> Answer:
    """What a server does that scores: one plain pass of the model, in the fields of ``vllm``, ``sglang`` or ``echo``.

    It knows that form alone: SGLang's own endpoint is not found elsewhere, and fields of the others are ignored.
    """
    import torch

    lock = threading.Lock()

    def logprobs_of(ids: list[int]) -> Any:
        with lock, torch.inference_mode():
            return model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)

    def answer(path: str, body: dict) -> Reply:
        if (path == "/generate") != (form == "sglang"):
            return 404, {"detail": "Not Found"}
        ids = body["input_ids"] if form == "sglang" else body["prompt"]
        table = logprobs_of(ids)
        values = [None, *(table[place, token].item() for place, token in enumerate(ids[1:]))]
        if form == "sglang":
            return _sglang(ids, values, body)
        if form == "vllm":
            best = [(row.argmax().item(), row.max().item()) for row in table]
            return _vllm(ids, values, best, body)
        return _echo(ids, values, body)

    return answer


def _sglang(ids: list[int], values: list[float | None], body: dict) -> dict:
    start = body["logprob_start_len"]
    about: dict[str, Any] = {"id": "0", "prompt_tokens": len(ids), "finish_reason": {"type": "length", "length": 1}}
    if body.get("return_logprob"):
        given = [None, *values[start + 1 :]]  # the first of those asked for has no number
        about["input_token_logprobs"] = [[value, token, None] for value, token in zip(given, ids[start:], strict=True)]
        about["output_token_logprobs"] = [[-0.5, 11, None]]
    return {"text": "x", "output_ids": [11], "meta_info": about | {"weight_version": "default"}}


def _vllm(ids: list[int], values: list[float | None], best: list[tuple[int, float]], body: dict) -> dict:
    reply = completion([11], None, "length", model=body["model"])
    if body.get("prompt_logprobs") is not None:
        entries: list[dict | None] = [None]
        for token, value, (top, most) in zip(ids[1:], values[1:], best, strict=False):
            entry = {str(top): {"logprob": most, "rank": 1, "decoded_token": "x"}}
            entries.append(entry | {str(token): {"logprob": value, "rank": 1 + (top != token), "decoded_token": "x"}})
        reply["choices"][0]["prompt_logprobs"] = entries
    return reply


def _echo(ids: list[int], values: list[float | None], body: dict) -> dict:
    if not body.get("echo"):
        return completion([11], None, "length", model=body["model"])
    logprobs = {"tokens": ["x"] * len(ids), "token_logprobs": values, "text_offset": [0] * len(ids)}
    choice = {"index": 0, "text": "x", "logprobs": logprobs, "finish_reason": "length"}
    return {"model": body["model"], "choices": [choice]}


def main() -> None:
    port, seconds = int(sys.argv[1]), float(sys.argv[2])

    def answer(path: str, body: dict) -> dict:
        time.sleep(seconds)
        return echoes(path, body)

    with serving(answer, port=port):
        while True:
            time.sleep(1)


if __name__ == "__main__":
    main()

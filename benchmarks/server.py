"""10,000 requests to two local servers that drop, delay, cut and duplicate every tenth answer: each answered once?

    python benchmarks/server.py

Each server is a process of its own and answers 256 made-up ids with log-probs that tell who asked. The client is killed
with -9 at a quarter and started again; one server is killed at 40 % and is back at the half. Beside it 2,000
undisturbed requests to one server, by us and by the openai package (the peer: requests only, no check, no journal).
Overhead is the client's processor time per request; imports and tokenizer are not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import Results, answer, machine, run_job

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
COMMAND = "python benchmarks/server.py"
NUM, PEER_NUM, CONCURRENCY, TOKENS, PROMPT_TOKENS, END, FAULTY = 10_000, 2000, 32, 256, 150, 1, 0.10
KINDS = ("drop", "delay", "cut", "duplicate")
GOAL_MILLISECONDS = 5.0


def ids_of(seed: int) -> list[int]:
    """What the server answers to a request of this seed; the last id stops."""
    draw = random.Random(seed)
    return [draw.randrange(10, 160) for _ in range(TOKENS - 1)] + [END]


def serve(faulty: float, port: int, log: str) -> dict[str, Any]:
    """Serve until killed; the address is printed, and each request leaves a line of seed and fault in the log."""
    from serving import completion, serving

    plan, lock = random.Random(os.getpid()), threading.Lock()
    logprobs = [-random.Random(1).random() for _ in range(TOKENS)]

    def fault(number: int, body: dict[str, Any]) -> str | None:
        with lock:
            kind = plan.choice(KINDS) if plan.random() < faulty else None
            file.write(f"{body['seed']} {kind or 'fine'}\n")
        return kind

    def reply(path: str, body: dict[str, Any]) -> dict[str, Any]:
        return completion(ids_of(body["seed"]), logprobs, prompt_token_ids=body["prompt"])

    with open(log, "a", buffering=1) as file, serving(reply, fault, port) as server:
        print(server.url, flush=True)
        while True:
            time.sleep(1)


def ours(urls: list[str], journal: str, num: int) -> dict[str, Any]:
    """All requests through limbeck: seconds, processor time, and how many answers are the right ones."""
    from limbeck.rollouts.protocol import Prompt
    from limbeck.rollouts.sample import Decoding
    from limbeck.rollouts.server import Server, ServerSampler
    from limbeck.rollouts.server.wire import request_seed
    from limbeck.train.models import load_tokenizer

    server = Server(urls=tuple(urls), model="m", concurrency=CONCURRENCY, require_logprobs=True)
    decoding = Decoding(sampling_temperature=1.0, max_new_tokens=TOKENS)
    sampler = ServerSampler(server, load_tokenizer("abacus:base"), decoding, stop_ids=[END], journal=Path(journal))
    prompts = [Prompt(key=f"p/{n}", ids=(n % 100 + 20,) * PROMPT_TOKENS, text="") for n in range(num)]
    start, processor = time.perf_counter(), time.process_time()
    done = sampler(prompts)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    right = sum(list(c.ids) == ids_of(request_seed(decoding, p.key)) for p, c in zip(prompts, done, strict=True))
    return {"seconds": seconds, "processor": processor, "right": right}


def openai(url: str, num: int) -> dict[str, Any]:
    """The same requests through the openai package, which checks nothing and keeps nothing."""
    from openai import AsyncOpenAI

    async def ask() -> int:
        waiting, right = iter(range(num)), 0
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=20) as client:

            async def work() -> None:
                nonlocal right
                for n in waiting:
                    done = await client.completions.create(
                        model="m",
                        prompt=[n % 100 + 20] * PROMPT_TOKENS,
                        seed=n,
                        max_tokens=TOKENS,
                        logprobs=1,
                        temperature=1.0,
                        extra_body={"return_token_ids": True, "top_k": -1, "stop_token_ids": [END]},
                    )
                    right += done.choices[0].token_ids == ids_of(n)  # type: ignore[attr-defined]

            await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
        return right

    start, processor = time.perf_counter(), time.process_time()
    right = asyncio.run(ask())
    return {"seconds": time.perf_counter() - start, "processor": time.process_time() - processor, "right": right}


class Process:
    """A server in a process of its own, which can be killed and started again at its address."""

    def __init__(self, faulty: float, log: Path) -> None:
        self.faulty, self.log, self.url = faulty, log, ""
        self.start()

    def start(self) -> None:
        port = int(self.url.rpartition(":")[2]) if self.url else 0
        job = {"job": "serve", "faulty": self.faulty, "port": port, "log": str(self.log)}
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, json.dumps(job)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def running(faulty: float, *logs: Path):
    """Servers, one for each log."""
    servers = [Process(faulty, log) for log in logs]
    try:
        yield servers
    finally:
        for server in servers:
            server.kill()


def disturbed(root: Path, num: int) -> dict[str, Any]:
    """All requests to two faulty servers, with the client killed at a quarter and a server away from 40 % to the half."""
    journal, logs = root / "journal", (root / "one", root / "two")
    back = 0

    def away(server: Process) -> None:
        nonlocal back
        wait_for(journal, 2 * num // 5)
        server.kill()
        wait_for(journal, num // 2)
        server.start()
        back = lines(journal)

    with running(FAULTY, *logs) as servers:
        job = {"job": "ours", "urls": [server.url for server in servers], "journal": str(journal), "num": num}
        command = [sys.executable, __file__, json.dumps(job)]
        first = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
        wait_for(journal, num // 4)
        first.send_signal(signal.SIGKILL)
        first.wait()
        saved = lines(journal) - 2  # the settings, and what the server said of itself
        other = threading.Thread(target=away, args=(servers[1],), daemon=True)
        other.start()
        found = run_job(Path(__file__), job, threads=1)
        other.join()
        killed = f"{servers[1].url}/v1/"
    answers = [json.loads(line)["from"] for line in journal.read_bytes().splitlines()[2:]]
    asked = Counter(line.split()[1] for log in logs for line in log.read_text().splitlines())
    return found | {
        "saved": saved,
        "lines": len(answers),
        "by_killed": answers.count(killed),
        "by_killed_after": answers[back - 2 :].count(killed),
        "asked": sum(asked.values()),
        "faults": sum(asked[kind] for kind in KINDS),
        "failed": sum(asked[kind] for kind in KINDS if kind != "delay"),
    }


def wait_for(journal: Path, num: int) -> None:
    """Until the journal has so many lines."""
    while lines(journal) < num:
        time.sleep(0.2)


def lines(path: Path) -> int:
    """Whole lines of a file that may not be there yet."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def measure(num: int, repeats: int, results: Results) -> None:
    """All rows."""
    peer_num = min(num, PEER_NUM)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with running(0.0, root / "undisturbed") as [server]:
            mine, theirs = [], []
            for n in range(repeats):  # in turns: other work on the machine meets both
                job = {"job": "ours", "urls": [server.url], "journal": str(root / f"{n}"), "num": peer_num}
                mine.append(run_job(Path(__file__), job, threads=1))
                theirs.append(run_job(Path(__file__), {"job": "openai", "url": server.url, "num": peer_num}, threads=1))
            assert all(run["right"] == peer_num for run in (*mine, *theirs)), (mine, theirs)
        found = disturbed(root, num)
    best, peer = (1e3 * min(run["processor"] for run in runs) / peer_num for runs in (mine, theirs))
    what = f"{peer_num} requests of {PROMPT_TOKENS} prompt and {TOKENS} sampled tokens, {CONCURRENCY} at once"
    overhead = 1e3 * found["processor"] / (num - found["saved"])
    results.add(
        (f"{what}: client processor time a request, checked and on record, best of {repeats}", best, peer,
         "openai package: neither", peer / best, GOAL_MILLISECONDS, "ms"),
        (f"{what}: wall, best of {repeats}; the server's time included", min(r["seconds"] for r in mine),
         min(r["seconds"] for r in theirs), "openai package", None, None, "s"),
        (f"{num} requests to two servers, {FAULTY:.0%} dropped, delayed, cut or duplicated, the client killed with -9 once, "
         "a server killed and back: right answers", found["right"], None, "", None, num, "count"),
        ("the same: lines in the journal", found["lines"], None, "", None, num, "count"),
        ("the same: client processor time a request, failed ones included", overhead, None, "", None,
         GOAL_MILLISECONDS, "ms"),
        ("the same: faults that the servers made", found["faults"], None, "", None, None, "count"),
        ("the same: answers on record when the client was killed", found["saved"], None, "", None, None, "count"),
        ("the same: answers by the server that was killed", found["by_killed"], None, "", None, None, "count"),
        ("the same: of these after it was back", found["by_killed_after"], None, "", None, None, "count"),
        ("the same: requests beyond one each and what failed (under way at the kills)",
         found["asked"] - num - found["failed"], None, "", None, 2 * CONCURRENCY, "count"),
    )  # fmt: skip


def main() -> None:
    """Measure, print and keep the rows."""
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        answer({"serve": serve, "ours": ours, "openai": openai})
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=NUM, help="requests; fewer for a quick look, which is not written")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    results = Results("server", command=COMMAND, machine=machine(1), keep=arguments.num == NUM)
    measure(arguments.num, arguments.repeats, results)
    results.show()


if __name__ == "__main__":
    main()

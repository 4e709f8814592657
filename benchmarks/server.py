"""2,000 requests to a local server that drops, delays, cuts and duplicates every tenth answer: each answered once?

    python benchmarks/server.py

The server is a process of its own and answers 256 made-up ids with log-probs that tell who asked. Three clients: ours
undisturbed, ours against faults with a kill -9 in the middle, and the openai package undisturbed (the peer: requests only,
no check, no journal). Overhead is the client's processor time per request; imports and tokenizer are not counted.
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
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import Results, answer, machine, run_job

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
COMMAND = "python benchmarks/server.py"
NUM, CONCURRENCY, TOKENS, PROMPT_TOKENS, END, FAULTY = 2000, 32, 256, 150, 1, 0.10
KINDS = ("drop", "delay", "cut", "duplicate")
GOAL_MILLISECONDS = 5.0


def ids_of(seed: int) -> list[int]:
    """What the server answers to a request of this seed; the last id stops."""
    draw = random.Random(seed)
    return [draw.randrange(10, 160) for _ in range(TOKENS - 1)] + [END]


def serve(faulty: float) -> dict[str, Any]:
    """Serve until killed; the address is the first line, what was asked is told at /stats."""
    from serving import completion, serving

    plan = random.Random(0)
    faults: list[str | None] = []
    logprobs = [-random.Random(1).random() for _ in range(TOKENS)]

    def fault(number: int, body: dict[str, Any]) -> str | None:
        if body.get("stats"):
            return None
        faults.append(plan.choice(KINDS) if plan.random() < faulty else None)
        return faults[-1]

    def reply(path: str, body: dict[str, Any]) -> dict[str, Any]:
        if body.get("stats"):
            seeds = Counter(request["body"].get("seed") for request in server.asked)
            return {"asked": sum(seeds.values()), "seeds": len(seeds), "faults": Counter(filter(None, faults))}
        return completion(ids_of(body["seed"]), logprobs, prompt_token_ids=body["prompt"])

    with serving(reply, fault) as server:
        print(server.url, flush=True)
        while True:
            time.sleep(1)


def ours(url: str, journal: str, num: int) -> dict[str, Any]:
    """All requests through limbeck: seconds, processor time, and how many answers are the right ones."""
    from limbeck.rollouts.protocol import Prompt
    from limbeck.rollouts.sample import Decoding
    from limbeck.rollouts.server import Server, ServerSampler
    from limbeck.rollouts.server.wire import request_seed
    from limbeck.train.models import load_tokenizer

    server = Server(urls=(url,), model="m", concurrency=CONCURRENCY, require_logprobs=True)
    decoding = Decoding(sampling_temperature=1.0, max_new_tokens=TOKENS)
    sampler = ServerSampler(server, load_tokenizer("abacus:base"), decoding, stop_ids=[END], journal=Path(journal))
    prompts = [Prompt(key=f"p/{n}", ids=(n % 100 + 20,) * PROMPT_TOKENS, text="") for n in range(num)]
    start, processor = time.perf_counter(), time.process_time()
    done = sampler(prompts)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    right = sum(list(c.ids) == ids_of(request_seed(decoding, p.key)) for p, c in zip(prompts, done, strict=True))
    repeated = sampler.provenance()["server"]["repeated"]
    return {"seconds": seconds, "processor": processor, "right": right, "repeated": repeated}


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


@contextmanager
def running(faulty: float):
    """A server in a process of its own: its address, and what it was asked so far."""
    process = subprocess.Popen(
        [sys.executable, __file__, json.dumps({"job": "serve", "faulty": faulty})],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def stats(url: str) -> dict[str, Any]:
    """What the server was asked, these questions included."""
    request = urllib.request.Request(url, data=b'{"stats": true}')
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.loads(reply.read())


def killed_and_continued(url: str, journal: Path, num: int) -> dict[str, Any]:
    """Ours, killed when half is on record, then again; the lines that were there at the kill are counted."""
    job = {"job": "ours", "url": url, "journal": str(journal), "num": num}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen([sys.executable, __file__, json.dumps(job)], env=environment, stdout=subprocess.DEVNULL)
    while first.poll() is None and lines(journal) < num // 2:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    saved = lines(journal) - 2  # the header, and what the server said of itself
    before = stats(url)["asked"]
    return run_job(Path(__file__), job, threads=1) | {"saved": saved, "before": before}


def lines(path: Path) -> int:
    """Whole lines of a file that may not be there yet."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def measure(num: int, repeats: int, results: Results) -> None:
    """All rows."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with running(0.0) as url:
            mine, theirs = [], []
            for n in range(repeats):  # in turns: other work on the machine meets both
                mine.append(
                    run_job(
                        Path(__file__),
                        {"job": "ours", "url": url, "journal": str(root / f"{n}"), "num": num},
                        threads=1,
                    )
                )
                theirs.append(run_job(Path(__file__), {"job": "openai", "url": url, "num": num}, threads=1))
            assert all(run["right"] == num for run in (*mine, *theirs)), (mine, theirs)
        with running(FAULTY) as url:
            broken = killed_and_continued(url, root / "killed", num)
            asked = stats(url)
        sizes = lines(root / "killed") - 2
    best, peer = (1e3 * min(run["processor"] for run in runs) / num for runs in (mine, theirs))
    what = f"{num} requests of {PROMPT_TOKENS} prompt and {TOKENS} sampled tokens, {CONCURRENCY} at once"
    asked_again = asked["asked"] - 2 - broken["before"] + 1
    faults = sum(asked["faults"].values())
    harmless = asked["faults"].get("delay", 0)
    results.add(
        (f"{what}: client processor time a request, checked and on record, best of {repeats}", best, peer,
         "openai package: neither", peer / best, GOAL_MILLISECONDS, "ms"),
        (f"{what}: wall, best of {repeats}; the server's time included", min(r["seconds"] for r in mine),
         min(r["seconds"] for r in theirs), "openai package", None, None, "s"),
        (f"{num} requests, {FAULTY:.0%} dropped, delayed, cut or duplicated, client killed with -9 once: right answers",
         broken["right"], None, "", None, num, "count"),
        ("the same: lines in the journal", sizes, None, "", None, num, "count"),
        ("the same: faults that the server made", faults, None, "", None, None, "count"),
        ("the same: answers on record at the kill", broken["saved"], None, "", None, None, "count"),
        ("the same: requests after the kill, beyond those not on record and their faults",
         asked_again - (num - broken["saved"]) - sum(broken["repeated"].values()), None, "", None, 0, "count"),
        ("the same: requests in all, beyond one each and what failed (under way at the kill)",
         asked["asked"] - 2 - num - (faults - harmless), None, "", None, CONCURRENCY, "count"),
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

r"""The grader on reference solutions, on the same with their answers spoiled, on equivalent forms, for speed, under attack.

    LIMBECK_TEST_DATA=FOLDER python benchmarks/grader.py

FOLDER holds ``gsm8k_test.jsonl`` (``question``, ``answer``) and ``math500_test.jsonl`` (``problem``, ``solution``,
``answer``), or is given by ``--data``. Every exception is listed by itself. The peer of the algebra path is Math-Verify
called in a loop in a fresh process, on the bare answers, imports not counted; ours has fresh workers too. The two take
turns. Prints tables, writes ``results/grader.json`` and the tables of ``docs/grading.md``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import math_verify

from limbeck.problems import sources
from limbeck.problems.extract import extract
from limbeck.problems.grading import GRADER_ID, Grade, Grader, Outcome, decide, grade_all, question
from limbeck.progress import bar

COMMAND = "LIMBECK_TEST_DATA=FOLDER python benchmarks/grader.py"
RESULT = Path(__file__).parent / "results" / "grader.json"
DOCS = Path(__file__).parents[1] / "docs" / "grading.md"
SETS = {"GSM8K test": ("gsm8k", "gsm8k_test.jsonl"), "MATH-500": ("math", "math500_test.jsonl")}
WORKERS, REPEATS, INTEGERS, LIMIT = 2, 3, 20_000, 2.0
DIGITS = re.compile(r"(?<![\d.])(-?)(\d+)")


class Item(NamedTuple):
    """A problem's id, its gold, and a response."""

    id: str
    gold: str
    response: str


FORMS = [  # gold, answer, why
    (r"\frac{1}{2}", "0.5", "exact fractions: equal in value"),
    (r"\frac{1}{2}", r"\dfrac{2}{4}", "exact fractions: lowest terms are not asked for"),
    (r"\frac{1}{3}", "0.333", "a rounded number is another number"),
    (r"\frac{1}{3}", r"0.\overline{3}", "a repeating decimal is exact"),
    ("8/3", "2 2/3", "a mixed number"),
    ("2", "2 2/3", "a mixed number is not its whole part"),
    ("18", "18 dollars", "a unit after a number is dropped"),
    ("18", r"\$18.00", "currency is dropped, zeros change nothing"),
    ("12", r"12 \text{ cm}^2", "a unit with its power is dropped"),
    ("5", "5 million", "a word that changes the value is no unit: not read"),
    ("5", "5x", "a letter is a factor, not a unit"),
    ("5", r"5\mathrm{i}", "so is an upright i, e, n, x, y or z"),
    ("8000", "8,000", "thousands separator"),
    ("8000", "8{,}000", "thousands separator, as TeX spaces it"),
    ("8000", r"8\,000", "thousands separator, thin space"),
    ("12", "1,2", "a comma that groups no thousands separates two numbers"),
    ("-8000", "\u22128,000", "the minus sign of typography"),
    ("8000", "-8,000", "the sign counts"),
    ("023", "23", "zero-padded gold, as AIME's"),
    ("23", "230", "padding is on the left only"),
    ("1,-2", "-2, 1", "a bare list is a set: any order"),
    (r"\{1, 2\}", "2, 1", "braces or none: a set"),
    ("(1, 2)", "(2, 1)", "a pair is ordered"),
    ("(1, 2)", "1, 2", "a pair is not a list"),
    (r"\{1, 2\}", "1", "a set needs all its members"),
    ("(3, 4]", "[3, 4]", "an interval's ends count"),
    (r"1 \pm \sqrt{19}", r"1 - \sqrt{19} \text{ and } 1 + \sqrt{19}", "both signs, written out"),
    ("50", r"50\%", "percent is a unit: the problem asked for a percentage"),
    (r"50\%", "50", "percent is a unit: the gold names it, the answer need not"),
    ("0.5", r"50\%", "percent is a unit: 50 is not 0.5"),
    ("50", "0.5", "no factor of 100 is forgiven"),
    (r"90^\circ", "90", "degrees are a unit"),
    (r"\sqrt{2}", "1.41421356", "an irrational number to a part in a million"),
    (r"\sqrt{2}", "1.41", "too coarse"),
    (r"\sqrt{2}", r"\sqrt{2} \approx 1.41", "what follows the approximation sign is a reading aid"),
    ("3.14", r"\approx 3.14", "nothing stands before the approximation sign: what follows is the answer"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}", "algebra: equal"),
    ("(a+5)(b+2)", "ab + 2a + 5b + 10", "algebra: expanded"),
    ("x^2", "y^2", "letters are not interchangeable"),
    ("5", "x = 5", "an assignment answers its value"),
    ("5", "2x = 5", "an equation does not"),
    ("3", "x = 3 = 4", "a chain has no one value: not read"),
    ("1,-2", "x = 1, x = -2", "assignments of one letter are a list"),
    ("C", r"\textbf{(C)}\ 12", "the letter of a choice"),
    (r"\text{Evelyn}", "evelyn", "words: case is ignored"),
    (r"\text{Evelyn}", "Navin", "words: another word"),
    ("52_8", "52", "the base may be left out, as the question named it"),
    ("52_8", "52_9", "another base"),
    ("10^{-20}", r"2 \cdot 10^{-20}", "small is not equal"),
]  # fmt: skip

HOSTILE = {
    "towers of exponents": ["9^{9^{9^9}}", "9^9^9^9", "9**9**9", "2^{99999}", r"10^{10^{10}}"],
    "towers that the grammar cannot see": ["(9999^{9999})^{9999}", "((99^{99})^{99})^{99}", r"\left(9^{999}\right)^{9999}"],
    "megabyte expressions": ["9" * 1_000_000, "1+" * 500_000 + "1", "x" * 1_000_000, r"\frac{1}{2}" * 100_000],
    "unbalanced braces": ["{" * 1000, "}" * 1000, "{" * 10_000 + "}" * 10_000, r"\frac{1}{2", "((((1)"],
    "null bytes and controls": ["7\x00", "\x00" * 1000, "7\u202e", "\ud800", "\x1b[2J7"],
    "deep nesting": ["(" * 200 + "1" + ")" * 200, r"\sqrt{" * 100 + "2" + "}" * 100, r"\frac{1}{" * 60 + "2" + "}" * 60],
    "huge factorials and binomials": ["(10^9)!", "10000!", "999!", "5!!", r"\binom{99999}{50000}", r"\binom{9999}{5000}^{9999}"],
    "wide powers": ["(x+y+z+w)^{999}", "(a+b)^{9999}", "(x^{999}+1)^{999}(y^{999}-1)^{999}", r"\sin(9999^{9999})"],
    "code": ["__import__('os').system('true')", "().__class__.__bases__[0]", "lambda: 1", "exec(chr(111))", "open('x','w')"],
}  # fmt: skip


def spoil_number(answer: str) -> str:
    """The first number one larger; without a number, one more, or another word."""
    if DIGITS.search(answer):
        return DIGITS.sub(lambda m: f"{m[1]}{int(m[2]) + 1}", answer, count=1)
    return r"\text{something else}" if "\\text" in answer else f"{answer} + 1"


def spoil_sign(answer: str) -> str | None:
    """The sign of a number, of a whole expression, or of the first member flipped; None for words, which have none."""
    if "\\text" in answer and not DIGITS.search(answer):
        return None
    if re.search(r"=|\\begin|\\in\b|\\pm", answer):
        return DIGITS.sub(lambda m: m[2] if m[1] else f"-{m[2]}", answer, count=1)
    if "," in answer:
        return re.sub(r"^((?:\\left)?(?:\\\{|[(\[])? ?)(-?)", lambda m: m[1] + ("" if m[2] else "-"), answer, count=1)
    rest = answer.removeprefix("-")
    if "+" in rest or "-" in rest:
        return f"-({answer})"
    return rest if rest != answer else f"-{answer}"


def with_answer(item: Item, spoil: Callable[[str], str | None]) -> Item | None:
    """The response with another answer at the place where the grader reads it."""
    found = extract(item.response)
    other = spoil(found.answer)
    place = item.response.find(found.answer, max(item.response.rfind("\\boxed"), item.response.rfind("####")))
    if other is None or place < 0:
        return None
    return item._replace(response=item.response[:place] + other + item.response[place + len(found.answer) :])


def with_wrong_box_last(item: Item) -> Item:
    return item._replace(response=f"{item.response}\nWait. \\boxed{{{spoil_number(extract(item.response).answer)}}}")


def read_items(data: Path) -> dict[str, list[Item]]:
    return {
        name: [Item(p.id, p.answer, solution) for p, solution in sources.FORMATS[form](data / file)]
        for name, (form, file) in SETS.items()
    }


def graded(items: Sequence[Item]) -> list[Grade]:
    return grade_all([i.response for i in items], [i.gold for i in items], workers=WORKERS)


def reference_rows(items: dict[str, list[Item]]) -> list[dict[str, Any]]:
    """Shares as hoped for, each exception by itself."""
    rows = []
    for name, given in items.items():
        variants = {
            "reference solutions graded correct": given,
            "answer's number changed, graded wrong": [with_answer(i, spoil_number) for i in given],
            "answer's sign flipped, graded wrong": [with_answer(i, spoil_sign) for i in given],
            "wrong box last, graded wrong": [with_wrong_box_last(i) for i in given],
        }
        for what, maybe in variants.items():
            chosen = [item for item in maybe if item is not None]
            hoped = Outcome.CORRECT if what.endswith("correct") else Outcome.WRONG
            grades = graded(chosen)
            odd = [
                f"{i.id}: gold {i.gold!r}, read {g.extracted!r}: {g.outcome}"
                for i, g in zip(chosen, grades, strict=True)
                if g.outcome != hoped
            ]
            share = 100 * (1 - len(odd) / len(chosen))
            words = f"{name}: {what}, {len(chosen)} of {len(given)} (the others have none)"
            words = words if len(chosen) < len(given) else f"{name}: {what}, {len(chosen)}"
            none = [f"{i.id}: gold {i.gold!r}" for i, m in zip(given, maybe, strict=True) if m is None]
            rows.append({"what": words, "ours": share, "goal": 100.0, "unit": "%", "exceptions": odd, "left_out": none})
    return rows


def speed_rows(items: dict[str, list[Item]], data: Path) -> list[dict[str, Any]]:
    """Responses a minute where exact arithmetic decides, and where algebra does beside Math-Verify in a loop."""
    plain = [i for i in items["GSM8K test"] if decide(i.gold, extract(i.response).answer)]
    many = (plain * (INTEGERS // len(plain) + 1))[:INTEGERS]
    seconds = statistics.median(timed(lambda: graded(many)) for _ in range(REPEATS))
    what = f"integer answers graded, {INTEGERS} responses, one process"
    rows = [{"what": what, "ours": 60 * INTEGERS / seconds, "goal": 10_000.0, "unit": "responses/min"}]
    asked = algebra(items["MATH-500"])
    peer = f"math-verify {metadata.version('math-verify')} in a loop"
    rounds = []
    with bar("algebra", REPEATS) as advance:
        for _ in range(REPEATS):
            theirs, cpu = peer_seconds(data)
            mine = timed(lambda: graded(asked))
            own = cpu_seconds(lambda: graded(asked)) / WORKERS
            rounds.append({"start": (mine, theirs), "kept": (kept_seconds(asked), theirs), "cpu": (own, cpu)})
            advance(1)
    for key, words in (
        ("start", "starting the processes included"),
        ("kept", "processes kept"),
        ("cpu", "CPU time a worker, start included: what a machine without other work would take"),
    ):
        pairs = [r[key] for r in rounds]
        rows.append(
            {
                "what": f"algebra, {len(asked)} distinct questions, {WORKERS} workers, {words}",
                "ours": statistics.median(mine for mine, _ in pairs),
                "theirs": statistics.median(theirs for _, theirs in pairs),
                "peer": peer,
                "ratio": statistics.median(theirs / mine for mine, theirs in pairs),
                "goal": 2.0,
                "unit": "s",
            }
        )
    grades = graded(asked)
    agree = sum((g.outcome == Outcome.CORRECT) == serial(item) for g, item in zip(grades, asked, strict=True))
    what = f"algebra: same verdict as {peer}, {len(asked)} questions"
    return [*rows, {"what": what, "ours": 100 * agree / len(asked), "unit": "%"}]


def peer_seconds(data: Path) -> tuple[float, float]:
    """Wall and CPU seconds of the loop in a process of its own, as fresh as our workers; its imports are not counted."""
    command = [sys.executable, __file__, "--data", str(data), "--peer"]
    return tuple(
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    )


def run_peer(items: Sequence[Item]) -> None:
    asked = algebra(items)
    serial(Item("", "x+1", r"\boxed{1+x}"))
    start, cpu = time.perf_counter(), time.process_time()
    for item in asked:
        serial(item)
    print(json.dumps([time.perf_counter() - start, time.process_time() - cpu]))


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of this process and of the children that it started and ended, whatever else the machine does."""
    before = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    work()
    after = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(a.ru_utime + a.ru_stime - b.ru_utime - b.ru_stime for a, b in zip(after, before, strict=True))


def kept_seconds(items: Sequence[Item]) -> float:
    """As a training loop has it: the processes were started before, but have not met these questions."""
    with Grader(workers=WORKERS) as grader:
        graded_by(grader, [Item("", "x+1", r"\boxed{1+x}")])
        return timed(lambda: graded_by(grader, items))


def algebra(items: Sequence[Item]) -> list[Item]:
    """Distinct questions that exact arithmetic leaves open: right answers in another form, and wrong ones."""
    changes: list[Callable[[str], str | None]] = [
        spoil_sign,
        lambda a: None if re.search(r"[,=\\]in|text|begin|[\[{]\d|,", a) else f"0 + {a}",
        *(lambda a, n=n: spoil_numbers(a, n) for n in range(1, 6)),
    ]
    out: dict[tuple[str, str], Item] = {}
    for item in items:
        for change in changes:
            other = change(extract(item.response).answer)
            if other is not None and decide(item.gold, other) is None:
                out.setdefault(question(item.gold, other), item._replace(response=f"\\boxed{{{other}}}"))
    return list(out.values())


def spoil_numbers(answer: str, times: int) -> str:
    for _ in range(times):
        answer = spoil_number(answer)
    return answer


def graded_by(grader: Grader, items: Sequence[Item]) -> list[Grade]:
    return grader.grade_all([i.response for i in items], [i.gold for i in items])


def serial(item: Item) -> bool:
    """The peer as its readme calls it."""
    return bool(math_verify.verify(math_verify.parse(f"${item.gold}$"), math_verify.parse(item.response)))


def hostile_rows() -> list[dict[str, Any]]:
    """Seconds against limit x items / workers, and what became of each kind."""
    rows = []
    boxes = [r"\boxed{5} " * 199 + r"\boxed{7}", r"\boxed{" * 200, r"\boxed{7" + "}" * 200]
    kinds = {k: [f"so \\boxed{{{a}}}" for a in v] + [f"{a}\n#### {a}" for a in v] for k, v in HOSTILE.items()}
    for kind, responses in (kinds | {"200 boxes": boxes}).items():
        seconds, grades, after = attacked(responses)
        rows.append(
            {
                "what": f"hostile: {kind}, {len(responses)} responses, limit {LIMIT:g} s, {WORKERS} workers",
                "ours": seconds,
                "goal": LIMIT * len(responses) / WORKERS,
                "unit": "s",
                "outcomes": dict(Counter(str(grade.outcome) for grade in grades)),
                "next_item": str(after),
            }
        )
    return rows


def attacked(responses: Sequence[str]) -> tuple[float, list[Grade], Outcome]:
    """Seconds for all, their grades, and what becomes of a good item right after."""
    good = [Item("", "x+1", r"\boxed{1+x}")]
    with Grader(workers=WORKERS, limit_seconds=LIMIT) as grader:
        graded_by(grader, good)  # started
        start = time.perf_counter()
        grades = grader.grade_all(responses, ["7"] * len(responses))
        seconds = time.perf_counter() - start
        return seconds, grades, graded_by(grader, good)[0].outcome


def form_lines() -> list[str]:
    """The table of equivalent forms, in Markdown."""
    grades = grade_all([f"\\boxed{{{a}}}" for _, a, _ in FORMS], [g for g, _, _ in FORMS], workers=WORKERS)
    lines = ["| gold | answer | outcome | why |", "| --- | --- | --- | --- |"]
    for (gold, answer, why), grade in zip(FORMS, grades, strict=True):
        lines.append(f"| `{gold}` | `{answer}` | {grade.outcome} | {why} |")
    return lines


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def result_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| what | ours | peer | ratio | goal |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        theirs = f"{row['theirs']:.4g} {row['unit']}" if row["theirs"] is not None else ""
        ratio = f"{row['ratio']:.2f}" if row["ratio"] is not None else ""
        goal = f"{row['goal']:g}" if row["goal"] is not None else ""
        lines.append(f"| {row['what']} | {row['ours']:.4g} {row['unit']} | {theirs} | {ratio} | {goal} |")
    for row in rows:
        for key, title in (("exceptions", "Exceptions"), ("left_out", "Left out")):
            lines += ["", f"{title}, {row['what']}:", ""] if row.get(key) else []
            lines += [f"- `{one}`" for one in row.get(key, [])]
    return lines


def write_docs(sections: dict[str, list[str]]) -> None:
    """Each table between its two marks in the page."""
    text = DOCS.read_text(encoding="utf-8")
    for name, lines in sections.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}\n" + "\n".join(lines) + f"\n{end}{rest.partition(end)[2]}"
    DOCS.write_text(text, encoding="utf-8")


def merged(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows found now in place of those of the same name, in the order kept."""
    kept = {row["what"]: row for row in json.loads(RESULT.read_text(encoding="utf-8"))} if RESULT.exists() else {}
    return list((kept | {row["what"]: row for row in found}).values())


def main() -> None:
    """Print the tables; write the JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("LIMBECK_TEST_DATA"))
    parser.add_argument("--only", default="", help="reference, hostile or speed; the other rows stay as they were")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    data = arguments.data
    if data is None or not Path(data).is_dir():
        parser.error("--data or LIMBECK_TEST_DATA must name a folder with gsm8k_test.jsonl and math500_test.jsonl")
    items = read_items(Path(data))
    if arguments.peer:
        run_peer(items["MATH-500"])
        return
    load = os.getloadavg()[0]
    parts = {
        "reference": lambda: reference_rows(items),
        "hostile": hostile_rows,
        "speed": lambda: speed_rows(items, Path(data)),
    }
    rows = [row for name, part in parts.items() if arguments.only in ("", name) for row in part()]
    common = {
        "theirs": None,
        "peer": None,
        "ratio": None,
        "goal": None,
        "command": COMMAND,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f} at the start; {GRADER_ID}",
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }
    rows = merged([common | row for row in rows])
    lines = result_lines(rows)
    print("\n".join(lines + form_lines()))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    write_docs({"results": lines, "forms": form_lines()})


if __name__ == "__main__":
    main()

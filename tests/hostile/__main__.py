"""Write the table of hostile files into docs/reliability.md: ``python -m tests.hostile``."""

from __future__ import annotations

from pathlib import Path

from tests.hostile.cases import CASES

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- hostile input -->", "<!-- end of hostile input -->"


def section() -> str:
    """The table, one row a case: what is wrong, the command that opens it, and what it says."""
    rows = ["| input | opened by | what it gets |", "| --- | --- | --- |"]
    for case in CASES:
        said = f"refused: `{case.sentence.replace('|', chr(92) + '|')}`" if case.sentence else "taken as it stands"
        rows.append(f"| {case.wrong} | `limbeck {case.verb}` | {said} |")
    return "\n".join(rows)


def main() -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{section()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()

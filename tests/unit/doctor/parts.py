"""What the tests of the doctor share."""

from __future__ import annotations

import json
from pathlib import Path


def edit(path: Path, **changes) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def by_name(findings) -> dict:
    return {finding.name.removesuffix(" (chosen)"): finding for finding in findings}

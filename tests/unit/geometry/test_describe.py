"""The page of metrics has a row for everything that has a name, and no cell breaks its table."""

import re

from typer.testing import CliRunner

from limbeck import cli
from limbeck.geometry import METRICS, NULLS, REASONS
from limbeck.geometry.dense import DENSE_METRICS, DENSE_NULLS, DENSE_REASONS
from limbeck.geometry.trajectory import TRAJECTORY_METRICS, TRAJECTORY_NULLS


def test_every_name_has_a_row_of_as_many_cells_as_its_heading():
    page = CliRunner().invoke(cli.app, ["metrics", "--markdown"]).stdout
    width = 0
    names = []
    for line in page.splitlines():
        cells = re.split(r"(?<!\\)\|", line)[1:-1] if line.startswith("|") else []
        assert len(cells) in (0, width) or not width, line
        width = len(cells)
        names += re.findall(r"^\| `([^`]+)`", line)
    tables = (METRICS, DENSE_METRICS, TRAJECTORY_METRICS, NULLS, DENSE_NULLS, TRAJECTORY_NULLS, REASONS | DENSE_REASONS)
    assert names == [name for table in tables for name in table]

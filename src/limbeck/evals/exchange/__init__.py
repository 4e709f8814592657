"""Score tables from the logs of other evaluation programs, and ours as plain files for them."""

from limbeck.evals.exchange.detect import SOURCES, read_log
from limbeck.evals.exchange.plain import write_file
from limbeck.evals.exchange.rows import Regrade

__all__ = ["SOURCES", "Regrade", "read_log", "write_file"]

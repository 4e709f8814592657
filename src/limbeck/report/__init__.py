"""Results become one self-contained page, with the numbers of every figure beside it as CSV."""

from limbeck.report.markdown import markdown
from limbeck.report.page import build

__all__ = ["build", "markdown"]

"""Files as a stranger may make them: a table of what is wrong with each, who reads it, and the sentence it must get.

``python -m tests.hostile`` writes the table into docs/reliability.md; a test fails while that page is stale.
"""

from tests.hostile.cases import CASES, VERBS, Case

__all__ = ["CASES", "VERBS", "Case"]

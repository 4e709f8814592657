"""The whole table, in the order of the docs."""

from __future__ import annotations

from tests.hostile.models import MODELS
from tests.hostile.rollouts import FOLDERS, PROBLEMS, ROLLOUTS
from tests.hostile.scores import SCORES, TABLES
from tests.hostile.studies import RESULTS, STUDIES
from tests.hostile.verbs import VERBS, Case
from tests.hostile.weights import WEIGHTS

CASES: list[Case] = [*ROLLOUTS, *FOLDERS, *PROBLEMS, *SCORES, *TABLES, *WEIGHTS, *MODELS, *STUDIES, *RESULTS]

__all__ = ["CASES", "VERBS", "Case"]

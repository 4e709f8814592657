"""Reward functions that another process can import, most of them bad."""

from __future__ import annotations

import os
import time


def by_name(problem, answers):
    match problem.id:
        case "raise":
            raise ValueError("no")
        case "short":
            return [1.0]
        case "nan":
            return [1.0, float("nan")]
        case "text":
            return ["good", "bad"]
        case "exit":
            os._exit(3)
        case "hang":
            time.sleep(60)
    return [float(answer == problem.answer) for answer in answers]


calls = 0


def one_in_three(problem, answers):
    """Fails on every third call."""
    global calls
    calls += 1
    if calls % 3 == 0:
        raise ValueError("no")
    return [float(len(answer) % 2) for answer in answers]

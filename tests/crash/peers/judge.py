"""What was found after a crash, put into one of four words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np

from tests.crash.peers.programs import ROWS, Columns

__all__ = ["OUTCOMES", "Outcome", "outcome"]

Outcome: TypeAlias = Literal["whole", "torn", "lost", "unreadable"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


def outcome(found: Columns | None, states: Sequence[Columns], low: int, high: int) -> Outcome:
    """Judge what was found when state `low` had been promised and `high` begun.

    whole
        One of the states from `low` to `high`.
    torn
        A mixture of them, or one of them with more columns; nothing promised is missing.
    lost
        Some number is not what any of these states has there: what had been promised is gone.
    unreadable
        It could not be opened and read.
    """
    if found is None:
        return "unreadable"
    allowed = states[low : high + 1]
    if any(np.array_equal(found, state) for state in allowed):
        return "whole"
    promised = len(allowed[0])
    if found.ndim != 2 or found.shape[1] != ROWS or len(found) < promised:
        return "lost"
    fits = np.zeros((promised, ROWS), bool)
    for state in allowed:
        fits |= found[:promised] == state[:promised]
    return "torn" if fits.all() else "lost"

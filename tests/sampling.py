"""How much a run samples: little at each commit, much in ``make property`` and every night.

All follows from one number, the examples of Hypothesis' profile (``tests/conftest.py``). A test
that needs more examples than others, or fewer, says how many times as many, so that it grows with
the profile; cases that are listed are sampled in a run at each commit, and all run otherwise.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

from hypothesis import settings

__all__ = ["AT_EACH_COMMIT", "examples", "sampled", "thorough"]

T = TypeVar("T")

AT_EACH_COMMIT = 16
"""Examples of a property where a run may take minutes."""


def thorough() -> bool:
    """Whether this run is there to sample."""
    return settings().max_examples > AT_EACH_COMMIT


def examples(times: float, **others: Any) -> settings:
    """Make settings of so many times the examples that the profile asks for.

    >>> examples(1).max_examples == settings().max_examples
    True
    >>> examples(1e-9).max_examples
    1
    """
    return settings(max_examples=max(1, round(times * settings().max_examples)), **others)


def sampled(cases: Sequence[T], count: int) -> list[T]:
    """Take some of the cases, in their order; all of them where a run is there to sample.

    The same ones in each run at a commit: a failure there is the commit's.

    >>> sampled("abc", 5)
    ['a', 'b', 'c']
    """
    if thorough() or count >= len(cases):
        return list(cases)
    chosen = sorted(random.Random(0).sample(range(len(cases)), count))
    return [cases[at] for at in chosen]

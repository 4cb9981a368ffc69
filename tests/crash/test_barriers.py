"""A barrier of each medium, left out; ``make barriers`` tries all of them."""

from __future__ import annotations

import random

import pytest

from tests.crash.barriers import FAMILIES, barriers_of, is_missed

LEAST = {"files": 8, "hierarchy": 6, "shelf": 10, "device": 8}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_barrier_that_is_left_out_is_missed(name: str) -> None:
    family = FAMILIES[name]
    barriers = barriers_of(family)
    assert len(barriers) >= LEAST[name]
    assert {barrier.site.split()[0] for barrier in barriers} >= family.calls
    for barrier in random.Random(1).sample(barriers, 1):
        assert is_missed(barrier), barrier.site

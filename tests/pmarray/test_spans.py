"""`SpanSet` against a set of integers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pmarray._geometry.spans import SpanSet
from tests.sampling import examples

END = 40
many = examples(6)  # they are fast
span = st.tuples(st.integers(0, END), st.integers(0, END))
Step = tuple[str, tuple[int, int]]
operations = st.lists(st.tuples(st.sampled_from(["add", "remove"]), span), max_size=25)


def both(steps: list[Step]) -> tuple[SpanSet, set[int]]:
    spans, model = SpanSet(), set[int]()
    for what, (start, stop) in steps:
        if what == "add":
            spans.add(start, stop)
            model |= set(range(start, stop))
        else:
            spans.remove(start, stop)
            model -= set(range(start, stop))
        check(spans, model)
    return spans, model


def check(spans: SpanSet, model: set[int]) -> None:
    found = list(spans)
    assert {i for start, stop in found for i in range(start, stop)} == model
    assert all(start < stop for start, stop in found)
    # Sorted, disjoint and not even touching: one way of saying it.
    assert all(a[1] < b[0] for a, b in pairwise(found))
    assert spans.nbytes == len(model)
    assert bool(spans) == bool(model)


@many
@given(operations)
def test_adds_and_removes_like_a_set(steps: list[Step]) -> None:
    spans, _ = both(steps)
    spans.clear()
    check(spans, set())


@many
@given(operations, span)
def test_answers_like_a_set(steps: list[Step], asked: tuple[int, int]) -> None:
    spans, model = both(steps)
    start, stop = asked
    wanted = set(range(start, stop))
    assert spans.covers(start, stop) == (wanted <= model)
    assert spans.intersects(start, stop) == bool(wanted & model)
    gaps = list(spans.gaps(start, stop))
    assert {i for a, b in gaps for i in range(a, b)} == wanted - model
    assert all(a < b for a, b in gaps)

"""States of a group on their way over the serial line."""

from __future__ import annotations

from typing import Any

from pmarray.testing import State

__all__ = ["EMPTY", "from_json", "to_json"]

EMPTY = State((), ())
"""Of a group that was not made yet."""


def to_json(state: State) -> list[Any]:
    """Return it as lists."""
    return [state.arrays, state.attrs]


def from_json(value: Any) -> State:
    """Return what `to_json` was given."""
    arrays = tuple((name, tuple(shape), dtype, items) for name, shape, dtype, items in value[0])
    return State(arrays, tuple((name, content) for name, content in value[1]))

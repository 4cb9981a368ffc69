"""The part of a tensor that one process holds: a box of its items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["Box", "Shard", "axes"]


def axes(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a parameter as boxes see it, with one axis at least."""
    return tuple(shape) or (1,)


@dataclass(frozen=True, slots=True)
class Shard:
    """How one dimension of a mesh of processes cuts an axis of a tensor."""

    axis: int
    """Of the tensor."""
    pieces: int
    """Processes along the dimension."""
    which: int
    """The place of this process among them."""


@dataclass(frozen=True)
class Box:
    """Some items of a tensor: a range along each of its axes. A tensor has one axis at least here.

    Examples
    --------
    >>> box = Box.cut((5, 2), [Shard(0, 2, 1)])
    >>> box.offset, box.shape
    ((3, 0), (2, 2))
    >>> box.places((5, 2))
    array([6, 7, 8, 9])
    """

    offset: tuple[int, ...]
    """Of its first item, along each axis."""
    shape: tuple[int, ...]
    """Items along each axis."""

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Self:
        """The box of all items."""
        return cls((0,) * len(shape), tuple(shape))

    @classmethod
    def none(cls, shape: Sequence[int]) -> Self:
        """A box without items: nothing along the first axis."""
        return cls((0,) * len(shape), (0, *shape[1:]))

    @classmethod
    def cut(cls, shape: Sequence[int], shards: Sequence[Shard]) -> Self:
        """What is left after cuts, one after another, as `torch.chunk` makes them.

        Pieces have ``ceil(items / pieces)`` items, the last ones fewer, or none.
        """
        offset, left = [0] * len(shape), list(shape)
        for shard in shards:
            items = left[shard.axis]
            most = -(-items // shard.pieces)
            start = min(most * shard.which, items)
            offset[shard.axis] += start
            left[shard.axis] = min(most, items - start)
        return cls(tuple(offset), tuple(left))

    @property
    def size(self) -> int:
        """Number of its items."""
        return math.prod(self.shape)

    @cached_property
    def index(self) -> tuple[slice, ...]:
        """Picks it from the tensor."""
        return tuple(slice(o, o + n) for o, n in zip(self.offset, self.shape, strict=True))

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether it lies in a tensor of this shape."""
        return len(self.offset) == len(self.shape) == len(shape) and all(
            o >= 0 and n >= 0 and o + n <= m
            for o, n, m in zip(self.offset, self.shape, shape, strict=True)
        )

    def overlaps(self, other: Box) -> bool:
        """Whether an item is in both."""
        return bool(self.size and other.size) and all(
            a < b + m and b < a + n
            for a, n, b, m in zip(self.offset, self.shape, other.offset, other.shape, strict=True)
        )

    def places(self, shape: Sequence[int]) -> NDArray[np.int64]:
        """Where its items lie in the tensor as it lies flat, ascending, shape (size,)."""
        result = np.zeros((1,), np.int64)
        for o, n, m in zip(self.offset, self.shape, shape, strict=True):
            result = (result[:, None] * m + np.arange(o, o + n)).reshape(-1)
        return result

    def run(self, shape: Sequence[int]) -> tuple[int, int] | None:
        """First place and number of its items, if they lie side by side; None if they do not."""
        axis = max((i for i, n in enumerate(shape) if self.shape[i] != n), default=0)
        if not self.size:
            return 0, 0
        if any(self.shape[i] != 1 for i in range(axis)):
            return None
        first = 0
        for o, m in zip(self.offset, shape, strict=True):
            first = first * m + o
        return first, self.size

    def to_json(self) -> list[list[int]]:
        """As JSON can hold it."""
        return [list(self.offset), list(self.shape)]

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The box that `to_json` wrote.

        Raises
        ------
        ValueError, TypeError
            It is damaged.
        """
        offset, shape = (tuple(map(_count, numbers)) for numbers in value)
        return cls(offset, shape)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 60:
        raise ValueError(f"{value!r:.40} is no count")
    return value

"""Reading beside a training that goes on.

A reader sees one commit, which a writer keeps for a while only; then the reader has to move on to
the last one. A posterior can do so in the middle of its work, as iterates do not change: they are
added, cut off or overwritten. The progress of the same commit tells which, and is looked at after
every reading.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

import pmarray
from pmarray.errors import SnapshotExpiredError
from swag._trajectory import Trajectory

__all__ = ["Following"]

T = TypeVar("T")

_MOST_VAIN = 100
"""Readings in turn that may come too late; the writer then is too fast for the reader."""


@dataclass(frozen=True)
class Following:
    """Readings of a group that another process may write to.

    Parameters
    ----------
    group
        The group.
    moves
        Whether it may be moved on to the last commit: not where it is the program's.
    """

    group: pmarray.Group
    moves: bool

    def read(self, read: Callable[[], T]) -> T:
        """Return what only reads; again as of the last commit, where the one before is gone."""
        vain = 0
        while True:
            try:
                return read()
            except SnapshotExpiredError as error:
                vain += 1
                self._move_on(vain, error)

    def rows(self, array: pmarray.PMArray) -> Trajectory:
        """Return a trajectory that is read that way."""
        return _FollowedRows(array, self)

    def read_each(
        self, array: pmarray.PMArray, indices: Iterable[tuple[slice, slice]], memory: int
    ) -> Iterator[NDArray[np.generic]]:
        """Yield the items of one index after another; see `PMArray.read_each`."""
        left, vain = deque(indices), 0
        while left:
            try:
                for piece in array.read_each(tuple(left), memory=memory):
                    yield piece
                    left.popleft()
                    vain = 0
            except SnapshotExpiredError as error:
                vain += 1
                self._move_on(vain, error)

    def _move_on(self, vain: int, error: SnapshotExpiredError) -> None:
        if not self.moves or vain == _MOST_VAIN:
            raise error
        self.group.refresh()


@dataclass(frozen=True)
class _FollowedRows:
    """See `Trajectory`."""

    array: pmarray.PMArray
    following: Following

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return self.array.dtype

    def __getitem__(self, index: tuple[slice, slice], /) -> NDArray[np.generic]:
        return self.following.read(lambda: self.array[index])

    def read_each(
        self, indices: Iterable[tuple[slice, slice]], /, *, memory: int
    ) -> Iterator[NDArray[np.generic]]:
        return self.following.read_each(self.array, indices, memory)

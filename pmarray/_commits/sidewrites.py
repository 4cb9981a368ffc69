"""Writes of one region that other threads do, a few at a time, while more is made to be written.

No order of them is promised. So this is for what has no consequences before a barrier.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial

from pmarray._system.uninterrupted import Task
from pmarray.backends._protocols import Region

__all__ = ["SideWrites"]


class SideWrites:
    """Writes that are under way; one thread at a time begins and awaits them.

    Parameters
    ----------
    region
        What is written to.
    most
        How many are under way at a time; when `begin` returns, one less.
    """

    def __init__(self, region: Region, most: int) -> None:
        self._region = region
        self._most = most
        self._under_way: deque[tuple[int, Task[None]]] = deque()
        self._tried = False

    def begin(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Have buffers written, which stay as they are until `most` less one more have been begun.

        Raises
        ------
        StorageError
            One that was begun before has failed.
        """
        task = Task(partial(self._region.write, offset, buffers))
        self._under_way.append((offset, task))
        task.start()
        # The first one alone: it may show how its region cannot be written to.
        self.settle(self._most - 1 if self._tried else 0)
        self._tried = True

    def settle(self, most: int = 0) -> None:
        """Return when no more than so many are under way, or raise what one of them has raised."""
        while len(self._under_way) > most:
            _, task = self._under_way[0]
            task.wait()
            task.result()
            self._under_way.popleft()

    def abandon(self) -> int | None:
        """Wait for all; return where the first that failed begins, None if there is none."""
        failed = None
        while self._under_way:
            offset, task = self._under_way[0]
            task.wait()
            if task.error is not None and failed is None:
                failed = offset
            self._under_way.popleft()
        return failed

"""Work that a caller shares with threads: whoever is free takes the next part.

The caller takes parts himself while he waits, so that he waits for a part that somebody has begun,
and never for a thread that is busy with something else, or that there is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

import torch

from pmarray.locks import Lock
from swag._worker import Worker

__all__ = ["Batch", "Crew"]

Part = Callable[[], object]


class Batch:
    """Parts that may be done in any order, on any threads, and at the same time."""

    def __init__(self, parts: Iterable[Part]) -> None:
        self._left = deque(parts)
        self._under_way: list[Lock] = []
        self._errors: list[BaseException] = []

    def __len__(self) -> int:
        return len(self._left)

    def work(self) -> None:
        """Take parts until none is left."""
        while True:
            over = Lock()
            over.acquire()
            self._under_way.append(over)  # before: who finds no part left waits for this one
            try:
                part = self._left.popleft()
            except IndexError:
                over.release()
                return
            try:
                part()
            except BaseException as error:
                self._errors.append(error)
                self._left.clear()
            finally:
                over.release()

    def finish(self) -> None:
        """Help, and return when all parts are over; or raise what one of them has raised."""
        self.work()
        for over in list(self._under_way):
            with over:
                pass
        if self._errors:
            raise self._errors[0]


class Crew:
    """Threads that help until the ``with`` block ends.

    Parameters
    ----------
    items
        How many numbers they are to make; for few, there are none, and fewer where the system has
        no room for another thread.

    Examples
    --------
    >>> made = []
    >>> with Crew(items=10) as crew:
    ...     crew.begin([lambda: made.append(1), lambda: made.append(2)]).finish()
    >>> made
    [1, 2]
    """

    _FEW = 1 << 20

    def __init__(self, items: int) -> None:
        self.count = torch.get_num_threads() - 1 if items >= self._FEW else 0
        """How many there are at most."""
        self._workers: list[Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.stop()

    def begin(self, parts: Iterable[Part]) -> Batch:
        """Have parts done; the caller then finishes them."""
        batch = Batch(parts)
        while len(self._workers) < min(self.count, len(batch)):
            try:
                self._workers.append(Worker("swag-crew"))
            except RuntimeError:  # no more threads: the caller does what nobody else does
                self.count = len(self._workers)
        for worker in self._workers[: len(batch)]:
            worker.put(batch.work)
        return batch

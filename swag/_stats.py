"""What collecting has cost so far."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Clock", "Stats"]


@dataclass(frozen=True, slots=True)
class Stats:
    """What collecting has cost so far, in this process; `swag.SWAG.stats` gives it."""

    collected: int
    """Iterates in the store."""
    behind: int
    """Of these, not yet committed: one may be copied and written beside training."""
    skipped: int
    """Weights that were offered and are no iterates."""
    iterate_bytes: int
    """What one iterate takes."""
    free_bytes: int | None
    """On the disk, or of memory; None where that is not known."""
    update_seconds: float
    """Spent in `update_parameters`."""
    step_seconds: float
    """Waited for a copy in the steps of attached optimizers."""

    @property
    def room(self) -> int | None:
        """Further iterates that find room there."""
        if self.free_bytes is None or not self.iterate_bytes:
            return None
        return self.free_bytes // self.iterate_bytes


class Clock:
    """Adds up seconds.

    Examples
    --------
    >>> clock = Clock()
    >>> with clock.running():
    ...     pass
    >>> clock.seconds >= 0
    True
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of a block."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begun

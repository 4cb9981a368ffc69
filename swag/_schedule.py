"""Which steps of training are collected."""

from __future__ import annotations

from dataclasses import dataclass

from swag._counts import count

__all__ = ["Schedule"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """From when on, and every how many steps.

    Parameters
    ----------
    start
        Steps before the first that is collected.
    every
        Steps from one that is collected to the next.

    Raises
    ------
    ValueError
        They are no counts.

    Examples
    --------
    >>> schedule = Schedule(start=10, every=3)
    >>> [step for step in range(20) if schedule.due(step - 1, step)]
    [11, 14, 17]
    >>> schedule.count(0, 14)
    2
    """

    start: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        for name, least in (("start", 0), ("every", 1)):
            object.__setattr__(self, name, count(name, getattr(self, name), least))

    def count(self, after: int, until: int) -> int:
        """Steps that are due in ``(after, until]``; the first step of a training is 1."""
        return self._until(until) - self._until(after)

    def due(self, after: int, until: int) -> bool:
        """Whether there is one."""
        return self.count(after, until) > 0

    def _until(self, step: int) -> int:
        return max(0, -(-(step - self.start) // self.every))

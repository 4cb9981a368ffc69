"""Times in which nothing happens: what was looked up at their beginning need not be looked up."""

from __future__ import annotations

__all__ = ["Lull"]


class Lull:
    """A time in which nothing happens to a group, or to what its cache has.

    Who begins one has looked whether anything is going on. Whoever does anything ends it first, by
    one store, so that no exception can come in between; and another one can begin afterwards.
    """

    __slots__ = ("lasts",)

    def __init__(self, *, lasts: bool = True) -> None:
        self.lasts = lasts
        """Whether nothing has happened since it began."""

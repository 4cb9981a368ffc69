"""A set of bytes as sorted, disjoint half-open spans. Pure; the cache keeps its books in them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

__all__ = ["SpanSet"]


class SpanSet:
    """Sorted, disjoint, non-adjacent spans ``[start, stop)``.

    >>> s = SpanSet(); s.add(0, 10); s.add(20, 30); s.add(10, 15)
    >>> s
    SpanSet([(0, 15), (20, 30)])
    >>> list(s.gaps(5, 40)), s.covers(2, 14), s.intersects(15, 20)
    ([(15, 20), (30, 40)], True, False)
    >>> s.remove(5, 25); s, s.nbytes
    (SpanSet([(0, 5), (25, 30)]), 10)
    """

    __slots__ = ("_starts", "_stops")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def add(self, start: int, stop: int) -> None:
        """Add ``[start, stop)``, merging what it overlaps or touches."""
        if start >= stop:
            return
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def remove(self, start: int, stop: int) -> None:
        """Remove ``[start, stop)``."""
        if start >= stop:
            return
        first = bisect_right(self._stops, start)
        last = bisect_left(self._starts, stop)
        if first >= last:
            return
        starts: list[int] = []
        stops: list[int] = []
        if self._starts[first] < start:
            starts.append(self._starts[first])
            stops.append(start)
        if self._stops[last - 1] > stop:
            starts.append(stop)
            stops.append(self._stops[last - 1])
        self._starts[first:last] = starts
        self._stops[first:last] = stops

    def clear(self) -> None:
        """Remove everything."""
        self._starts.clear()
        self._stops.clear()

    def covers(self, start: int, stop: int) -> bool:
        """Whether every byte of ``[start, stop)`` is in the set."""
        if start >= stop:
            return True
        i = bisect_right(self._starts, start) - 1
        return i >= 0 and self._stops[i] >= stop

    def intersects(self, start: int, stop: int) -> bool:
        """Whether any byte of ``[start, stop)`` is in the set."""
        i = bisect_right(self._stops, start)
        return i < len(self._starts) and self._starts[i] < stop and start < stop

    def gaps(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of ``[start, stop)`` that are not in the set, in order."""
        for i in range(bisect_right(self._stops, start), len(self._starts)):
            if self._starts[i] >= stop:
                break
            if self._starts[i] > start:
                yield start, self._starts[i]
            start = self._stops[i]
        if start < stop:
            yield start, stop

    @property
    def nbytes(self) -> int:
        """How many bytes are in the set."""
        return sum(self._stops) - sum(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._stops, strict=True)))

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __repr__(self) -> str:
        return f"SpanSet({list(self)})"

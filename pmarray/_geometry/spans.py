"""A set of bytes as sorted, disjoint half-open spans. Pure; the cache keeps its books in them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

__all__ = ["SpanSet"]


class SpanSet:
    """Sorted, disjoint, non-adjacent spans ``[start, stop)``.

    Every change is one assignment, so that an exception that arrives in the middle of a method
    leaves the set as it was or as it should be.

    >>> s = SpanSet(); s.add(0, 10); s.add(20, 30); s.add(10, 15)
    >>> s
    SpanSet([(0, 15), (20, 30)])
    >>> list(s.gaps(5, 40)), s.covers(2, 14), s.intersects(15, 20)
    ([(15, 20), (30, 40)], True, False)
    >>> s.remove(5, 25); s, s.nbytes
    (SpanSet([(0, 5), (25, 30)]), 10)
    """

    __slots__ = ("_bounds",)

    def __init__(self) -> None:
        self._bounds: tuple[list[int], list[int]] = ([], [])
        """Starts and stops; never changed in place."""

    @classmethod
    def of(cls, spans: Iterable[tuple[int, int]]) -> SpanSet:
        """Return the set of all bytes of some spans, which may overlap.

        >>> SpanSet.of([(20, 30), (0, 10), (5, 12), (7, 7)])
        SpanSet([(0, 12), (20, 30)])
        """
        starts: list[int] = []
        stops: list[int] = []
        for start, stop in sorted(spans):
            if start >= stop:
                continue
            if stops and start <= stops[-1]:
                stops[-1] = max(stops[-1], stop)
            else:
                starts.append(start)
                stops.append(stop)
        result = cls()
        result._bounds = starts, stops
        return result

    def with_span(self, start: int, stop: int) -> SpanSet:
        """Return a set that has ``[start, stop)`` as well."""
        result = SpanSet()
        result._bounds = self._bounds
        result.add(start, stop)
        return result

    def add(self, start: int, stop: int) -> None:
        """Add ``[start, stop)``, merging what it overlaps or touches."""
        if start >= stop:
            return
        starts, stops = self._bounds
        first = bisect_left(stops, start)
        last = bisect_right(starts, stop)
        if first < last:
            start = min(start, starts[first])
            stop = max(stop, stops[last - 1])
        self._bounds = (
            [*starts[:first], start, *starts[last:]],
            [*stops[:first], stop, *stops[last:]],
        )

    def remove(self, start: int, stop: int) -> None:
        """Remove ``[start, stop)``."""
        if start >= stop:
            return
        starts, stops = self._bounds
        first = bisect_right(stops, start)
        last = bisect_left(starts, stop)
        if first >= last:
            return
        left: list[int] = []
        right: list[int] = []
        if starts[first] < start:
            left.append(starts[first])
            right.append(start)
        if stops[last - 1] > stop:
            left.append(stop)
            right.append(stops[last - 1])
        self._bounds = (
            [*starts[:first], *left, *starts[last:]],
            [*stops[:first], *right, *stops[last:]],
        )

    def clear(self) -> None:
        """Remove everything."""
        self._bounds = ([], [])

    def covers(self, start: int, stop: int) -> bool:
        """Whether every byte of ``[start, stop)`` is in the set."""
        if start >= stop:
            return True
        starts, stops = self._bounds
        i = bisect_right(starts, start) - 1
        return i >= 0 and stops[i] >= stop

    def intersects(self, start: int, stop: int) -> bool:
        """Whether any byte of ``[start, stop)`` is in the set."""
        starts, stops = self._bounds
        i = bisect_right(stops, start)
        return i < len(starts) and starts[i] < stop and start < stop

    def gaps(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of ``[start, stop)`` that are not in the set, in order."""
        starts, stops = self._bounds
        for i in range(bisect_right(stops, start), len(starts)):
            if starts[i] >= stop:
                break
            if starts[i] > start:
                yield start, starts[i]
            start = stops[i]
        if start < stop:
            yield start, stop

    @property
    def nbytes(self) -> int:
        """How many bytes are in the set."""
        starts, stops = self._bounds
        return sum(stops) - sum(starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(*self._bounds, strict=True)))

    def __bool__(self) -> bool:
        return bool(self._bounds[0])

    def __repr__(self) -> str:
        return f"SpanSet({list(self)})"

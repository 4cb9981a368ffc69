"""Where the items of all parts lie in the vector of all weights."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from swag._boxes import Box, axes
from swag._parameters import Entry, ParameterTable

__all__ = ["Layout", "Piece"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Items that lie side by side in a part, and where they go."""

    source: slice
    """In the part's vector."""
    target: slice | NDArray[np.int64]
    """In the range of the whole vector that was asked for."""


@dataclass(frozen=True)
class Layout:
    """Which items of which parameter are in which part.

    A part's vector has its items in the order of the whole vector.
    """

    table: ParameterTable
    """Of the whole vector."""
    boxes: tuple[tuple[Box, ...], ...]
    """For each part, one of each parameter."""

    def part_table(self, part: int) -> ParameterTable:
        """The table of a part's vector."""
        entries, start = [], 0
        for entry, box in zip(self.table.entries, self.boxes[part], strict=True):
            # What has no axes and is held here keeps none.
            shape = entry.shape if box.size == _size(entry) else box.shape
            entries.append(Entry(entry.name, shape, entry.dtype, start))
            start = entries[-1].stop
        return ParameterTable(tuple(entries))

    def faults(self) -> list[str]:
        """What is wrong with the boxes, in words; together they must be every item once."""
        found = []
        for i, entry in enumerate(self.table.entries):
            boxes = [own[i] for own in self.boxes]
            shape = axes(entry.shape)
            held = [box for box in boxes if box.size]
            if not all(box.fits(shape) for box in boxes):
                found.append(f"a part of {entry.name} is not inside it")
            elif sum(box.size for box in held) != _size(entry) or any(
                one.overlaps(other) for k, one in enumerate(held) for other in held[:k]
            ):
                count = sum(box.size for box in held)
                found.append(f"of {entry.name} {count} of {_size(entry)} items are held")
        return found

    @cached_property
    def _starts(self) -> list[int]:
        return [entry.start for entry in self.table.entries]

    @cached_property
    def _tables(self) -> list[ParameterTable]:
        return [self.part_table(part) for part in range(len(self.boxes))]

    def pieces(self, part: int, start: int, stop: int) -> Iterator[Piece]:
        """The items of a part that lie in ``[start, stop)`` of the whole vector, in order."""
        entries, own = self.table.entries, self._tables[part].entries
        for i in range(max(0, bisect_right(self._starts, start) - 1), len(entries)):
            if entries[i].start >= stop:
                return
            box, shape = self.boxes[part][i], axes(entries[i].shape)
            # Counted from the parameter's first item.
            low, high = start - entries[i].start, stop - entries[i].start
            if (run := box.run(shape)) is not None:
                first = max(run[0], low)
                last = min(run[0] + run[1], high)
                if first < last:
                    skipped = own[i].start + first - run[0]
                    source = slice(skipped, skipped + last - first)
                    yield Piece(source, slice(first - low, last - low))
                continue
            places = box.places(shape)
            a, b = np.searchsorted(places, [low, high]).tolist()
            if a < b:
                yield Piece(slice(own[i].start + a, own[i].start + b), places[a:b] - low)

    def joined(
        self, vectors: Sequence[NDArray[np.generic]], dtype: np.dtype[np.generic]
    ) -> NDArray[np.generic]:
        """Put the parts' vectors, shape (..., items of the part) each, into the whole one."""
        result = np.empty((*vectors[0].shape[:-1], self.table.size), dtype)
        for part, vector in enumerate(vectors):
            for piece in self.pieces(part, 0, self.table.size):
                result[..., piece.target] = vector[..., piece.source]
        return result


def _size(entry: Entry) -> int:
    return entry.stop - entry.start

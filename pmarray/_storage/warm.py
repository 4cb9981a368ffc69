"""Short runs of a local file are copied out of a mapping that is kept: no call for each of them.

That is right only for bytes that are on their medium as the caller should see them. So whoever asks
says which bytes are not: `RegionStorage.read` looks into the cache's books first, and reads what
is dirty, in flight or on loan by way of the cache. What a reader's snapshot overrides is found
out here, and read by the long way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmarray._cache.lull import Lull
from pmarray._commits.snapshot import Snapshot
from pmarray._config import config
from pmarray._dtypes import DType
from pmarray._geometry.layout import Layout
from pmarray._geometry.reach import Reach, reach_of
from pmarray._selection.fancy import FancySelection
from pmarray._selection.taking import stretches_of, take
from pmarray._storage.ahead import ReadAhead
from pmarray._storage.items import Axes, Shown, as_array
from pmarray._storage.near import Near, near_file
from pmarray.backends._protocols import KeepsMapping, Mapped

__all__ = ["WarmReads"]

AnyArray = NDArray[Any]

LONG_RUN_BYTES = 64 << 10
"""From this length on a run is read by a system call of its own: as fast, and for pages too that
were not read before."""
_PIECE_BYTES = 16 << 20
"""What is asked for, and then copied, at a time; a longer stretch of one line is left alone."""
_RUN_BYTES = 4 << 20
"""What one call reads of a long run."""
_NEAR_BYTES = 64 << 10
"""Stretches less far apart than this are fetched by what lies between them, too."""


class WarmReads:
    """Reads the items of one file through its mapping.

    Parameters
    ----------
    region
        The file.
    file_id
        Its number, by which before-images name it.
    dtype
        Of the items.
    snapshot
        Through which a handle reads that does not hold the lock.
    budget_bytes
        How much of a file may stay in the pages of the process.
    """

    def __init__(
        self,
        region: KeepsMapping,
        file_id: int,
        dtype: DType,
        snapshot: Snapshot | None,
        budget_bytes: int,
    ) -> None:
        self._region = region
        self._file_id = file_id
        self._dtype = dtype
        self._snapshot = snapshot
        self._budget_bytes = budget_bytes
        self._layout: Layout | None = None
        """What `_items` was made for."""
        self._mapped: Mapped | None = None
        self._items: AnyArray | None = None
        self._near: Near | None = None
        self._near_in: tuple[Lull, int] | None = None
        """The lull that `_near` was made in, and what the readers' counter said."""
        self._asked = False
        """Whether an item was asked for before."""

    def drop(self) -> None:
        """Let the mapping go; the next reader makes another."""
        self._layout = self._mapped = self._items = self._near = self._near_in = None

    def _map(self, layout: Layout) -> AnyArray | None:
        """Return the whole array in the mapping; None where there is none."""
        if layout is not self._layout:
            self.drop()
            self._mapped = self._region.keep_mapped(layout.nbytes) if layout.nbytes else None
            if self._mapped is not None:
                self._mapped.budget_bytes = self._budget_bytes
                self._items = as_array(self._mapped.memory, layout, self._dtype, layout.shape)
            self._layout = layout
        return self._items

    def is_mapped(self, layout: Layout) -> bool:
        """Whether there is a mapping of the array as it is now."""
        return layout is self._layout and self._items is not None

    def near(self, layout: Layout, lull: Lull) -> Near | None:
        """Return what reads without asking anybody, if that is right in this lull."""
        items, mapped, snapshot = self._items, self._mapped, self._snapshot
        if layout is not self._layout or items is None or mapped is None:
            return None
        counted = 0 if snapshot is None else snapshot.noted_without(self._file_id)
        if counted is None:
            return None
        if self._near_in != (lull, counted):
            is_right = None if snapshot is None else snapshot.is_at(counted)
            self._near = near_file(items, layout, mapped, lull, is_right)
            self._near_in = lull, counted
        return self._near

    def knows(self, layout: Layout, offset: int) -> bool:
        """Whether an item is at hand, as far as one can tell: better than in any cache."""
        mapped = self._mapped
        return (
            mapped is not None
            and layout is self._layout
            and mapped.knows(offset, self._dtype.itemsize)
        )

    def item(self, layout: Layout, position: tuple[int, ...], offset: int) -> Any:
        """Return one item; None where it has to be read by the long way."""
        if not self._asked and layout is not self._layout:
            self._asked = True
            return None  # who reads no more than this one needs no mapping
        items = self._map(layout)
        if items is None:
            return None
        mapped, nbytes = self._mapped, self._dtype.itemsize
        assert mapped is not None
        if self._snapshot is None:
            return items[position] if mapped.ask_item(offset, nbytes) else None
        if mapped.ask_item(offset, nbytes):
            item = items[position]
            if self._snapshot.is_unmoved(self._file_id):
                return item
        found: list[Any] = [None]

        def fetch() -> None:
            found[0] = items[position] if mapped.ask_item(offset, nbytes) else None

        if self._snapshot.reads(self._file_id, offset, offset + nbytes, fetch):
            return found[0]
        return None

    def read(self, layout: Layout, axes: Axes, out: AnyArray) -> bool:
        """Copy the selected items, at least one, into `out`; False: by the long way."""
        reach = reach_of(layout, axes)
        if reach.run >= LONG_RUN_BYTES or reach.nbytes > _PIECE_BYTES:
            return False
        items = self._map(layout)
        if items is None:
            return False
        mapped = self._mapped
        assert mapped is not None
        scan = reach.step - reach.nbytes <= _NEAR_BYTES and (
            reach.stop - reach.start > _PIECE_BYTES
        )
        parts: list[tuple[Axes, tuple[Any, ...]]] = [(axes, (...,))]
        if scan:
            parts = list(_parts(layout, axes))
        found = False

        def fetch() -> None:
            nonlocal found
            reaches = [reach_of(layout, part) for part, _ in parts] if scan else [reach]
            found = True
            for i, (part, where) in enumerate(parts):
                if i + 1 < len(parts):
                    mapped.expect(reaches[i + 1])
                found = found and mapped.ask(reaches[i])
                if found:
                    out[where] = items[part]
                if scan and mapped.is_crowded():
                    mapped.let_go(reaches[i])

        if self._snapshot is None:
            fetch()
            return found
        return self._snapshot.reads(self._file_id, reach.start, reach.stop, fetch) and found

    def deferred(
        self, layout: Layout, axes: Axes, reach: Reach, ahead: ReadAhead
    ) -> Callable[[AnyArray], bool] | None:
        """Return what reads at least one item later, on any thread and without any lock.

        `reach` is that of the items. It fills a new block of the array's memory order,
        or returns false: then the items have to be read with the lock. None where that is known
        already.
        """
        is_one_run = reach.run == reach.stop - reach.start
        if reach.run >= LONG_RUN_BYTES and not is_one_run and reach.run != reach.nbytes:
            return None
        if (
            reach.run < LONG_RUN_BYTES
            and reach.stop - reach.start > _PIECE_BYTES
            and (reach.step - reach.nbytes <= _NEAR_BYTES)
        ):
            return None
        snapshot, file_id = self._snapshot, self._file_id
        if snapshot is not None and not snapshot.may_tell(file_id):
            return None
        items, mapped = self._map(layout), self._mapped
        if items is None or mapped is None:
            return None

        def read(out: AnyArray) -> bool:
            if reach.run < LONG_RUN_BYTES:
                if not mapped.ask(reach):
                    return False
                out[...] = items[axes]
            elif is_one_run:
                _read_run(mapped, ahead, reach.start, out, layout)
            else:
                for i in range(reach.stretches):
                    line = out[(slice(None),) * layout.slow_axis + (i,)]
                    start = reach.start + i * reach.step
                    _read_run(mapped, ahead, start, line, layout)
            return snapshot is None or snapshot.is_unmoved(file_id)

        return read

    def shown(self, layout: Layout, axes: Axes) -> Shown | None:
        """Return items in the mapping, where all of them are in memory; see `Items.shown`."""
        snapshot, file_id = self._snapshot, self._file_id
        if snapshot is not None and not snapshot.may_tell(file_id):
            return None
        reach = reach_of(layout, axes)
        if reach.run < LONG_RUN_BYTES:
            return None
        items, mapped = self._map(layout), self._mapped
        if items is None or mapped is None or not mapped.show(reach):
            return None

        def done() -> None:
            if mapped.is_crowded():
                mapped.let_go(reach)

        # What others commit goes on coming to the mapping.
        is_right = None if snapshot is None else partial(snapshot.is_unmoved, file_id)
        return Shown(items[axes], done, is_right)

    def fetching(self, layout: Layout, axes: Axes) -> Callable[[], None] | None:
        """Return what has items come into the mapping, for `shown` then; on any thread, once.

        None where they come sooner another way, or cannot be shown.
        """
        reach = reach_of(layout, axes)
        if reach.run < LONG_RUN_BYTES or (
            reach.stretches > 1 and reach.step - reach.nbytes > _NEAR_BYTES
        ):
            return None
        items, mapped = self._map(layout), self._mapped
        if items is None or mapped is None or not mapped.reads_ahead:
            return None
        return partial(mapped.fetch, reach)

    def gather(self, layout: Layout, selection: FancySelection, out: AnyArray) -> bool:
        """Copy what an advanced index selects, at least one item, into a block; see `read`."""
        stretches = stretches_of(selection, layout)
        if stretches is None or stretches.nbytes >= LONG_RUN_BYTES or out.nbytes > _PIECE_BYTES:
            return False
        items = self._map(layout)
        if items is None:
            return False
        mapped = self._mapped
        assert mapped is not None
        offsets, nbytes = stretches.offsets, stretches.nbytes
        found = False

        def fetch() -> None:
            nonlocal found
            found = mapped.ask_each(offsets, nbytes)
            if found:
                take(items, selection, out)

        if self._snapshot is None:
            fetch()
            return found
        start, stop = int(offsets.min()), int(offsets.max()) + nbytes
        return self._snapshot.reads(self._file_id, start, stop, fetch) and found


def _parts(layout: Layout, axes: Axes) -> Iterator[tuple[Axes, tuple[Any, ...]]]:
    """Cut a selection into lines of about `_PIECE_BYTES`: items, and where they are in it."""
    slow = layout.slow_axis
    lines = axes[slow]
    count = len(range(lines.start, lines.stop, lines.step))
    each = max(1, _PIECE_BYTES // (lines.step * layout.line_stride))
    everything = slice(None)
    for first in range(0, count, each):
        stop = min(count, first + each)
        start = lines.start + first * lines.step
        last = lines.start + (stop - 1) * lines.step
        part = slice(start, last + 1, lines.step)
        yield (
            (*axes[:slow], part, *axes[slow + 1 :]),
            (*[everything] * slow, slice(first, stop)),
        )


def _read_run(mapped: Mapped, ahead: ReadAhead, start: int, out: AnyArray, layout: Layout) -> None:
    """Fill contiguous memory, and have what follows fetched meanwhile."""
    data = out.reshape(-1, order="A").view(np.uint8).data
    for at in range(0, data.nbytes, _RUN_BYTES):
        piece = data[at : at + _RUN_BYTES]
        mapped.read_into(start + at, piece)
        following = start + at + piece.nbytes
        stop = min(start + data.nbytes, following + config.read_ahead)
        if following < stop and ahead.comes_from_device():
            ahead.ask(following, stop)
    padding = layout.line_stride - layout.line_nbytes
    ahead.was_read(start, data.nbytes, gap=padding, end=layout.nbytes)

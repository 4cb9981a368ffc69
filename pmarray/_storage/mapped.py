"""Items in byte-addressable memory."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pmarray._cache.lull import Lull
from pmarray._cache.source import CommittedStorage
from pmarray._dtypes import DType
from pmarray._geometry.chunking import unfilled
from pmarray._geometry.layout import Layout
from pmarray._selection.fancy import FancySelection
from pmarray._storage.dead import DeadBytes, Spans
from pmarray._storage.items import Axes, Loan, Shown, as_array, make_room, nothing
from pmarray._storage.near import Near
from pmarray.backends._protocols import Region, ReservesUnfilled
from pmarray.locks import Lock

__all__ = ["MappedStorage"]

AnyArray = NDArray[Any]


class MappedStorage:
    """Items in byte-addressable memory: NumPy works on them in place."""

    near: Near | None = None
    run_nbytes = 1

    def __init__(
        self,
        region: Region,
        layout: Layout,
        dtype: DType,
        chunk_shape: tuple[int, ...],
        *,
        new: bool,
        holds_fill: bool,
        unfilled: ReservesUnfilled | None,
        dead: Spans = (),
    ) -> None:
        self.region = region
        self.layout = layout
        self.chunk_shape = chunk_shape
        self.holds_fill = holds_fill
        self._unfilled = unfilled
        self.dead = DeadBytes(dead)
        self._dtype = dtype
        self._items: AnyArray | None = None
        # As in `CachedStorage`.
        self._used = layout.nbytes if new else region.capacity
        self._undo: list[tuple[Axes, AnyArray]] | None = None
        # Loans end on other threads, and must not while the memory moves.
        self._moving = Lock()

    @property
    def items(self) -> AnyArray:
        """The whole array, in place."""
        if self._items is None:
            memory = self.region.memory
            assert memory is not None
            self._items = as_array(memory, self.layout, self._dtype, self.layout.shape)
        return self._items

    def read(self, axes: Axes, out: AnyArray, /) -> None:
        out[...] = self.items[axes]

    def item(self, position: tuple[int, ...], offset: int, /) -> Any:
        # A structured item would be a view of this memory.
        return self.items[position] if self._dtype.kind != "V" and position else None

    def held(self, axes: Axes, order: Literal["F", "C"], /) -> AnyArray | None:
        return self.items[axes].copy(order)

    def deferred(self, axes: Axes, /) -> None:
        return None

    def arriving(self, axes: Axes, /) -> None:
        return None

    def shown(self, axes: Axes, /) -> Shown:
        return Shown(self.pin(axes).block, nothing)

    def gather(self, selection: FancySelection, out: AnyArray, /) -> bool:
        return False

    def write(self, axes: Axes, values: AnyArray, /) -> None:
        self._keep(axes)
        self.items[axes] = values

    def _keep(self, axes: Axes) -> None:
        """Note, in a transaction, the committed items that are about to change."""
        self.dead.revive(self.layout, axes)
        if self._undo is None or self.dead.had(self.layout, axes):
            return
        slow = self.layout.slow_axis
        lines = axes[slow]
        stop = min(lines.stop, self._undo_lines)
        if stop > lines.start:
            old = (*axes[:slow], slice(lines.start, stop, lines.step), *axes[slow + 1 :])
            self._undo.append((old, self.items[old].copy()))

    def forget(self, axes: Axes, /) -> None:
        self.dead.forget(self.layout, axes)

    def begin(self) -> None:
        self.dead.begin()
        self._undo = []
        self._undo_lines = self.layout.lines

    def roll_back(self, layout: Layout, /) -> None:
        undo, self._undo = self._undo or [], None
        if layout.lines > self.layout.lines:
            self.set_shape(layout.shape)
        for axes, old in reversed(undo):
            self.items[axes] = old
        self.set_shape(layout.shape)
        self.dead.roll_back()

    def lend(self, axes: Axes, /) -> Loan:
        self._keep(axes)
        memory = self.region.memory
        block = self.items[axes]

        def done() -> None:
            with self._moving:
                if self.region.memory is not memory:
                    self.items[axes] = block  # the array has grown into other memory meanwhile

        return Loan(block, done, nothing)

    def pin(self, axes: Axes, /) -> Loan:
        block = self.items[axes]
        block.flags.writeable = False
        return Loan(block, nothing, nothing)

    def set_shape(self, shape: tuple[int, ...], /) -> list[Axes] | None:
        layout, before = self.layout.with_lines(shape[self.layout.slow_axis]), self.layout
        if layout.shape != shape:
            return None
        with self._moving:
            self._items = None  # memory that nobody looks at can grow in place
            self._used = max(self._used, make_room(self.region, self._unfilled, layout.nbytes))
            self.layout = layout
        self.dead.cut(layout.nbytes)
        used, self._used = self._used, max(self._used, layout.nbytes)
        return unfilled(before, layout, used if self.holds_fill else layout.nbytes)

    def come_near(self, lull: Lull, /) -> None:
        pass

    def expect(self, axes: Axes, /) -> None:
        pass

    def cached(self) -> None:
        return None

    def unchanged_stamp(self) -> None:
        return None

    @property
    def memory(self) -> AnyArray:
        return self.items

    def share(self, view: AnyArray, /) -> AnyArray:
        """Return a view of the memory writable, for somebody who will not say what is stored."""
        # Nobody will report the stores to the transaction, so it keeps all they may change.
        self._keep(tuple(slice(0, n, 1) for n in self.layout.shape))
        view.flags.writeable = True
        return view

    def shows(self, values: AnyArray, /) -> bool:
        return np.may_share_memory(values, self.items)

    def view(self) -> AnyArray | None:
        result = self.items[...]
        result.flags.writeable = False
        return result

    def seal(self) -> dict[CommittedStorage, int]:
        self._undo = None
        return {}

    def make_durable(self, ndim: int, /) -> None:
        self.region.barrier()

    def retire(self) -> None:
        pass

    def trim(self) -> None:
        self.region.trim(self.layout.nbytes)

    def discard(self) -> None:
        self.close()

    def close(self) -> None:
        self._items = None
        self.region.close()

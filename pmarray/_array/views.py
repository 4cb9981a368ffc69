"""Lazy views: another array's items under other indices, without copying any."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pmarray._array.stored import StoredArray
from pmarray._geometry.chunking import TARGET_CHUNK_BYTES
from pmarray._geometry.layout import Layout, Order
from pmarray._selection.basic import Selection, select
from pmarray._storage.arriving import Arrival
from pmarray._storage.items import Axes, Items, Loan, Shown
from pmarray.errors import SelectionError

__all__ = ["ViewItems", "selection_view", "slice_view", "transpose_view"]

AnyArray = NDArray[Any]
A = TypeVar("A", bound=StoredArray)


class ViewItems(Items):
    """The items of a view: indices are translated, blocks looked at the other way."""

    def __init__(self, base: StoredArray, shape: tuple[int, ...], order: Order) -> None:
        self.base = base
        self.shape = shape
        self.layout = Layout.plan(shape or (1,), base.itemsize, order)

    @property
    @abstractmethod
    def look(self) -> object:
        """What makes this view of its base: equal for views that were made alike."""

    @property
    def run_nbytes(self) -> int:
        return self._items.run_nbytes

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        return self.layout.chunk_shape(TARGET_CHUNK_BYTES, TARGET_CHUNK_BYTES)

    @abstractmethod
    def to_base(self, axes: Axes) -> Axes:
        """Translate indices of the view, one ascending slice an axis."""

    @abstractmethod
    def block_to_base(self, block: AnyArray) -> AnyArray:
        """Look at a block of the view as a block of the base."""

    @abstractmethod
    def block_from_base(self, block: AnyArray) -> AnyArray:
        """Look at a block of the base as a block of the view."""

    def read(self, axes: Axes, out: AnyArray, /) -> None:
        if out.size:
            self._items.read(self._translate(axes), self._stored(out))

    def item(self, position: tuple[int, ...], offset: int, /) -> None:
        return None

    def expect(self, axes: Axes, /) -> None:
        return  # a view may reach beyond what its array still has

    def arriving(self, axes: Axes, /) -> Arrival | None:
        arrival = self._items.arriving(self._translate(axes))
        return None if arrival is None else arrival.seen_by(self._shown)

    def shown(self, axes: Axes, /) -> Shown | None:
        found = self._items.shown(self._translate(axes))
        return None if found is None else found._replace(block=self._shown(found.block))

    def write(self, axes: Axes, values: AnyArray, /) -> None:
        if values.size:
            self._items.write(self._translate(axes), self._stored(values))

    def lend(self, axes: Axes, /) -> Loan:
        loan = self._items.lend(self._translate(axes))
        return Loan(self._shown(loan.block), loan.done, loan.failed)

    def pin(self, axes: Axes, /) -> Loan:
        loan = self._items.pin(self._translate(axes))
        return Loan(self._shown(loan.block), loan.done, loan.failed)

    def forget(self, axes: Axes, /) -> None:
        self._items.forget(self._translate(axes))

    def view(self) -> AnyArray | None:
        whole = self._items.view()
        if whole is None:
            return None
        return self.block_from_base(self._selected(whole.reshape(self.base.shape)))

    def _selected(self, whole: AnyArray) -> AnyArray:
        return whole

    @property
    def _items(self) -> Items:
        return self.base._storage

    def _translate(self, axes: Axes) -> Axes:
        # Arrays without axes are stored as arrays of one item.
        translated = self.to_base(axes if self.shape else ()) or (slice(0, 1, 1),)
        if any(s.stop > n for s, n in zip(translated, self.base.shape, strict=False)):
            raise SelectionError(
                f"the array has shrunk to {self.base.shape} since this view of it was made"
            )
        return translated

    def _stored(self, block: AnyArray) -> AnyArray:
        found = self.block_to_base(block.reshape(block.shape if self.shape else ()))
        return found if found.ndim else found.reshape(1)

    def _shown(self, block: AnyArray) -> AnyArray:
        found = self.block_from_base(block.reshape(block.shape if self.base.ndim else ()))
        return found if found.ndim else found.reshape(1)


class _Transposed(ViewItems):
    def __init__(self, base: StoredArray, order_of_axes: tuple[int, ...]) -> None:
        self._axes = order_of_axes
        shape = tuple(base.shape[axis] for axis in order_of_axes)
        slow = order_of_axes.index(base._layout.slow_axis) if shape else 0
        order: Order = base.layout
        if len(shape) > 1:
            order = "col" if slow == len(shape) - 1 else "row"
        super().__init__(base, shape, order)
        self._back = tuple(np.argsort(order_of_axes).tolist())

    @property
    def look(self) -> object:
        return self._axes

    def to_base(self, axes: Axes) -> Axes:
        return tuple(axes[axis] for axis in self._back)

    def block_to_base(self, block: AnyArray) -> AnyArray:
        return block.transpose(self._back)

    def block_from_base(self, block: AnyArray) -> AnyArray:
        return block.transpose(self._axes)


class _Sliced(ViewItems):
    def __init__(self, base: StoredArray, selection: Selection) -> None:
        self._selection = selection
        super().__init__(base, selection.shape, base.layout)

    @property
    def look(self) -> object:
        return self._selection

    def to_base(self, axes: Axes) -> Axes:
        result: list[slice] = []
        remaining = iter(axes)
        of_base = iter(self._selection.axes)
        for look in self._selection.to_block:
            if look is None:  # an integer took this axis away
                result.append(next(of_base))
                continue
            mine = next(remaining)
            if look == 0:  # an axis that is new in the view
                continue
            base = next(of_base)
            count = len(range(base.start, base.stop, base.step))
            items = range(mine.start, mine.stop, mine.step)
            if not items:
                result.append(slice(0, 0, 1))
                continue
            first, last = items[0], items[-1]
            if look.step == -1:
                first, last = count - 1 - last, count - 1 - first
            result.append(
                slice(
                    base.start + first * base.step,
                    base.start + last * base.step + 1,
                    base.step * mine.step,
                )
            )
        return tuple(result)

    def block_to_base(self, block: AnyArray) -> AnyArray:
        found: AnyArray = block[(*self._selection.to_block, ...)]
        return found

    def block_from_base(self, block: AnyArray) -> AnyArray:
        found: AnyArray = block[(*self._selection.to_result, ...)]
        return found

    def _selected(self, whole: AnyArray) -> AnyArray:
        index: tuple[Any, ...] = (*self._selection.axes, ...)
        found: AnyArray = whole[index]
        return found


def transpose_view(base: A, axes: tuple[int, ...]) -> A:
    """View an array with its axes in another order; `axes` is a permutation."""
    return base._viewed(_Transposed(base, axes), tuple(base.shape[axis] for axis in axes))


def slice_view(base: A, index: Any) -> A:
    """View what a basic index selects."""
    return selection_view(base, select(index, base.shape))


def selection_view(base: A, selection: Selection) -> A:
    """View what a selection selects."""
    return base._viewed(_Sliced(base, selection), selection.shape)

"""Arrays that change their shape: in place where the storage can, by moving them where not."""

from __future__ import annotations

from collections.abc import Iterator

from pmarray._array.stored import StoredArray
from pmarray._geometry.layout import Layout, Order, parse_shape, refuse_unaddressable
from pmarray._selection.basic import Selection, select
from pmarray._system.uninterrupted import go_on
from pmarray.errors import LayoutError

__all__ = ["Growing"]

_RELAYOUT_BLOCK_BYTES = 8 << 20


class Growing(StoredArray):
    """A `StoredArray` whose shape can change."""

    def _set_lines(self, lines: int, *, fill: bool) -> None:
        shape = list(self.shape)
        shape[self._layout.slow_axis] = lines
        if not self._set_shape(tuple(shape), fill=fill):
            raise AssertionError("every storage grows along its slow axis")

    def _set_shape(self, shape: tuple[int, ...], *, fill: bool) -> bool:
        """Change the shape in place; return whether that can be without copying."""
        if self._base is not None:
            raise LayoutError("a view has no lines of its own: append to the array, or resize it")
        refuse_unaddressable(shape, self.itemsize)
        array = self._array._replace(shape=shape)
        self._group._catalog.admit_shape(array)
        blocks = self._storage.set_shape(shape or (1,))
        if blocks is None:
            return False
        line_stride = self._storage.layout.line_stride
        self._array = array._replace(line_stride=line_stride)
        self._group._catalog.update(self._name, self._array)
        if fill:
            for axes in blocks:
                self._fill_selection(select(axes, self.shape))
        return True

    def _relayout(self, shape: tuple[int, ...]) -> None:
        """Move to a file of another shape, block by block."""
        array, storage = self._group._catalog.new_file(self._array, shape)
        target = type(self)(self._group, self._name, array, storage)
        try:
            if not storage.holds_fill and target.size:
                target._fill_selection(select((), shape))
            kept = tuple(min(old, new) for old, new in zip(self.shape, shape, strict=True))
            for index in _blocks(kept, self.itemsize, self.layout):
                go_on()  # or give up, where the caller was interrupted
                selection = select(index, self.shape)
                block = self._read(selection)
                target._write(select(index, shape), block)
        except BaseException:
            target._detach()
            self._group._catalog.discard_file(array)
            raise
        old = self._storage
        self._group._catalog.replace_array(self._name, self._array, array)
        self._array, self._storage = array, storage
        self._group._catalog.retire(old)

    def _grown_by(self, count: int) -> Selection:
        lines = self._layout.lines
        self._set_lines(lines + count, fill=False)
        index = [slice(None)] * self.ndim
        index[self._layout.slow_axis] = slice(lines, lines + count)
        return select(tuple(index), self.shape)

    def _resize(self, shape: int | tuple[int, ...]) -> None:
        new = parse_shape(shape)
        if len(new) != self.ndim:
            raise LayoutError(f"cannot resize {self.shape} to {new}")
        if new == self.shape:
            return
        slow = self._layout.slow_axis
        if all(
            n == old for i, (n, old) in enumerate(zip(new, self.shape, strict=True)) if i != slow
        ):
            if new[slow] < self.shape[slow]:
                self._refuse_loans("shrink", pins=True)
            self._set_lines(new[slow], fill=True)
        else:
            self._refuse_loans("change another axis than the slow one", pins=True)
            if not self._set_shape(new, fill=True):
                self._relayout(new)


def _blocks(shape: tuple[int, ...], itemsize: int, order: Order) -> Iterator[tuple[slice, ...]]:
    """Cut an array into blocks of about `_RELAYOUT_BLOCK_BYTES`, in the order of its layout."""
    if 0 in shape:
        return
    layout = Layout.plan(shape, itemsize, order)
    whole = tuple(slice(0, n, 1) for n in shape)
    chunk_shape = layout.chunk_shape(_RELAYOUT_BLOCK_BYTES, _RELAYOUT_BLOCK_BYTES)
    for extent in layout.extents(whole, chunk_shape):
        yield extent.block

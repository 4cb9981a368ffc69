"""`PMArray`: shape, dtype and layout over a storage, with NumPy's indexing."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast
from weakref import WeakSet

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from pmarray._array.loans import Borrowing
from pmarray._array.overlap import apart_from, overlap
from pmarray._config import config
from pmarray._exchange.interop import Interop
from pmarray._formats.metadata import ArrayMetadata
from pmarray._geometry.layout import Layout, Order, refuse_unaddressable
from pmarray._group.attributes import Attributes
from pmarray._numpy.arithmetic import Arithmetic
from pmarray._numpy.fields import names_fields, read_fields, write_fields
from pmarray._numpy.masks import is_large_mask, read_masked, write_masked
from pmarray._numpy.methods import Methods, normal_axis
from pmarray._selection.basic import Selection, select, storage_axes
from pmarray._selection.fancy import FancySelection, orthogonal, parse, pointwise
from pmarray._sizes import format_bytes
from pmarray._storage.items import Storage
from pmarray._storage.transfer import gather, scatter, update
from pmarray._system.uninterrupted import go_on
from pmarray.errors import (
    ArrayNotFoundError,
    LayoutError,
    LoanError,
    SelectionError,
)

if TYPE_CHECKING:
    from pmarray._group.transaction import Transaction
    from pmarray.group import Group

__all__ = ["PMArray"]

AnyArray = NDArray[Any]

_RELAYOUT_BLOCK_BYTES = 8 << 20


class PMArray(Arithmetic, Methods, Interop):
    """A dense array on a medium, indexed like a `numpy.ndarray`.

    Made by `pmarray.open` and `Group.create`; holds a place in a `Group`. Reading an index gives a
    new `numpy.ndarray`; writing is combined in memory and written behind. A write is durable after
    `flush` or `close`.

    Examples
    --------
    >>> import numpy as np, pmarray
    >>> a = pmarray.open("dram:", shape=(4, 3), dtype="float32", layout="col")
    >>> a[:, 0] = [1, 2, 3, 4]
    >>> a[1:3, ::-1]
    array([[0., 0., 2.],
           [0., 0., 3.]], dtype=float32)
    """

    def __init__(self, group: Group, name: str, array: ArrayMetadata, storage: Storage) -> None:
        self._group = group
        self._name = name
        self._array = array
        self._storage = storage
        self._detached = False
        # Not counts, because loans end on other threads without the group's lock; weak, because a
        # loan that an exception has torn away before its end must not stay open for good.
        self._loans: WeakSet[object] = WeakSet()
        self._pins: WeakSet[object] = WeakSet()
        self._chunks: str | int | tuple[int, ...] = "auto"
        """As they were asked for."""

    # -- description ----------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent of each axis."""
        return self._array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the items."""
        return self._array.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._array.shape)

    @property
    def size(self) -> int:
        """Number of items."""
        return math.prod(self._array.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one item."""
        return self._array.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all items, padding left out."""
        return self.size * self.itemsize

    @property
    def layout(self) -> Order:
        """Either "row" (C order) or "col" (Fortran order)."""
        return self._array.order

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of the unit of caching and writing."""
        return self._storage.chunk_shape if self.ndim else ()

    @property
    def name(self) -> str:
        """The array's name in its group."""
        return self._name

    @property
    def group(self) -> Group:
        """The group that holds the array."""
        return self._group

    @property
    def attrs(self) -> Attributes:
        """The array's own attributes, by name; a view has those of its array.

        Examples
        --------
        >>> import pmarray
        >>> a = pmarray.open("dram:", shape=(4, 3))
        >>> a.attrs["unit"] = "mV"
        >>> dict(a.attrs)
        {'unit': 'mV'}
        """
        return Attributes(self._group, self)

    @property
    def fill_value(self) -> Any:
        """What items hold until they are written."""
        return np.frombuffer(self._array.fill, self.dtype)[0]

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of an array without axes")
        return self.shape[0]

    def __repr__(self) -> str:
        return (
            f"<PMArray {self._group.url}#{self._name} {self.shape} {self.dtype} "
            f"layout={self.layout!r} {format_bytes(self.nbytes)}>"
        )

    # -- reading --------------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> Any:
        """Return the selected items as a new `numpy.ndarray` (a scalar for a full index).

        Takes every index that NumPy takes. The result has the array's own memory order, so that
        long runs are read straight into it; integer arrays and masks visit each chunk once. The
        field of a record, ``a["name"]``, is read-only.

        Raises
        ------
        SelectionError
            Out of bounds, or not an index.
        BudgetError
            The result would not fit into memory.
        """
        with self._turn():
            self._admit()
            if type(index) is tuple and len(index) == len(self._array.shape):
                item = self._item(index)
                if item is not None:
                    return item
            elif is_large_mask(index, self):
                return read_masked(self, index)
            elif names_fields(index, self):
                return read_fields(self, index)
            return self._read(parse(index, self.shape))

    def _item(self, index: tuple[Any, ...]) -> Any:
        """Return one item by a short way; None if there is none, and the long way has to be."""
        offset = 0
        position = []
        for i, n, stride in zip(
            index, self._array.shape, self._storage.layout.strides, strict=False
        ):
            if type(i) is not int:
                return None
            if i < 0:
                i += n
            if not 0 <= i < n:
                return None
            position.append(i)
            offset += i * stride
        return self._storage.item(tuple(position), offset)

    def read(self, index: Any, *, out: AnyArray) -> AnyArray:
        """Read the selected items into memory that is there already.

        Parameters
        ----------
        index
            Any index of NumPy's.
        out
            An array of the shape of ``self[index]``, of any memory order; items are cast to its
            dtype as an assignment casts. Items are read straight into it where it has the array's
            dtype and memory order.

        Returns
        -------
        numpy.ndarray
            `out`.

        Raises
        ------
        LayoutError
            `out` has another shape.

        Examples
        --------
        >>> import numpy as np, pmarray
        >>> a = pmarray.open("dram:", shape=(3, 2), layout="col", fill_value=7)
        >>> a.read(np.s_[1:, 0], out=np.empty(2))
        array([7., 7.])
        """
        with self._turn():
            self._admit()
            selection = parse(index, self.shape)
            if out.shape != selection.shape:
                raise LayoutError(f"out has shape {out.shape}, the selection {selection.shape}")
            if 0 in out.shape:
                return out
            if isinstance(selection, FancySelection):
                self._gather_into(selection, out)
            elif out.dtype == self.dtype and self.ndim:
                self._storage.read(selection.axes, out[selection.to_block])
            else:
                from pmarray._numpy.assignment import copy_items  # a view is an array itself
                from pmarray._storage.views import selection_view

                copy_items(out, selection_view(self, selection))
            return out

    def _gather_into(self, selection: FancySelection, out: AnyArray) -> None:
        block = selection.place_of(out)
        if block is None or overlap(out, self):
            out[...] = self._read(selection)
        else:
            gather(self._storage, selection, block, self.dtype)

    @property
    def oindex(self) -> Indexer:
        """Orthogonal indexing, as Zarr's: each axis is selected for itself.

        Examples
        --------
        >>> import pmarray
        >>> a = pmarray.open("dram:", shape=(4, 3))
        >>> a.oindex[[3, 0], [True, False, True]] = [[1, 2], [3, 4]]
        >>> a[3]
        array([1., 0., 2.])
        """
        return Indexer(self, orthogonal)

    @property
    def vindex(self) -> Indexer:
        """Coordinate indexing, as Zarr's: one coordinate array an axis, or one mask of the whole.

        Examples
        --------
        >>> import pmarray
        >>> a = pmarray.open("dram:", shape=(4, 3))
        >>> a.vindex[[3, 0], [1, 2]] = [5, 6]
        >>> a[3], a[0]
        (array([0., 5., 0.]), array([0., 0., 6.]))
        """
        return Indexer(self, pointwise)

    @property
    def blocks(self) -> Indexer:
        """Indexing by chunk, as Zarr's: integers and slices of step 1 in the grid of `chunks`.

        Examples
        --------
        >>> import pmarray
        >>> a = pmarray.open("dram:", shape=(4, 5), layout="col", chunks=2)
        >>> a.blocks[:, 2].shape
        (4, 1)
        """
        return Indexer(self, lambda index, shape: select(_block_slices(index, self), shape))

    # -- lazy views -----------------------------------------------------------------------------

    @property
    def view(self) -> Viewer:
        """Index without reading: ``a.view[...]`` is a `PMArray` over the same items.

        Takes integers, slices, ``...`` and None. The view has today's shape for ever; it reads and
        writes through this array, and cannot grow.

        Examples
        --------
        >>> import pmarray
        >>> a = pmarray.open("dram:", shape=(4, 3))
        >>> odd = a.view[1::2]
        >>> odd[:, 0] = 5
        >>> a[:, 0], odd.shape
        (array([0., 5., 0., 5.]), (2, 3))
        """
        return Viewer(self)

    @property
    def T(self) -> PMArray:  # noqa: N802  # NumPy's name
        """The transposed array: a lazy view, with the other layout.

        Examples
        --------
        >>> import pmarray
        >>> a = pmarray.open("dram:", shape=(4, 3), layout="col")
        >>> a.T.shape, a.T.layout
        ((3, 4), 'row')
        """
        return self.transpose()

    def transpose(self, *axes: int | tuple[int, ...] | None) -> PMArray:
        """View the array with its axes in another order, reversed unless told.

        Examples
        --------
        >>> import pmarray
        >>> pmarray.open("dram:", shape=(2, 3, 4)).transpose(1, 2, 0).shape
        (3, 4, 2)
        """
        from pmarray._storage.views import transpose_view  # a view is an array itself

        order = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes
        if not order:
            return transpose_view(self, tuple(reversed(range(self.ndim))))
        normal = tuple(normal_axis(cast(int, axis), self.ndim) for axis in cast(Any, order))
        if sorted(normal) != list(range(self.ndim)):
            raise LayoutError(f"axes {order} are no permutation of the {self.ndim} axes")
        return transpose_view(self, normal)

    def swapaxes(self, axis1: int, axis2: int) -> PMArray:
        """View the array with two axes exchanged.

        Examples
        --------
        >>> import pmarray
        >>> pmarray.open("dram:", shape=(2, 3, 4)).swapaxes(0, -1).shape
        (4, 3, 2)
        """
        order = list(range(self.ndim))
        one, other = normal_axis(axis1, self.ndim), normal_axis(axis2, self.ndim)
        order[one], order[other] = order[other], order[one]
        return self.transpose(*order)

    def _read(self, selection: Selection | FancySelection) -> Any:
        shape = selection.block_shape or (1,)
        nbytes = math.prod(shape) * self.itemsize
        config.check_result(nbytes, "read parts of it")
        block = np.empty(shape, self.dtype, order="F" if self.layout == "col" else "C")
        if isinstance(selection, FancySelection):
            if 0 in selection.shape:
                return np.empty(selection.shape, self.dtype)
            gather(self._storage, selection, block, self.dtype)
            # reshape makes no copy: it only splits axes and adds new ones.
            return selection.to_result(block.reshape(selection.block_shape, order="A"))
        self._storage.read(storage_axes(selection), block)
        # The Ellipsis keeps an array of one item an array.
        result = block.reshape(selection.block_shape, order="A")[(*selection.to_result, ...)]
        return result[()] if selection.scalar else result

    def __array__(self, dtype: DTypeLike | None = None, *, copy: bool | None = None) -> AnyArray:
        """Return the whole as a read-only `numpy.ndarray`; `numpy.array` gives a copy to write to.

        Where the medium allows it, it is a view. That of a file sees later writes once they have
        left the cache. What code that ignores
        the flag stores to it stays in it, and reaches neither the file nor anybody else. While
        it is there, the file is not cut where the array shrinks; what it shows of lines that the
        array no longer has is whatever was there.
        """
        with self._turn():
            self._admit()
            view = None if copy else self._storage.view()
            if view is not None:
                view = view.reshape(self.shape)
                if dtype is None or np.dtype(dtype) == view.dtype:
                    return view
            if copy is False:
                raise ValueError("a copy is needed, and copy=False forbids it")
            result: AnyArray = self[...] if view is None else view
            result = result if dtype is None else result.astype(dtype)
            # Also of a copy: what is stored into an array that nobody asked for reaches no medium.
            result.flags.writeable = bool(copy)
            return result

    def __iter__(self) -> Iterator[Any]:
        for i in range(len(self)):
            yield self[i]

    def iter_chunks(self, nbytes: int | None = None) -> Iterator[tuple[slice, ...]]:
        """Cut the array into pieces to work on one after another.

        Parameters
        ----------
        nbytes
            The most that a piece may take; a chunk of the cache unless told.

        Yields
        ------
        tuple of slice
            Disjoint pieces that cover the array, in the order in which they lie on the medium.

        Examples
        --------
        >>> import pmarray
        >>> a = pmarray.open("dram:", shape=(4, 3), layout="col", fill_value=2)
        >>> sum(a[index].sum() for index in a.iter_chunks(nbytes=64))
        np.float64(24.0)
        """
        if not self.ndim:
            yield ()
            return
        if not self.size:
            return
        chunk_shape = self.chunks
        if nbytes is not None:
            chunk_shape = self._layout.chunk_shape(nbytes, nbytes)
        whole = tuple(slice(0, n, 1) for n in self.shape)
        for extent in self._layout.extents(whole, chunk_shape):
            yield extent.block

    # -- writing --------------------------------------------------------------------------------

    def __setitem__(self, index: Any, value: ArrayLike) -> None:
        """Write `value`, broadcast, to the selected items; cast as NumPy's assignment casts.

        Returns when the items are in the cache, which is at once unless its budget is full. A
        `PMArray` is read and written piece by piece within `config.work_memory`; where it is a
        view of this array, and overlaps what is written, it is first copied to a file without a
        name.
        """
        if is_large_mask(index, self):
            write_masked(self, index, value)
            return
        if names_fields(index, self):
            write_fields(self, index, value)
            return
        self._set(parse, index, value)

    def _set(
        self,
        parse: Callable[[Any, tuple[int, ...]], Selection | FancySelection],
        index: Any,
        value: ArrayLike,
    ) -> None:
        if isinstance(value, PMArray):
            from pmarray._numpy.assignment import assign  # a view is an array itself

            assign(self, parse(index, self.shape), value)
            return
        values = self._as_values(value)  # before the lock: what computes it may need the lock
        with self._turn():
            self._admit_writer()
            self._write(parse(index, self.shape), values)

    def _write(self, selection: Selection | FancySelection, values: AnyArray) -> None:
        if isinstance(selection, FancySelection):
            values = apart_from(values, [self], "the value")
        while values.ndim > len(selection.shape) and values.shape[0] == 1:
            values = values[0]
        try:
            whole = np.broadcast_to(values, selection.shape)
        except ValueError:
            raise ValueError(
                f"could not broadcast values of shape {_text(values.shape)} into shape "
                f"{_text(selection.shape)}"
            ) from None
        if isinstance(selection, FancySelection):
            if 0 not in selection.shape:
                scatter(self._storage, selection, selection.to_block(whole), self.dtype)
            return
        block = whole[selection.to_block]
        if not self.ndim:
            block = block.reshape(1)
        self._storage.write(storage_axes(selection), block)

    def _apply_at(self, ufunc: np.ufunc, index: Any, *values: Any) -> None:
        """``ufunc.at(self, index, *values)``."""
        values = tuple(apart_from(v, [self], "the value") for v in values)
        with self._turn():
            self._admit_writer()
            selection = parse(index, self.shape)
            if isinstance(selection, FancySelection) and selection.selectors:
                blocks = [selection.to_block(np.broadcast_to(v, selection.shape)) for v in values]

                def change(box: AnyArray, within: Any, where: Any) -> None:
                    ufunc.at(box, within, *(block[where] for block in blocks))

                if 0 not in selection.shape:
                    update(self._storage, selection, change, self.dtype)
                return
            block = np.asarray(self._read(selection))
            ufunc.at(block, cast(Any, ...), *values)
            self._write(selection, block)

    def _as_values(self, value: ArrayLike) -> AnyArray:
        if isinstance(value, np.ndarray) and value.dtype.kind not in "OSUV":
            return value  # cast piece by piece on its way into the cache
        # Everything else is cast first, so that what cannot be cast changes nothing.
        if isinstance(value, np.ndarray | np.generic):
            return np.asarray(value).astype(self.dtype)
        return np.asarray(value, dtype=self.dtype)

    def writing(self, index: Any) -> AbstractContextManager[AnyArray]:
        """Lend the memory of the selected items themselves, to be filled without a copy.

        The selection must be contiguous and lie in one chunk: a column of a column-major matrix,
        a row of a row-major one. What the lent array holds at first is unspecified; every item of
        it must be written. It must not be used after the block. If the block raises, the items
        keep their old values where those had left the cache, and are unspecified otherwise.
        Several loans may be open at once, and a loan may end on another thread.

        Yields
        ------
        numpy.ndarray
            Writable, with the shape of ``self[index]``.

        Raises
        ------
        SelectionError
            The selection is not contiguous.
        BudgetError
            It does not lie in one chunk; or all of the cache is on loan already, to this thread, or
            to others that wait for memory themselves or have not ended a loan for 30 seconds.

        Examples
        --------
        >>> import numpy as np, pmarray
        >>> a = pmarray.open("dram:", shape=(3, 2), layout="col")
        >>> with a.writing(np.s_[:, 1]) as out:
        ...     np.sqrt([1, 4, 9], out=out)
        array([1., 2., 3.])
        >>> a[2]
        array([0., 3.])
        """
        return Borrowing(self, lambda: select(index, self.shape), None)

    @contextmanager
    def reading(self, index: Any) -> Iterator[AnyArray]:
        """Lend the memory in which the selected items are cached, for reading without a copy.

        The selection must be contiguous and lie in one chunk, as for `writing`. It is read in
        first if it is not cached, and stays where it is until the block ends, which may happen on
        another thread. Later writes to the same items show.

        Yields
        ------
        numpy.ndarray
            Read-only, with the shape of ``self[index]``.

        Examples
        --------
        >>> import numpy as np, pmarray
        >>> a = pmarray.open("dram:", shape=(3, 2), layout="col")
        >>> with a.reading(np.s_[:, 1]) as column:
        ...     column.sum(), column.flags.writeable
        (np.float64(0.0), False)
        """
        with self._turn():
            self._admit()
            selection = select(index, self.shape)
            loan = self._storage.pin(storage_axes(selection))
            self._pins.add(loan)
        try:
            block = loan.block.reshape(selection.block_shape)
            yield block[(*selection.to_result, ...)]
        finally:
            self._pins.discard(loan)
            loan.done()

    def appending(self, count: int = 1) -> AbstractContextManager[AnyArray]:
        """Grow by `count` lines of the slow axis and lend their memory.

        The array grows when the block is entered, so that further loans may follow while this one
        is open. If the block raises, the new lines hold the fill value.

        Yields
        ------
        numpy.ndarray
            Writable, with the shape of the new lines, the slow axis included.

        Examples
        --------
        >>> import pmarray
        >>> a = pmarray.open("dram:", shape=(3, 0), layout="col")
        >>> with a.appending() as out:
        ...     out[:, 0] = [1, 2, 3]
        >>> a.shape
        (3, 1)
        """
        if count < 0:
            raise ValueError(f"count={count} is negative")
        return Borrowing(self, lambda: self._grown_by(count), self._fill_selection)

    def _grown_by(self, count: int) -> Selection:
        lines = self._layout.lines
        self._set_lines(lines + count, fill=False)
        index = [slice(None)] * self.ndim
        index[self._layout.slow_axis] = slice(lines, lines + count)
        return select(tuple(index), self.shape)

    def append(self, values: ArrayLike, axis: int | None = None) -> tuple[int, ...]:
        """Append `values` at the end of an axis and return the new shape.

        Parameters
        ----------
        values
            Items with the array's extents in all other axes, or one line without the axis.
        axis
            The slow axis unless told: the last of a column-major array, the first of a row-major
            one. Any other axis copies the whole array.

        Examples
        --------
        >>> import pmarray
        >>> a = pmarray.open("dram:", shape=(2, 0), layout="col")
        >>> a.append([1, 2]), a.append([[3, 5], [4, 6]])
        ((2, 1), (2, 3))
        >>> a[0]
        array([1., 3., 5.])
        """
        new = values if isinstance(values, PMArray) else self._as_values(values)
        with self._turn():
            self._admit_writer()
            return self._group._do(lambda: self._append(new, axis))

    def _append(self, values: PMArray | AnyArray, axis: int | None) -> tuple[int, ...]:
        if not self.ndim:
            raise LayoutError("an array without axes has nowhere to append to")
        slow = self._layout.slow_axis
        along = slow if axis is None else normal_axis(axis, self.ndim)
        new: Any
        if isinstance(values, PMArray):
            # A view keeps the shape that it has now, also of this array.
            new = values.view[...]
            if new.ndim == self.ndim - 1:
                new = new.view[(*[slice(None)] * along, None)]
        else:
            new = values
            if new.ndim == self.ndim - 1:
                new = np.expand_dims(new, along)
        expected = [n for i, n in enumerate(self.shape) if i != along]
        if new.ndim != self.ndim or [n for i, n in enumerate(new.shape) if i != along] != expected:
            raise LayoutError(
                f"cannot append values of shape {np.shape(values)} to shape {self.shape} "
                f"along axis {along}"
            )
        before = self.shape[along]
        shape = list(self.shape)
        shape[along] += new.shape[along]
        if along == slow:
            self._set_lines(shape[along], fill=False)
        else:
            self.resize(tuple(shape))
        index = (slice(None),) * along + (slice(before, None),)
        try:
            self._set(select, index, new)
        except BaseException:
            if along == slow:
                self._set_lines(before, fill=False)  # an append takes place or does not
            raise
        return self.shape

    def resize(self, shape: int | tuple[int, ...]) -> None:
        """Change the shape in place; items keep their indices, new ones hold the fill value.

        Along the slow axis this is cheap. Along any other axis the whole array is copied, except
        in a chunk store.
        """
        with self._turn():
            self._admit_writer()
            self._group._do(lambda: self._resize(shape))

    def _resize(self, shape: int | tuple[int, ...]) -> None:
        new = tuple(operator.index(n) for n in (shape if isinstance(shape, tuple) else (shape,)))
        if len(new) != self.ndim or any(n < 0 for n in new):
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

    def transaction(self, *, wait: bool | None = None) -> Transaction:
        """Begin a transaction of the group that holds the array; see `Group.transaction`.

        Examples
        --------
        >>> import pmarray
        >>> a = pmarray.open("dram:", shape=(2, 2))
        >>> with a.transaction():
        ...     a[0] = 1
        ...     a[1] = 2
        """
        return self._group.transaction(wait=wait)

    def flush(self) -> None:
        """Return when everything written to the group so far is durable."""
        self._group.flush()

    def close(self) -> None:
        """Close the group that holds the array; see `Group.close`."""
        self._group.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- growing --------------------------------------------------------------------------------

    @property
    def _layout(self) -> Layout:
        return self._storage.layout

    def _set_lines(self, lines: int, *, fill: bool) -> None:
        shape = list(self.shape)
        shape[self._layout.slow_axis] = lines
        if not self._set_shape(tuple(shape), fill=fill):
            raise AssertionError("every storage grows along its slow axis")

    def _set_shape(self, shape: tuple[int, ...], *, fill: bool) -> bool:
        """Change the shape in place; return whether that can be without copying."""
        refuse_unaddressable(shape, self.itemsize)
        array = replace(self._array, shape=shape)
        self._group._backend.admit(array)
        blocks = self._storage.set_shape(shape or (1,))
        if blocks is None:
            return False
        line_stride = self._storage.layout.line_stride
        self._array = replace(array, line_stride=line_stride)
        self._group._update(self._name, self._array)
        if fill:
            for axes in blocks:
                self._fill_selection(select(axes, self.shape))
        return True

    def _fill_selection(self, selection: Selection) -> None:
        fill = np.frombuffer(self._array.fill, self.dtype)[0]
        shape = selection.block_shape or (1,)
        self._storage.write(storage_axes(selection), np.broadcast_to(fill, shape))

    def _relayout(self, shape: tuple[int, ...]) -> None:
        """Move to a file of another shape, block by block."""
        array, storage = self._group._new_file(self._array, shape)
        target = PMArray(self._group, self._name, array, storage)
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
            self._group._discard_file(array)
            raise
        old = self._storage
        self._group._replace_array(self._name, self._array, array)
        self._array, self._storage = array, storage
        self._group._retire(old)

    # -- the group's side -----------------------------------------------------------------------

    def _turn(self) -> AbstractContextManager[Any]:
        """Return the group's lock; see `Group._turn`."""
        return self._group._turn()

    def _admit(self) -> None:
        """Refuse an operation where there can be none on this array; called with the lock."""
        self._group._admit()
        self._refuse_detached()

    def _admit_writer(self) -> None:
        """The same for an operation that changes something."""
        self._group._admit_writer()
        self._refuse_detached()

    def _refuse_detached(self) -> None:
        if self._detached:
            raise ArrayNotFoundError(
                f"the array {self._name!r} was deleted from {self._group.url}, or replaced there"
            )

    def _refuse_loans(self, what: str, *, pins: bool = False) -> None:
        """Raise if memory is lent for writing, or, with `pins`, for reading either."""
        count = len(self._loans) + pins * len(self._pins)
        if count:
            raise LoanError(
                f"cannot {what} while {count} loans of {self._name!r} are open: leave their "
                "blocks first; one that an interrupt has torn away ends when its exception goes"
            )

    def _detach(self) -> None:
        """The array is no more; its handle says so from now on."""
        self._detached = True
        self._group._retire(self._storage)

    def _adopt(self, array: ArrayMetadata, storage: Storage) -> None:
        """Move on to what another writer left."""
        self._storage.close()
        self._array, self._storage = array, storage


class Indexer:
    """Another way to index an array: `PMArray.oindex`, `PMArray.vindex`, `PMArray.blocks`."""

    def __init__(
        self,
        array: PMArray,
        parse: Callable[[Any, tuple[int, ...]], Selection | FancySelection],
    ) -> None:
        self._array = array
        self._parse = parse

    def __getitem__(self, index: Any) -> Any:
        with self._array._turn():
            self._array._admit()
            return self._array._read(self._parse(index, self._array.shape))

    def __setitem__(self, index: Any, value: ArrayLike) -> None:
        self._array._set(self._parse, index, value)


class Viewer:
    """Indexing that reads nothing: `PMArray.view`."""

    def __init__(self, array: PMArray) -> None:
        self._array = array

    def __getitem__(self, index: Any) -> PMArray:
        from pmarray._storage.views import slice_view  # a view is an array itself

        with self._array._turn():
            self._array._admit()
            return slice_view(self._array, index)


def _block_slices(index: Any, array: PMArray) -> tuple[slice, ...]:
    """Turn an index in the grid of chunks into one in items."""
    chunks = array.chunks
    grid = tuple(-(-n // chunk) for n, chunk in zip(array.shape, chunks, strict=True))
    selection = select(index, grid)
    if None in selection.to_result:
        raise SelectionError("blocks takes integers and slices of step 1")
    _refuse_slices(index, grid)
    return tuple(
        slice(axis.start * chunk, min(axis.stop * chunk, n))
        for axis, chunk, n in zip(selection.axes, chunks, array.shape, strict=True)
    )


def _refuse_slices(index: Any, grid: tuple[int, ...]) -> None:
    """Raise for a slice with a step, or that begins at a block that is not there, as Zarr."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (len(grid) - len(parts) + 1)
    for axis, (part, n) in enumerate(zip(parts, grid, strict=False)):
        if isinstance(part, slice) and part.step not in (None, 1):
            raise SelectionError("blocks takes integers and slices of step 1")
        if isinstance(part, slice) and part.start is not None:
            start = operator.index(part.start)
            if not -n <= start < n:
                raise SelectionError(
                    f"block {start} is out of bounds for axis {axis} with {n} blocks"
                )


def _text(shape: tuple[int, ...]) -> str:
    return str(shape).replace(" ", "")  # as NumPy writes it in this message


def _blocks(shape: tuple[int, ...], itemsize: int, order: Order) -> Iterator[tuple[slice, ...]]:
    """Cut an array into blocks of about `_RELAYOUT_BLOCK_BYTES`, in the order of its layout."""
    if 0 in shape:
        return
    layout = Layout.plan(shape, itemsize, order)
    whole = tuple(slice(0, n, 1) for n in shape)
    chunk_shape = layout.chunk_shape(_RELAYOUT_BLOCK_BYTES, _RELAYOUT_BLOCK_BYTES)
    for extent in layout.extents(whole, chunk_shape):
        yield extent.block

"""`PMArray`: shape, dtype and layout over a storage, with NumPy's indexing."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pmarray._array.attributes import Attributes
from pmarray._array.forgetting import Forgetting
from pmarray._array.growth import Growing
from pmarray._array.indexers import Indexer, Viewer, block_slices
from pmarray._array.loans import Borrowing, borrowed_for_reading
from pmarray._array.stored import StoredArray, as_result
from pmarray._array.transaction import Transaction
from pmarray._array.views import transpose_view
from pmarray._config import config
from pmarray._exchange.interop import Interop
from pmarray._numpy.appending import append
from pmarray._numpy.arithmetic import Arithmetic
from pmarray._numpy.assignment import assign
from pmarray._numpy.fields import names_fields, write_fields
from pmarray._numpy.masks import is_large_mask, write_masked
from pmarray._numpy.reading import begin_read, read_into
from pmarray._selection.basic import Selection, normal_axis, select
from pmarray._selection.fancy import FancySelection, orthogonal, parse, pointwise
from pmarray._sizes import format_bytes, parse_bytes
from pmarray._streams.reading import read_pieces
from pmarray.errors import LayoutError

if TYPE_CHECKING:
    from pmarray.group import Group  # what users get, in a program with types

__all__ = ["PMArray"]

AnyArray = NDArray[Any]


class PMArray(Arithmetic, Interop, Growing, Forgetting):
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

    @property
    def group(self) -> Group:
        """The group that holds the array."""
        return cast("Group", self._group)

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
        return Attributes(self._root)

    def __repr__(self) -> str:
        return (
            f"<PMArray {self._group.url}#{self._name} {self.shape} {self.dtype} "
            f"layout={self.layout!r} {format_bytes(self.nbytes)}"
            f"{'' if self._base is None else ', a view'}>"
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
        near = self._storage.near
        if near is not None and (found := near(index)) is not None:
            return found
        with self._turn():
            self._admit()
            found, read = begin_read(self, index)
        return found if read is None else self._read_unlocked(read, index)

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
        TypeError
            `out` is no `numpy.ndarray`.

        Examples
        --------
        >>> import numpy as np, pmarray
        >>> a = pmarray.open("dram:", shape=(3, 2), layout="col", fill_value=7)
        >>> a.read(np.s_[1:, 0], out=np.empty(2))
        array([7., 7.])
        """
        if not isinstance(out, np.ndarray):
            raise TypeError(f"out= is a {type(out).__name__}: give a numpy.ndarray")
        read_into(self, index, out)
        return out

    def read_each(
        self, indices: Iterable[Any], *, memory: int | str | None = None
    ) -> Iterator[Any]:
        """Read one selection after another, and those that follow while one is worked on.

        What comes from a device is read by several requests at a time
        (`pmarray.config.read_requests`), so that a loop takes as long as the device or the
        computation, whichever is slower. Each selection is read as it is when it is handed over:
        what the loop has written by then is in it.

        Parameters
        ----------
        indices
            Basic ones: of integers, slices, an Ellipsis and new axes, such as `iter_chunks` yields.
            The loop over them has ended before anything is read.
        memory
            Bytes for the selections that are held and those that are on their way,
            ``"256 MiB"``, or `pmarray.config.work_memory` unless told; one is held all the same.

        Yields
        ------
        numpy.ndarray
            What the index selects, in memory that may be written to. It is used again: copy what
            is kept when the next one is asked for. A scalar for a full index.

        Raises
        ------
        SelectionError
            An index is out of bounds, or not a basic one.
        LayoutError
            The array has shrunk meanwhile.

        Examples
        --------
        >>> import pmarray
        >>> a = pmarray.open("dram:", shape=(4, 3), layout="col", fill_value=2)
        >>> [float(column.sum()) for column in a.read_each([(slice(None), j) for j in range(3)])]
        [8.0, 8.0, 8.0]
        """
        selections = [select(index, self.shape) for index in indices]
        nbytes = config.work_memory if memory is None else parse_bytes(memory)
        blocks = read_pieces(self, [one.axes for one in selections], nbytes)
        return map(as_result, selections, blocks)

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
        return Indexer(self, lambda index, shape: select(block_slices(index, self), shape))

    # -- lazy views -----------------------------------------------------------------------------

    @property
    def view(self) -> Viewer[Self]:
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

    @property
    def mT(self) -> PMArray:  # noqa: N802  # NumPy's name
        """The array with its last two axes exchanged: a lazy view. See `numpy.matrix_transpose`."""
        if self.ndim < 2:
            raise ValueError("matrix transpose with ndim < 2 is undefined")
        return self.swapaxes(-1, -2)

    def transpose(self, *axes: int | tuple[int, ...] | None) -> PMArray:
        """View the array with its axes in another order, reversed unless told.

        Examples
        --------
        >>> import pmarray
        >>> pmarray.open("dram:", shape=(2, 3, 4)).transpose(1, 2, 0).shape
        (3, 4, 2)
        """
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
        if isinstance(value, StoredArray):
            assign(self, parse(index, self.shape), value)
            return
        values = self._as_values(value)  # before the lock: what computes it may need the lock
        with self._turn():
            self._admit_writer()
            self._write(parse(index, self.shape), values)

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

    def reading(self, index: Any) -> AbstractContextManager[AnyArray]:
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
        return borrowed_for_reading(self, lambda: select(index, self.shape))

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
        number = operator.index(count)
        if number < 0:
            raise ValueError(f"count={count} is negative")
        return Borrowing(self, lambda: self._grown_by(number), self._fill_selection)

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
        new = values if isinstance(values, StoredArray) else self._as_values(values)
        with self._turn():
            self._admit_writer()
            return self._do(lambda: append(self, new, axis))

    def resize(self, shape: int | tuple[int, ...]) -> None:
        """Change the shape in place; items keep their indices, new ones hold the fill value.

        Along the slow axis this is cheap. Along any other axis the whole array is copied, except
        in a chunk store.
        """
        with self._turn():
            self._admit_writer()
            self._do(lambda: self._resize(shape))

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
        return self.group.transaction(wait=wait)

    def flush(self) -> None:
        """Return when everything written to the group so far is durable."""
        self.group.flush()

    def close(self) -> None:
        """Close the group that holds the array; see `Group.close`."""
        self.group.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

"""`StoredArray`: shape, dtype and layout over a storage; what is read and written by selection."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, Self, TypeVar, cast
from weakref import WeakSet

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from pmarray._array.home import Home
from pmarray._config import config
from pmarray._dtypes import as_ndarray
from pmarray._formats.metadata import ArrayMetadata
from pmarray._geometry.layout import Layout, Order
from pmarray._selection.basic import Selection, storage_axes
from pmarray._selection.fancy import FancySelection, parse
from pmarray._sizes import parse_bytes
from pmarray._storage.items import Items, Storage
from pmarray._storage.transfer import gather, scatter
from pmarray.errors import ArrayNotFoundError, LoanError

__all__ = ["StoredArray", "as_result"]

AnyArray = NDArray[Any]
T = TypeVar("T")

_LINES_BYTES = 1 << 20
"""What a loop over an array reads at once."""


class StoredArray:
    """What every room below `PMArray` knows of an array.

    Parameters
    ----------
    home
        The group.
    name, array
        Its name there, and what its metadata say.
    storage
        Its items, or those of another array under other indices.
    base
        That other array, if this is a view: it has the shape that the other one had when it was
        made, and cannot grow.
    """

    def __init__(
        self,
        home: Home,
        name: str,
        array: ArrayMetadata,
        storage: Storage,
        *,
        base: StoredArray | None = None,
    ) -> None:
        self._group = home
        self._name = name
        self._array = array
        self._storage = storage
        self._base = base
        self._detached = False
        # Not counts, because loans end on other threads without the group's lock; weak, because a
        # loan that an exception has torn away before its end must not stay open for good.
        self._loans: WeakSet[object] = WeakSet() if base is None else base._loans
        self._pins: WeakSet[object] = WeakSet() if base is None else base._pins
        self._chunks: str | int | tuple[int, ...] = "auto"
        """As they were asked for."""

    def _viewed(self, items: Items, shape: tuple[int, ...]) -> Self:
        """An array of the same class, of these items of this one under other indices."""
        array = self._array._replace(shape=shape, order=items.layout.order)
        # The rest of a storage is for its group, which does not know of views.
        return type(self)(self._group, self._name, array, cast(Storage, items), base=self)

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
    def fill_value(self) -> Any:
        """What items hold until they are written."""
        return np.frombuffer(self._array.fill, self.dtype)[0]

    @property
    def _layout(self) -> Layout:
        return self._storage.layout

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of an array without axes")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        # Several lines are read at once, more each time, until something is changed meanwhile: the
        # next line is then read as it is now.
        first, count = 0, len(self)
        most = max(1, _LINES_BYTES * count // max(1, self.nbytes))
        some = 1
        while first < count:
            session = self._group._session
            changes = session.changes
            lines = np.asarray(self[first : min(first + some, count)])
            if not len(lines):
                self[first]  # which says that it is shorter now
            for line in lines:
                yield line.copy() if isinstance(line, np.ndarray | np.void) else line
                first += 1
                if session.changes != changes:
                    some = 0
                    break
            some = min(most, 2 * some) or 1

    def iter_chunks(self, nbytes: int | str | None = None) -> Iterator[tuple[slice, ...]]:
        """Cut the array into pieces to work on one after another.

        Parameters
        ----------
        nbytes
            The most that a piece may take, such as ``"1 MiB"``; a chunk of the cache unless told.

        See Also
        --------
        PMArray.read_each : reads such pieces ahead of the loop over them.

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
            most = parse_bytes(nbytes)
            chunk_shape = self._layout.chunk_shape(most, most)
        whole = tuple(slice(0, n, 1) for n in self.shape)
        for extent in self._layout.extents(whole, chunk_shape):
            yield extent.block

    @property
    def _root(self) -> StoredArray:
        """The array behind all views."""
        return self if self._base is None else self._base._root

    def _shows(self, values: AnyArray) -> bool:
        """Whether an array in memory shows items of this one, and changes with them."""
        return bool(values.size and self.size) and self._root._storage.shows(values)

    # -- items ----------------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> Any:
        """Return the selected items as a new `numpy.ndarray` (a scalar for a full index)."""
        near = self._storage.near
        if near is not None and (found := near(index)) is not None:
            return found
        with self._turn():
            self._admit()
            found, read = self._begin_read(index)
        return found if read is None else self._read_unlocked(read, index)

    def _begin_read(self, index: Any) -> tuple[Any, Callable[[], Any] | None]:
        """Read with the lock; or return what reads without it, see `_deferred`."""
        selection = parse(index, self.shape)
        found, read = self._held(selection), None
        if found is None:
            read = self._deferred(selection)
            found = self._read(selection) if read is None else None
        self._come_near()
        return found, read

    def _read_unlocked(self, read: Callable[[], Any], index: Any) -> Any:
        """Do what `_deferred` has returned, without the lock; or read with the lock after all."""
        found = read()
        if found is None:
            with self._turn():
                self._admit()
                found = self._read(parse(index, self.shape))
        return found

    def __setitem__(self, index: Any, value: ArrayLike) -> None:
        """Write `value`, broadcast, to the selected items; cast as NumPy's assignment casts."""
        values = self._as_values(value)  # before the lock: what computes it may need the lock
        with self._turn():
            self._admit_writer()
            self._write(parse(index, self.shape), values)

    def __array__(self, dtype: DTypeLike | None = None, *, copy: bool | None = None) -> AnyArray:
        """Return the whole as a read-only `numpy.ndarray`; `numpy.array` gives a copy to write to.

        Where the medium allows it, it is a view. That of a file sees later writes once they have
        left the cache, and a reader's those of others, too, which its commit has not: give
        ``copy=True`` where that matters. What code that ignores the flag stores to it stays in
        it, and reaches neither the file nor anybody else. While it is there, the file is not cut
        where the array shrinks; what it shows of lines that the array no longer has is whatever
        was there.
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

    def _item(self, index: tuple[Any, ...]) -> Any:
        """Return one item by a short way; None if there is none, and the long way has to be."""
        offset = 0
        position = []
        strides = self._storage.layout.strides
        for i, n, stride in zip(index, self._array.shape, strides):  # noqa: B905  # it takes time
            if type(i) is not int:
                if not isinstance(i, np.integer):
                    return None
                i = int(i)
            if i < 0:
                i += n
            if not 0 <= i < n:
                return None
            position.append(i)
            offset += i * stride
        return self._storage.item(tuple(position), offset)

    def _read(self, selection: Selection | FancySelection) -> Any:
        block = self._block_for(selection)
        if isinstance(selection, FancySelection):
            if 0 in selection.shape:
                return np.empty(selection.shape, self.dtype)
            gather(self._storage, selection, block, self.dtype)
            # reshape makes no copy: it only splits axes and adds new ones.
            return selection.to_result(block.reshape(selection.block_shape, order="A"))
        self._storage.read(storage_axes(selection), block)
        return as_result(selection, block)

    def _held(self, selection: Selection | FancySelection) -> Any:
        """Read a selection by a shorter way, if it is in memory in one piece; else None."""
        if isinstance(selection, FancySelection) or 0 in selection.block_shape:
            return None
        self._check_result(selection)
        block = self._storage.held(storage_axes(selection), self._order)
        return None if block is None else as_result(selection, block)

    def _deferred(self, selection: Selection | FancySelection) -> Callable[[], Any] | None:
        """Return what reads a selection later, without the lock; None where that cannot be.

        It returns None where it has not succeeded: the items have to be read with the lock then.
        """
        if isinstance(selection, FancySelection) or 0 in selection.block_shape:
            return None
        fill = self._storage.deferred(storage_axes(selection))
        if fill is None:
            return None

        def read() -> Any:
            block = self._block_for(selection)
            return as_result(selection, block) if fill(block) else None

        return read

    def _block_for(self, selection: Selection | FancySelection) -> AnyArray:
        self._check_result(selection)
        return np.empty(selection.block_shape or (1,), self.dtype, order=self._order)

    def _check_result(self, selection: Selection | FancySelection) -> None:
        nbytes = math.prod(selection.block_shape) * self.itemsize
        config.check_result(nbytes, "read parts of it")

    @property
    def _order(self) -> Literal["F", "C"]:
        """NumPy's name for the layout."""
        return "F" if self.layout == "col" else "C"

    def _gather_into(self, selection: FancySelection, out: AnyArray) -> None:
        block = selection.place_of(out)
        if block is None or self._shows(out):
            out[...] = self._read(selection)
        else:
            gather(self._storage, selection, block, self.dtype)

    def _write(self, selection: Selection | FancySelection, values: AnyArray) -> None:
        if isinstance(selection, FancySelection) and self._shows(values):
            config.check_result(
                values.nbytes, "the value overlaps what is written: give a copy of it"
            )
            values = values.copy()
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

    def _as_values(self, value: ArrayLike) -> AnyArray:
        if isinstance(value, np.ndarray) and value.dtype.kind not in "OSUV":
            return value  # cast piece by piece on its way into the cache
        # Everything else is cast first, so that what cannot be cast changes nothing.
        if isinstance(value, np.ndarray | np.generic):
            return np.asarray(value).astype(self.dtype)
        return as_ndarray(value, self.dtype)

    def _fill_selection(self, selection: Selection) -> None:
        fill = np.frombuffer(self._array.fill, self.dtype)[0]
        shape = selection.block_shape or (1,)
        self._storage.write(storage_axes(selection), np.broadcast_to(fill, shape))

    # -- the group's side -----------------------------------------------------------------------

    def _turn(self) -> AbstractContextManager[Any]:
        """Return the group's lock; see `Session.turn`."""
        return self._group._session.turn()

    def _admit(self) -> None:
        """Refuse an operation where there can be none on this array; called with the lock."""
        self._group._session.admit()
        self._refuse_detached()

    def _come_near(self) -> None:
        """Have what is at hand read without a turn, until something happens; with the lock."""
        lull = self._group._session.begin_lull()
        if lull is not None and self._array.shape:
            self._storage.come_near(lull)

    def _admit_writer(self) -> None:
        """The same for an operation that changes something."""
        self._group._session.admit_writer()
        self._refuse_detached()

    def _refuse_detached(self) -> None:
        if self._base is not None:
            self._base._refuse_detached()
        if self._detached:
            raise ArrayNotFoundError(
                f"the array {self._name!r} was deleted from {self._group.url}, or replaced there: "
                f"group[{self._name!r}] is the one that is there now, if there is one"
            )

    @property
    def _attributes(self) -> Mapping[str, Any]:
        return self._array.attrs

    def _replace_attributes(self, attrs: dict[str, Any]) -> None:
        self._array = self._array._replace(attrs=attrs)
        self._group._catalog.update(self._name, self._array)

    def _refuse_fixed(self, why: str) -> None:
        self._group._catalog.refuse_fixed(why)

    def _do(self, task: Callable[[], T]) -> T:
        return self._group._session.do(task)

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
        self._group._catalog.retire(self._storage)

    def _adopt(self, array: ArrayMetadata, storage: Storage) -> None:
        """Move on to what another writer left."""
        self._storage.close()
        self._array, self._storage = array, storage


_SEQUENCE = 1 << 5  # Py_TPFLAGS_SEQUENCE

if np.ndarray.__flags__ & _SEQUENCE:  # NumPy 2.5 and newer

    class _Matching(ABC):  # noqa: B024  # it is asked for nothing
        """What ``case [first, *rest]`` takes, and is no `collections.abc.Sequence`, as NumPy's."""

        __abc_tpflags__ = _SEQUENCE

    _Matching.register(StoredArray)


def as_result(selection: Selection, block: AnyArray) -> Any:
    """Look at a block as what NumPy returns."""
    # The Ellipsis keeps an array of one item an array.
    result = block.reshape(selection.block_shape, order="A")[(*selection.to_result, ...)]
    return result[()] if selection.scalar else result


def _text(shape: tuple[int, ...]) -> str:
    return str(shape).replace(" ", "")  # as NumPy writes it in this message

"""Other ways to index an array: `PMArray.oindex`, `vindex`, `blocks` and `view`."""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from numpy.typing import ArrayLike

from pmarray._array.stored import StoredArray
from pmarray._array.views import slice_view
from pmarray._selection.basic import Selection, select
from pmarray._selection.fancy import FancySelection
from pmarray.errors import SelectionError

__all__ = ["Indexer", "Viewer", "block_slices"]

A = TypeVar("A", bound=StoredArray)


Parse = Callable[[Any, tuple[int, ...]], Selection | FancySelection]


class _Assignable(Protocol):
    def _turn(self) -> AbstractContextManager[Any]: ...

    def _admit(self) -> None: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def _read(self, selection: Selection | FancySelection, /) -> Any: ...

    def _set(self, parse: Parse, index: Any, value: ArrayLike, /) -> None: ...


class Indexer:
    """Another way to index an array: `PMArray.oindex`, `PMArray.vindex`, `PMArray.blocks`."""

    def __init__(self, array: _Assignable, parse: Parse) -> None:
        self._array = array
        self._parse = parse

    def __getitem__(self, index: Any) -> Any:
        with self._array._turn():
            self._array._admit()
            return self._array._read(self._parse(index, self._array.shape))

    def __setitem__(self, index: Any, value: ArrayLike) -> None:
        self._array._set(self._parse, index, value)


class Viewer(Generic[A]):
    """Indexing that reads nothing: `PMArray.view`."""

    def __init__(self, array: A) -> None:
        self._array = array

    def __getitem__(self, index: Any) -> A:
        with self._array._turn():
            self._array._admit()
            return slice_view(self._array, index)

    def __call__(self, *args: Any, **options: Any) -> NoReturn:
        """Refuse a call, as of the method of ndarrays that has the name."""
        raise TypeError(
            "view is indexed here, and not called: a.view[...] reads nothing; "
            "np.asarray(a).view(dtype) has the bytes as items of another type"
        )


def block_slices(index: Any, array: StoredArray) -> tuple[slice, ...]:
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

"""Matrices as sources of tiles, and as places for results.

Tiles that are in memory are looked at where they lie; others are read into buffers, several
requests at a time (`_streams.reading`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from pmarray._array.overlap import share
from pmarray._array.stored import StoredArray
from pmarray._config import config
from pmarray._sizes import parse_bytes
from pmarray._streams.reading import Sight, is_at_hand, show_pieces
from pmarray.errors import LayoutError
from pmarray.linalg._plans import RUN_BYTES, cut, plan_tile

__all__ = [
    "AnyArray",
    "Matrix",
    "Tile",
    "allowed_memory",
    "panels",
    "tiles",
    "walk",
]

AnyArray = NDArray[Any]
DType = np.dtype[Any]
Tile = tuple[slice, slice]
"""Rows and columns."""


_AHEAD_FROM_BYTES = 16 << 20
"""Smaller panels are not made smaller still for the sake of the next one: their runs are short."""
_LEAST_BYTES = 4096
"""Some items of any dtype have room in it, and their products."""


def allowed_memory(memory: int | str | None) -> int:
    """Bytes that an operation may hold; the limit of all operations is no less than some items."""
    if memory is None:
        return max(config.work_memory, _LEAST_BYTES)
    nbytes = parse_bytes(memory)
    if not nbytes:
        raise ValueError("memory=0 leaves nothing to work in")
    return nbytes


class _Buffer:
    """Memory that one tile after another is read or converted into."""

    def __init__(self) -> None:
        self._items: AnyArray | None = None

    def take(self, shape: tuple[int, int], dtype: DType, fast: int) -> AnyArray:
        count = shape[0] * shape[1]
        if self._items is None or self._items.size < count:
            self._items = np.empty(count, dtype)
        return self._items[:count].reshape(shape, order="F" if fast == 0 else "C")


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """Two axes over an array on a medium or in memory, to read and to write."""

    array: StoredArray | AnyArray
    """Of one or two axes."""
    transposed: bool
    """A vector is a column, or, transposed, a row."""

    @classmethod
    def of(cls, array: Any, *, transposed: bool = False, what: str = "operand") -> Self:
        """Take an array of one or two axes.

        Raises
        ------
        LayoutError
            It has another number of axes, or items that are no numbers.
        """
        if not isinstance(array, StoredArray):
            array = np.asarray(array)
        if array.ndim not in (1, 2):
            raise LayoutError(
                f"the {what} has shape {array.shape}: give a matrix or a vector, or index one out"
            )
        kind = np.dtype(array.dtype)
        if kind.names is not None or (kind.kind not in "biufc" and kind.type.__module__ == "numpy"):
            raise LayoutError(f"the {what} has dtype {kind}, whose items are no numbers")
        return cls(array, transposed)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        shape = (*self.array.shape, 1)[:2]
        return (shape[1], shape[0]) if self.transposed else (shape[0], shape[1])

    @property
    def dtype(self) -> DType:
        """Of the items."""
        return self.array.dtype

    @property
    def stored(self) -> bool:
        """Whether it lies on a medium."""
        return isinstance(self.array, StoredArray)

    @property
    def is_at_hand(self) -> bool:
        """Whether what is looked at of it is in memory, in runs of any length."""
        return not isinstance(self.array, StoredArray) or (
            self.array._storage.run_nbytes <= RUN_BYTES and is_at_hand(self.array)
        )

    @property
    def fast(self) -> int:
        """The axis along which items are contiguous."""
        if self.array.ndim == 1:
            fast = 0
        elif isinstance(self.array, StoredArray):
            fast = 0 if self.array.layout == "col" else 1
        else:
            steps = [abs(step) for step in self.array.strides]
            fast = 0 if steps[0] < steps[1] else 1
        return 1 - fast if self.transposed else fast

    @property
    def T(self) -> Matrix:  # noqa: N802 - NumPy's name
        """The transpose, without a copy."""
        return Matrix(self.array, not self.transposed)

    def show_each(self, order: list[Tile], nbytes: int) -> Iterator[Sight]:
        """Show tiles: where they lie if that can be, else in `nbytes` of memory or that of one."""
        array = self.array
        indices = [self._index(tile) for tile in order]
        if isinstance(array, StoredArray):
            for sight in show_pieces(array, indices, nbytes):
                yield sight.seen_by(self._as_matrix)
        else:
            for index in indices:
                yield Sight(self._as_matrix(array[index]))

    def _as_matrix(self, part: AnyArray) -> AnyArray:
        part = part.reshape(len(part), -1) if part.ndim == 1 else part
        return part.T if self.transposed else part

    def write(self, tile: Tile, values: AnyArray) -> None:
        """Write a tile."""
        values = values.T if self.transposed else values
        self.array[self._index(tile)] = values[:, 0] if self.array.ndim == 1 else values

    def whole(self, dtype: DTypeLike, nbytes: int) -> AnyArray:
        """Read everything into memory, through a buffer of so many bytes at most."""
        result = np.empty(self.shape, dtype, order="F" if self.fast == 0 else "C")
        size = plan_tile(
            self.shape[self.fast],
            self.shape[1 - self.fast],
            stored=self.dtype.itemsize,
            item=self.dtype.itemsize,
            nbytes=max(nbytes, self.dtype.itemsize),
            along="fast",
        )
        for tile, sight in walk(self, tiles(self, size)):
            result[tile] = sight.block
        return result

    def _index(self, tile: Tile) -> tuple[slice, ...]:
        rows, columns = (tile[1], tile[0]) if self.transposed else tile
        return (rows,) if self.array.ndim == 1 else (rows, columns)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the array from shrinking, which raises `LoanError` instead."""
        if not isinstance(self.array, StoredArray):
            yield
            return
        token = _Hold()  # the array knows it weakly: it goes with this frame
        with self.array._turn():
            self.array._admit()
            self.array._pins.add(token)
        try:
            yield
        finally:
            self.array._pins.discard(token)


class _Hold:
    """What keeps an array from shrinking."""


def tiles(matrix: Matrix, size: tuple[int, int], *, along: int | None = None) -> list[Tile]:
    """Cut a matrix into tiles.

    Parameters
    ----------
    size
        Items of each line, and lines, as `plan_tile` gives them.
    along
        The axis that is the inner loop; unless told, the order is that of the medium.
    """
    fast = matrix.fast
    extents = [0, 0]
    extents[fast], extents[1 - fast] = size
    rows, columns = (cut(n, extent) for n, extent in zip(matrix.shape, extents, strict=True))
    if along is None:
        along = fast
    if along == 1:
        return [(row, column) for row in rows for column in columns]
    return [(row, column) for column in columns for row in rows]


def walk(
    matrix: Matrix, order: Iterable[Tile], dtype: DType | None = None, nbytes: int = 0
) -> Iterator[tuple[Tile, Sight]]:
    """Show tiles one after another; each must be done with when the next is asked for.

    Parameters
    ----------
    nbytes
        What all tiles that are held may take: what finds room besides one is read meanwhile.
    """
    order = list(order)
    converted, as_dtype = _Buffer(), matrix.dtype if dtype is None else dtype
    with matrix.held():
        for tile, sight in zip(order, matrix.show_each(order, nbytes), strict=True):
            if as_dtype != matrix.dtype:
                for block in sight.looks():
                    fast = 0 if block.strides[0] < block.strides[1] else 1
                    shape = block.shape[0], block.shape[1]
                    target = converted.take(shape, as_dtype, fast)
                    target[...] = block
                sight = Sight(target)
            yield tile, sight
            del sight


def panels(matrix: Matrix, rows: int, dtype: DType) -> Iterator[tuple[Tile, Sight]]:
    """Show panels of all columns one after another; there is memory for one of so many rows.

    Of what lies on a medium each has fewer, so that the next one finds room meanwhile.
    """
    m, n = matrix.shape
    nbytes = 0
    whole = rows * n * matrix.dtype.itemsize
    if matrix.stored and whole >= _AHEAD_FROM_BYTES:
        nbytes = whole
        rows = max(1, rows * 2 // 5)  # twice; the rest is for columns that begin on a page each
    return walk(matrix, [(part, slice(0, n)) for part in cut(m, rows)], dtype, nbytes)


def as_output(out: Any, shape: tuple[int, ...], dtype: DType, operands: Iterable[Any]) -> None:
    """Refuse an `out` that cannot take the result.

    Raises
    ------
    LayoutError
        Its shape is wrong, or it is one of the operands.
    TypeError
        It is no array, or the result is not cast to its dtype.
    """
    if not isinstance(out, StoredArray | np.ndarray):
        raise TypeError(f"out= is a {type(out).__name__}: give a numpy.ndarray or a PMArray")
    if out.shape != shape:
        raise LayoutError(f"out has shape {out.shape}, the result {shape}")
    if not np.can_cast(dtype, out.dtype, "same_kind"):
        raise TypeError(f"out has dtype {out.dtype}, which cannot hold a result of {dtype}")
    for operand in operands:
        if share(out, operand):
            raise LayoutError("out is one of the operands, which are still read when it is written")


def new_result(shape: tuple[int, ...], dtype: DType, instead: str) -> AnyArray:
    """Make a result in memory, if it fits.

    Raises
    ------
    BudgetError
        It does not; the message names its size.
    """
    nbytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
    config.check_result(nbytes, instead)
    return np.empty(shape, dtype)


@contextmanager
def all_held(matrices: Iterable[Matrix]) -> Iterator[None]:
    """Keep several from shrinking."""
    with ExitStack() as stack:
        for matrix in matrices:
            stack.enter_context(matrix.held())
        yield


def real_of(dtype: DType) -> DType:
    """The dtype of the modulus."""
    return np.dtype(np.empty(0, dtype).real.dtype)


def as_vector(values: ArrayLike, length: int, dtype: DType, what: str) -> AnyArray:
    """Values as a vector of that length."""
    result = np.asarray(values, dtype)
    if result.shape != (length,):
        raise LayoutError(f"{what} has shape {result.shape}, not ({length},)")
    return result

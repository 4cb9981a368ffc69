"""Methods of `numpy.ndarray` that a `PMArray` has for those who type them.

What can be done lazily is a view, what can be done piece by piece is streamed. The rest reads the
whole array into memory if that is allowed, and otherwise says what to do instead. Where NumPy's
result would share memory with the array, and this one does not, it is read-only, so that a store
that would be lost is an error.
"""

from __future__ import annotations

import math
import operator
from typing import Any, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray

from pmarray._array.stored import StoredArray
from pmarray._array.views import slice_view, transpose_view
from pmarray._config import config
from pmarray._numpy.ufuncs import walk
from pmarray._selection.basic import normal_axis
from pmarray.errors import SelectionError

__all__ = ["Methods"]

AnyArray = NDArray[Any]
MemoryOrder = Literal["C", "F", "A", "K"]


class Methods(StoredArray):
    """Methods of `numpy.ndarray` besides arithmetic and reductions."""

    def _copied(self, what: str) -> AnyArray:
        """Read the whole."""
        a = self
        config.check_result(
            a.nbytes, f"{what} reads the whole array; use parts of it (a.iter_chunks, a.view[...])"
        )
        return np.asarray(a[...])

    # -- shape ----------------------------------------------------------------------------------

    def reshape(
        self, *shape: Any, order: Literal["C", "F", "A"] = "C", copy: bool | None = None
    ) -> AnyArray:
        """Read the whole in another shape; read-only unless ``copy=True``.

        Raises
        ------
        BudgetError
            It would not fit into memory.
        """
        if copy is False:
            raise ValueError("Unable to avoid creating a copy: the items are not in memory")
        wanted = shape[0] if len(shape) == 1 else shape
        size = self.size
        np.broadcast_to(np.int8(0), size).reshape(wanted)  # refused before anything is read
        return _sealed(self._copied("reshape").reshape(wanted, order=order), bool(copy))

    def ravel(self, order: MemoryOrder = "C") -> AnyArray:
        """Read the whole into one axis; read-only, see `flatten`."""
        return _sealed(self._copied("ravel").ravel(order), False)

    def flatten(self, order: MemoryOrder = "C") -> AnyArray:
        """Read the whole into one axis of a new `numpy.ndarray`."""
        return self._copied("flatten").flatten(order)

    def squeeze(self, axis: Any = None) -> Self:
        """View the array without its axes of one item: a lazy view.

        Examples
        --------
        >>> import pmarray
        >>> pmarray.open("dram:", shape=(1, 3, 1)).squeeze(0).shape
        (3, 1)
        """
        a = self
        if axis is None:
            axes = {i for i, n in enumerate(a.shape) if n == 1}
        elif a.ndim == 0 and not isinstance(axis, tuple) and operator.index(axis) in (0, -1):
            axes = set()  # as NumPy lets it pass
        else:
            given = axis if isinstance(axis, tuple) else (axis,)
            axes = {normal_axis(one, a.ndim) for one in given}
            if len(axes) < len(given):
                raise ValueError("duplicate value in 'axis'")
        if any(a.shape[i] != 1 for i in axes):
            raise ValueError("cannot select an axis to squeeze out which has size not equal to one")
        return slice_view(a, tuple(0 if i in axes else slice(None) for i in range(a.ndim)))

    # -- items ----------------------------------------------------------------------------------

    def item(self, *index: Any) -> Any:
        """One item as a Python scalar; without an index, that of an array of one item.

        One integer counts in C order, as NumPy's does.
        """
        a = self
        if not index:
            if a.size != 1:
                raise ValueError(f"item() needs an array of one item, not of {a.size}")
            return np.asarray(a[...]).item()
        where = index[0] if len(index) == 1 else index
        if not isinstance(where, tuple):
            flat = operator.index(where)
            if not -a.size <= flat < a.size:
                raise SelectionError(f"index {flat} is out of bounds for size {a.size}")
            where = tuple(int(i) for i in np.unravel_index(flat % a.size, a.shape))
        if len(where) != a.ndim:
            raise ValueError("incorrect number of indices for array")
        return np.asarray(a[where]).item()

    def tobytes(self, order: MemoryOrder = "C") -> bytes:
        """Read the whole into `bytes`."""
        return self._copied("tobytes").tobytes(cast(Any, order))

    def sort(
        self, axis: int = -1, kind: Any = None, *, order: Any = None, stable: bool | None = None
    ) -> None:
        """Sort in place along an axis, as many lines at a time as `config.work_memory` holds.

        `numpy.sort` leaves the array alone, and gives a new `numpy.ndarray`.

        Raises
        ------
        BudgetError
            One line along the axis would not fit into memory.

        Examples
        --------
        >>> import pmarray
        >>> a = pmarray.from_array([[3, 1, 2], [6, 5, 4]], "dram:")
        >>> a.sort()
        >>> a[...]
        array([[1, 2, 3],
               [4, 5, 6]])
        """
        a = self
        along = normal_axis(axis, a.ndim)
        np.empty((0,), a.dtype).sort(kind=kind, order=order, stable=stable)  # NumPy's refusals
        length = a.shape[along]
        config.check_result(2 * length * a.itemsize, "a line is sorted as a whole; sort parts")
        rest = tuple(1 if i == along else n for i, n in enumerate(a.shape))
        with a._turn():
            a._admit_writer()
            for piece in walk(rest, 3 * length * a.itemsize, a.layout):
                lines = tuple(slice(0, length) if i == along else p for i, p in enumerate(piece))
                block = np.array(a[lines], copy=True)
                block.sort(along, kind=kind, order=order, stable=stable)
                a[lines] = block

    # -- by the functions of the same names -------------------------------------------------------

    def round(self, decimals: int = 0, out: Any = None) -> Any:
        """Items rounded. See `numpy.round`."""
        return np.round(self, decimals, out)

    def take(self, indices: Any, axis: Any = None, out: Any = None, mode: Any = "raise") -> Any:
        """Items at indices along an axis. See `numpy.take`."""
        return np.take(self, indices, axis, out, mode)

    def choose(self, choices: Any, out: Any = None, mode: Any = "raise") -> Any:
        """Items of the choices that this array numbers. See `numpy.choose`."""
        return np.choose(cast(Any, self), choices, out, mode)

    def compress(self, condition: Any, axis: Any = None, out: Any = None) -> Any:
        """Slices along an axis where a condition holds. See `numpy.compress`."""
        return np.compress(condition, cast(Any, self), axis, out)

    def repeat(self, repeats: Any, axis: int | None = None) -> Any:
        """Items repeated. See `numpy.repeat`."""
        return np.repeat(cast(Any, self), repeats, axis)

    def nonzero(self) -> Any:
        """Indices of the items that are not zero. See `numpy.nonzero`."""
        return np.nonzero(cast(Any, self))

    def argsort(self, axis: Any = -1, kind: Any = None, order: Any = None, **options: Any) -> Any:
        """Indices that would sort. See `numpy.argsort`."""
        return np.argsort(cast(Any, self), axis, kind, order, **options)

    def searchsorted(self, v: Any, side: Any = "left", sorter: Any = None) -> Any:
        """Where values would be put in. See `numpy.searchsorted`."""
        return np.searchsorted(cast(Any, self), v, side, sorter)

    def trace(
        self, offset: int = 0, axis1: int = 0, axis2: int = 1, dtype: Any = None, out: Any = None
    ) -> Any:
        """Sum along a diagonal. See `numpy.trace`."""
        return np.trace(cast(Any, self), offset, axis1, axis2, dtype, out)

    # -- as a linear operator, for scipy.sparse.linalg.aslinearoperator ---------------------------

    def matvec(self, x: Any) -> Any:
        """Product with a vector, or with the columns of a matrix (`matmat`)."""
        return np.matmul(self, x)

    def rmatvec(self, x: Any) -> Any:
        """Product of the conjugate transpose with a vector, or with columns (`rmatmat`)."""
        return np.conj(
            np.matmul(transpose_view(self, tuple(reversed(range(self.ndim)))), np.conj(x))
        )

    matmat, rmatmat = matvec, rmatvec

    def diagonal(self, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
        """Read a diagonal; only its own items are read. Read-only, as NumPy's.

        Examples
        --------
        >>> import numpy as np, pmarray
        >>> pmarray.from_array(np.arange(6).reshape(2, 3), "dram:").diagonal(1)
        array([1, 5])
        """
        a = self
        if a.ndim < 2:
            raise ValueError("diag requires an array of at least two dimensions")
        one, other = normal_axis(axis1, a.ndim), normal_axis(axis2, a.ndim)
        if one == other:
            raise ValueError("axis1 and axis2 cannot be the same")
        rest = [i for i in range(a.ndim) if i not in (one, other)]
        start = (max(0, -offset), max(0, offset))
        length = max(0, min(a.shape[one] - start[0], a.shape[other] - start[1]))
        config.check_result(
            length * math.prod(a.shape[i] for i in rest) * a.itemsize, "read parts of it"
        )
        steps = np.arange(length)
        turned = transpose_view(a, (one, other, *rest))
        found = np.asarray(turned[steps + start[0], steps + start[1]])
        return _sealed(np.moveaxis(found, 0, -1), False)


def _sealed(result: AnyArray, writable: bool) -> AnyArray:
    result.flags.writeable = writable
    return result

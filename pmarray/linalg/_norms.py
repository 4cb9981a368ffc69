"""Norms of matrices and vectors in one pass."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from pmarray._config import config
from pmarray.errors import LayoutError, SelectionError
from pmarray.linalg._blocks import (
    AnyArray,
    Matrix,
    allowed_memory,
    new_result,
    real_of,
    tiles,
    walk,
)
from pmarray.linalg._plans import plan_tile
from pmarray.linalg._products import Operand

__all__ = ["norm"]

Order = float | Literal["fro"] | None

_TILE_BYTES = 2 << 20
"""A tile is gone over several times: it should stay in the processor's cache."""


def norm(
    a: Operand, ord: Order = None, axis: int | None = None, *, memory: int | str | None = None
) -> Any:
    """The norm of a matrix or vector, or of each of its rows or columns; one pass.

    Sums are made in float64 (longdouble for longdouble items). Where squares of such items
    overflow or underflow, a second pass scales them, so that a norm is finite and accurate
    wherever it can be represented.

    Parameters
    ----------
    a : PMArray or array_like
        Shape (m, n) or (m,), either layout.
    ord
        As for `numpy.linalg.norm`. Of a matrix: None or "fro" (root of the sum of squares), 1
        (largest sum over a column of moduli), inf (over a row). Of vectors: None or 2, 1, inf,
        -inf, 0 (count of items that are not 0), or any other power.
    axis
        The axis of the vectors; the whole array is one matrix, or one vector, unless told.
    memory
        As in `matmul`. A tile is of 2 MiB at most.

    Returns
    -------
    numpy.floating or numpy.ndarray
        float64, where `numpy.linalg.norm` keeps float32; with `axis`, one norm for each item of
        the other axis.

    Raises
    ------
    ValueError
        There is no such norm in one pass: the spectral ones are in ``svd(a)``.
    SelectionError
        There is no such axis.

    Examples
    --------
    >>> import numpy as np, pmarray
    >>> a = pmarray.open("dram:", shape=(2, 2), layout="col")
    >>> a[...] = [[3e200, 0], [4e200, 1]]
    >>> np.isclose(pmarray.linalg.norm(a), 5e200, rtol=1e-15)
    np.True_
    >>> pmarray.linalg.norm(a, np.inf, axis=0)
    array([4.e+200, 1.e+000])
    """
    nbytes = min(allowed_memory(memory), _TILE_BYTES)
    matrix = Matrix.of(a)
    if matrix.array.ndim == 1 and axis is None:
        axis = 0
    if axis is not None:
        if not -matrix.array.ndim <= axis < matrix.array.ndim:
            raise SelectionError(
                f"axis {axis} is out of bounds for an array of {matrix.array.ndim} axes"
            )
        if isinstance(ord, str):
            raise ValueError(f"{ord!r} is a norm of matrices, not of vectors")
        found = _along(matrix, 2 if ord is None else ord, axis % matrix.array.ndim, nbytes)
        return found[0] if matrix.array.ndim == 1 else found
    if ord is None or ord == "fro":
        return _frobenius(matrix, nbytes)
    if ord in (1, -1, np.inf, -np.inf):
        sums = _along(matrix, 1, 0 if abs(ord) == 1 else 1, nbytes)
        if ord < 0:
            return sums.min()
        return sums.max(initial=0) if 0 in matrix.shape else sums.max()
    raise ValueError(
        f"ord={ord!r} of a matrix takes more than one pass: use the singular values of "
        "pmarray.linalg.svd, or one of None, 'fro', 1, -1, inf and -inf"
    )


def _frobenius(matrix: Matrix, nbytes: int) -> Any:
    total = np.zeros(1, _sum_dtype(matrix))
    with np.errstate(over="ignore", under="ignore"):
        for _, sight in _walk(matrix, nbytes, along=matrix.fast):
            items = _real(sight.block, total.dtype).reshape(-1, order="A")[:, None]
            total += _squares(items, 0)
    if not np.isnan(total[0]):
        return np.sqrt(total[0])
    total[...] = 0
    for _, sight in _walk(matrix, nbytes, along=matrix.fast):
        items = _moduli(sight.block, total.dtype).reshape(-1, order="A")[:, None]
        _fold(total, _scaled_root(items, 0))
    return total[0]


def _along(matrix: Matrix, ord: float, axis: int, nbytes: int) -> AnyArray:
    dtype = _sum_dtype(matrix)
    result = new_result((matrix.shape[1 - axis],), dtype, "take the norms of a part")
    if ord == -np.inf and not matrix.shape[axis]:
        raise LayoutError("the smallest of no items is undefined")
    if ord == 2:
        return _roots(matrix, result, axis, nbytes)
    result[...] = np.inf if ord == -np.inf else 0
    for tile, sight in _walk(matrix, nbytes, along=axis):
        items = _moduli(sight.block, dtype)
        where = result[tile[1 - axis]]
        if ord == np.inf:
            np.maximum(where, items.max(axis), out=where)
        elif ord == -np.inf:
            np.minimum(where, items.min(axis), out=where)
        elif ord == 0:
            where += np.count_nonzero(items, axis)
        else:
            where += items.sum(axis) if ord == 1 else (items**ord).sum(axis)
    if ord not in (0, 1, np.inf, -np.inf):
        result **= 1 / ord
    return result


def _roots(matrix: Matrix, result: AnyArray, axis: int, nbytes: int) -> AnyArray:
    """Roots of sums of squares along an axis."""
    result[...] = 0
    with np.errstate(over="ignore", under="ignore"):
        for tile, sight in _walk(matrix, nbytes, along=axis):
            result[tile[1 - axis]] += _squares(_real(sight.block, result.dtype), axis)
    if not np.isnan(result).any():
        np.sqrt(result, out=result)
        return result
    result[...] = 0
    for tile, sight in _walk(matrix, nbytes, along=axis):
        _fold(result[tile[1 - axis]], _scaled_root(_moduli(sight.block, result.dtype), axis))
    return result


def _walk(matrix: Matrix, nbytes: int, along: int) -> Any:
    if 0 in matrix.shape:
        return iter(())
    fast = matrix.fast
    size = plan_tile(
        matrix.shape[fast],
        matrix.shape[1 - fast],
        stored=matrix.dtype.itemsize,
        item=matrix.dtype.itemsize + 3 * _sum_dtype(matrix).itemsize,
        nbytes=max(nbytes, 64),
        along="fast" if along == fast else "lines",
    )
    room = config.work_memory // 2 if nbytes == _TILE_BYTES else 0  # else somebody wants less
    return walk(matrix, tiles(matrix, size), nbytes=room)


def _sum_dtype(matrix: Matrix) -> Any:
    real = real_of(matrix.dtype) if matrix.dtype.kind == "c" else matrix.dtype
    return np.dtype(real if real.kind == "f" and real.itemsize > 8 else np.float64)


def _moduli(block: AnyArray, dtype: Any) -> AnyArray:
    if block.dtype.kind == "c":
        wide = np.result_type(block.dtype, dtype)  # complex64 could overflow
        return np.asarray(np.abs(block.astype(wide, copy=False)))
    items: AnyArray = block.astype(dtype)
    np.abs(items, out=items)
    return items


def _real(block: AnyArray, dtype: Any) -> AnyArray:
    """Real items with the same squares."""
    return _moduli(block, dtype) if block.dtype.kind == "c" else block.astype(dtype, copy=False)


def _squares(items: AnyArray, axis: int) -> AnyArray:
    """Sums of squares; nan where they are out of range, and have to be scaled."""
    sums: AnyArray = np.einsum("ij,ij->j" if axis == 0 else "ij,ij->i", items, items)
    limits = np.finfo(items.dtype)
    # Below, squares may have lost bits to underflow.
    low = limits.tiny / limits.eps**2 * max(1, items.shape[axis])
    if not ((sums >= low) & (sums < np.inf)).all():
        sums[sums == np.inf] = np.nan
        few = sums < low
        sums[few & items.any(axis)] = np.nan
    return sums


def _scaled_root(items: AnyArray, axis: int) -> AnyArray:
    """Roots of sums of squares of moduli, scaled by the largest."""
    largest = items.max(axis, keepdims=True)
    scale = np.where((largest > 0) & (largest < np.inf), largest, 1)
    with np.errstate(under="ignore"):
        sums = np.square(items / scale).sum(axis)
    return np.asarray(np.sqrt(sums) * scale.reshape(sums.shape))


def _fold(total: AnyArray, more: AnyArray) -> None:
    """Join norms of parts; hypot neither overflows nor underflows, but prefers inf to nan."""
    missing = np.isnan(total) | np.isnan(more)
    np.hypot(total, more, out=total)
    total[missing] = np.nan

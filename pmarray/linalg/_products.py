"""Products of matrices, tile by tile."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from pmarray._array.stored import StoredArray
from pmarray.errors import BudgetError, LayoutError
from pmarray.linalg._blocks import (
    AnyArray,
    DType,
    Matrix,
    all_held,
    allowed_memory,
    as_output,
    as_vector,
    new_result,
    panels,
    tiles,
    walk,
)
from pmarray.linalg._plans import RUN_BYTES, cut, pair_tiles, plan_panel, plan_tile

__all__ = ["gram", "matmul"]

_AHEAD_FROM_BYTES = 4 << 20
"""With less to work in, tiles would be short if there were room for the next one, too."""
_LONG_RUN_BYTES = 1 << 20
"""Runs of a column that are best for a device. A tile has fewer columns then, and what each adds to
the result is as long: with several columns of the result that takes longer than reading."""
_SHORT_RUN_BYTES = 64 << 10
"""Runs of what is looked at in memory: what each tile adds to the result takes longer than all
else."""
_SEVERAL = 4
"""With two columns of the result, or three, a BLAS is so much faster with long runs that adding
takes less."""
_FEW = 16
"""With so many columns of the result it still takes less than to read from a device."""
Operand = StoredArray | ArrayLike
_Out = AnyArray | StoredArray


def matmul(a: Operand, b: Operand, out: Any = None, *, memory: int | str | None = None) -> Any:
    """The product of two matrices of which one or both are on a medium.

    Results agree with `numpy.matmul` on the same arrays up to the order of summation, and are
    the same for integers. float16 is summed in float32.

    Parameters
    ----------
    a, b : PMArray or array_like
        Shapes (m, k) and (k, n), either layout; a vector of shape (k,) is a row on the left and a
        column on the right. At least one of `a`, `b` and `out` is a `PMArray`.
    out : numpy.ndarray or PMArray, optional
        Takes the result; not an operand. Into a `PMArray` a block of rows is written at a time,
        or of columns where `b` alone is on a medium.
    memory
        Bytes to work in, beside operands and results that are in memory;
        `pmarray.config.work_memory` unless told. A tile that is read through a mapping counts as
        held.

    Returns
    -------
    numpy.ndarray or PMArray
        Shape (m, n), less the axes of vectors; dtype as `numpy.matmul` has it. `out` if given. A
        scalar for two vectors.

    Raises
    ------
    LayoutError
        The shapes do not match, that of `out` is not the result's, or an operand has three axes.
    BudgetError
        The result does not fit into memory, or `memory` is too little for one row of it.

    Notes
    -----
    2 m k n flops. Passes over the data:

    - One operand on a medium: it is read once. Where the summed axis has to be cut, and the
      result is not an array in memory of the dtype that is summed in, a block of its rows is kept
      within `memory`.
    - Both, and the smaller takes at most half of `memory`: each is read once.
    - Both, and the result is an array in memory: each is read once if 16 columns of `a` and
      rows of `b` fit.
    - Both otherwise: the result is made in tiles of p x q items, with p q items in a third of
      `memory`; `a` is read ceil(n / q) times and `b` ceil(m / p) times, the fewest there can be up
      to a constant (Hong and Kung 1981).

    Examples
    --------
    >>> import numpy as np, pmarray
    >>> a = pmarray.open("dram:", shape=(4, 2), layout="col")
    >>> a[...] = [[1, 0], [0, 1], [1, 1], [2, 1]]
    >>> pmarray.linalg.matmul(a, [10, 1])
    array([10.,  1., 11., 21.])
    >>> pmarray.linalg.matmul(np.ones((1, 4)), a)
    array([[4., 3.]])
    """
    nbytes = allowed_memory(memory)
    left = Matrix.of(a, transposed=np.ndim(a) == 1, what="first operand")
    right = Matrix.of(b, what="second operand")
    if left.shape[1] != right.shape[0]:
        raise LayoutError(
            f"cannot multiply shapes {np.shape(left.array)} and {np.shape(right.array)}: "
            f"{left.shape[1]} columns and {right.shape[0]} rows"
        )
    if not (left.stored or right.stored or isinstance(out, StoredArray)):
        raise TypeError("neither operand nor out is a PMArray: use numpy.matmul")
    dtype = _product_dtype(left.dtype, right.dtype)
    shape = left.shape[: left.array.ndim - 1] + right.shape[1 : right.array.ndim]
    if out is None:
        result: _Out = new_result(shape, dtype, "pass a PMArray as out=")
    else:
        as_output(out, shape, dtype, (left.array, right.array))
        if isinstance(out, StoredArray) and not shape:
            raise LayoutError("the product of two vectors is a scalar: leave out= out")
        result = out
    target: Any = result
    if isinstance(result, np.ndarray):
        target = result.reshape(left.shape[0], right.shape[1]) if result.ndim < 2 else result
    sink = Matrix(target, transposed=target.ndim == 1 and left.array.ndim == 1)
    with all_held((left, right)):
        _multiply(left, right, sink, dtype, nbytes)
    return result[()] if isinstance(result, np.ndarray) and not result.ndim else result


def gram(
    a: Operand,
    *,
    side: Literal["columns", "rows"] = "columns",
    center: ArrayLike | None = None,
    out: Any = None,
    memory: int | str | None = None,
) -> Any:
    """All inner products of the columns of a matrix, or of its rows; one pass.

    Parameters
    ----------
    a : PMArray or array_like
        Shape (m, n), either layout.
    side
        "columns" gives the conjugate transpose of `a` times `a`, shape (n, n); "rows" gives `a`
        times its conjugate transpose, shape (m, m).
    center
        Taken from each row before, shape (n,), for "columns"; from each column, shape (m,), for
        "rows". With the mean, the result is the scatter matrix, without the cancellation of a
        difference of two large ones.
    out : numpy.ndarray or PMArray, optional
        Takes the result. It is summed in memory all the same.
    memory
        As in `matmul`, beside the result.

    Returns
    -------
    numpy.ndarray or PMArray
        Exactly symmetric, or Hermitian. Dtype as that of `matmul`; float16 is summed in float32.

    Raises
    ------
    LayoutError
        `a` has not two axes, or `out` or `center` do not fit.
    BudgetError
        The result does not fit into memory.

    Notes
    -----
    About m n² flops, half of those of a product. The matrix is walked in panels of all columns, so
    that runs of a column-major one are of about `memory` / n bytes.

    Examples
    --------
    >>> import pmarray
    >>> a = pmarray.open("dram:", shape=(3, 2), layout="col")
    >>> a[...] = [[1, 0], [1, 1], [1, 2]]
    >>> pmarray.linalg.gram(a)
    array([[3., 3.],
           [3., 5.]])
    >>> pmarray.linalg.gram(a, center=[1, 1])[1, 1]
    np.float64(2.0)
    """
    if side not in ("columns", "rows"):
        raise ValueError(f"side={side!r}: use 'columns' or 'rows'")
    nbytes = allowed_memory(memory)
    matrix = _two_axes(a)
    if side == "rows":
        matrix = matrix.T
    dtype = _product_dtype(matrix.dtype, matrix.dtype)
    if center is not None:
        dtype = np.result_type(dtype, np.asarray(center).dtype)
    working = _working_dtype(dtype)
    n = matrix.shape[1]
    if out is not None:
        as_output(out, (n, n), dtype, (matrix.array,))
    taken = None if center is None else as_vector(center, n, working, "center")
    sums = gram_of(matrix, working, nbytes, center=taken)
    if side == "rows" and dtype.kind == "c":
        np.conjugate(sums, out=sums)
    if out is None:
        return sums.astype(dtype, copy=False)
    out[...] = sums
    return out


def gram_of(
    matrix: Matrix, dtype: DType, nbytes: int, *, center: AnyArray | None = None
) -> AnyArray:
    """Sum the inner products of all columns in `dtype`."""
    rows, n = matrix.shape
    sums = new_result((n, n), dtype, "take fewer columns at a time with matmul")
    sums[...] = 0
    if 0 in (rows, n):
        return sums
    size = plan_gram(rows, n, matrix.dtype, dtype, nbytes, copied=center is not None)
    wide = min(n, max(1, nbytes // 4 // (n * dtype.itemsize)))
    sum_of = np.empty((n, wide), dtype)
    for tile, sight in panels(matrix, size, dtype):
        panel = sight.block
        if center is not None:
            panel = panel - center
        other = panel.conj().T if dtype.kind == "c" else panel.T
        for part in cut(n, wide):
            # Above the diagonal only; with one part NumPy sees a matrix and its transpose.
            product = sum_of[: part.stop, : part.stop - part.start]
            np.matmul(other[: part.stop], panel[:, part], out=product)
            sums[: part.stop, part] += product
        del panel, other, tile, sight
    for i in range(n):
        sums[i + 1 :, i] = sums[i, i + 1 :].conj()
        if dtype.kind == "c":
            sums[i, i] = sums[i, i].real
    return sums


def plan_gram(rows: int, n: int, stored: DType, dtype: DType, nbytes: int, *, copied: bool) -> int:
    """Rows of a panel of all columns."""
    item = stored.itemsize + dtype.itemsize * ((stored != dtype) + copied + (dtype.kind == "c"))
    return plan_panel(
        rows,
        unit=n * item,
        fixed=0,
        nbytes=nbytes * 3 // 4,
        least=1,
        what=f"a panel of {n} columns",
    )


def _two_axes(a: Operand) -> Matrix:
    matrix = Matrix.of(a)
    if matrix.array.ndim != 2:
        raise LayoutError(f"an array of shape {matrix.array.shape} is no matrix")
    return matrix


def _product_dtype(a: DType, b: DType) -> DType:
    found: DType = np.matmul(np.empty((0, 0), a), np.empty((0, 0), b)).dtype
    return found


def _working_dtype(dtype: DType) -> DType:
    return np.dtype(np.float32) if dtype == np.float16 else dtype


def _multiply(left: Matrix, right: Matrix, out: Matrix, dtype: DType, nbytes: int) -> None:
    """Choose the way by what fits."""
    working = _working_dtype(dtype)
    if 0 in out.shape:
        return
    if 0 in left.shape:
        out.array[...] = 0
        return
    if left.stored and right.stored:
        if min(_size(left), _size(right)) * working.itemsize > nbytes // 2:
            _multiply_pair(left, right, out, working, nbytes)
            return
        nbytes //= 2
        if _size(left) < _size(right):
            left = Matrix(left.whole(working, nbytes), transposed=False)
        else:
            right = Matrix(right.whole(working, nbytes), transposed=False)
    if right.stored and not left.stored:
        left, right, out = right.T, left.T, out.T
    _multiply_streamed(left, right, out, working, nbytes)


def _size(matrix: Matrix) -> int:
    return matrix.shape[0] * matrix.shape[1]


def _multiply_streamed(
    left: Matrix, right: Matrix, out: Matrix, working: DType, nbytes: int
) -> None:
    """Multiply by a matrix in memory; the left one is read once."""
    direct = not out.stored and out.dtype == working
    inner, n = right.shape
    fast = left.fast
    # Bytes for the slice of the right operand that has to be converted, by items summed over.
    converted = n * working.itemsize if right.dtype != working else 0
    item = left.dtype.itemsize + (working.itemsize if left.dtype != working else 0)

    at_hand = left.is_at_hand
    # A tile that is looked at need leave no room for the next one. It adds to the result at once
    # what is a column, or short; else it should be as short as one that is read.
    is_large = at_hand and (n == 1 or fast == 1)
    if at_hand and (n == 1 or n >= _SEVERAL):
        run_bytes = _SHORT_RUN_BYTES
    else:
        run_bytes = max(RUN_BYTES, _LONG_RUN_BYTES * (1 if at_hand else min(n, _FEW)) // n)

    def plan(sums: int) -> tuple[int, int]:
        if left.stored and not is_large and nbytes >= _AHEAD_FROM_BYTES:
            with suppress(BudgetError):  # so wide that a quarter has no room for one row
                return plan_within(sums, nbytes // 4)
        return plan_within(sums, nbytes * 3 // 4)

    def plan_within(sums: int, nbytes: int) -> tuple[int, int]:
        per_row, per_inner = sums * n * working.itemsize, converted
        return plan_tile(
            left.shape[fast],
            left.shape[1 - fast],
            stored=left.dtype.itemsize,
            item=item,
            nbytes=max(1, nbytes),
            along="lines" if fast == 0 else "fast",
            per_fast=per_row if fast == 0 else per_inner,
            per_line=per_row if fast == 1 else per_inner,
            run_bytes=run_bytes if direct else RUN_BYTES,
        )

    size = plan(0)
    split = (size[1] if fast == 0 else size[0]) < inner
    if split and not direct:
        size = plan(1)
    rows = size[0] if fast == 0 else size[1]
    # What is added to the sums, or written, is made in parts of a quarter of the memory.
    wide = min(n, max(1, nbytes // 4 // (rows * working.itemsize)))
    whole_sums = None
    for (row, column), sight in walk(left, tiles(left, size, along=1), working, nbytes // 2):
        factor = np.asarray(right.array)
        factor = factor.T if right.transposed else factor
        factor = factor.reshape(inner, n)[column].astype(working, copy=False)
        height = row.stop - row.start
        first, last = column.start == 0, column.stop == inner
        if direct and first:
            for block in sight.looks():
                np.matmul(block, factor, out=_place(out)[row])
            continue
        if first and not last:
            if whole_sums is None:
                whole_sums = np.zeros((rows, n), working)
            whole_sums[...] = 0
        for part in cut(n, wide):
            for block in sight.looks():
                product = np.matmul(block, factor[:, part])
            if direct:
                _place(out)[row, part] += product
                continue
            if whole_sums is not None:
                whole_sums[:height, part] += product
                product = whole_sums[:height, part]
            if last:
                out.write((row, part), product)


def _place(out: Matrix) -> AnyArray:
    """The memory of a result in memory."""
    assert isinstance(out.array, np.ndarray)
    return out.array.T if out.transposed else out.array


def _multiply_pair(left: Matrix, right: Matrix, out: Matrix, working: DType, nbytes: int) -> None:
    """Multiply two that are both on a medium and do not fit."""
    direct = not out.stored and out.dtype == working
    item = max(working.itemsize, left.dtype.itemsize, right.dtype.itemsize)
    item += working.itemsize if working not in (left.dtype, right.dtype) else 0
    high, inside, wide = pair_tiles(
        left.shape[0], left.shape[1], right.shape[1], item=item, nbytes=nbytes, direct=direct
    )
    part_bytes = max(1, nbytes // 4)
    for row in cut(left.shape[0], high):
        for column in cut(right.shape[1], wide):
            inner = cut(left.shape[1], inside)
            shape = (row.stop - row.start, column.stop - column.start)
            sums = _place(out)[row, column] if direct else np.zeros(shape, working)
            sums[...] = 0
            slim = max(1, part_bytes // (shape[0] * working.itemsize))
            for (_, sight), (_, other) in zip(
                walk(left, [(row, one) for one in inner], working),
                walk(right, [(one, column) for one in inner], working),
                strict=True,
            ):
                block, factor = sight.block, other.block
                for part in cut(shape[1], slim):
                    sums[:, part] += np.matmul(block, factor[:, part])
            if not direct:
                out.write((row, column), sums)

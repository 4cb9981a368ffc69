"""QR of tall matrices, panel by panel."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from pmarray._array.stored import StoredArray
from pmarray.linalg._blocks import (
    AnyArray,
    DType,
    Matrix,
    allowed_memory,
    as_output,
    new_result,
    real_of,
    walk,
)
from pmarray.linalg._plans import cut, plan_panel
from pmarray.linalg._products import Operand, _two_axes, matmul

__all__ = ["QRResult", "factor_dtype", "qr", "triangle", "write_q"]

_PANELS = 6
"""Panels in memory at once: two as they are read, three in LAPACK's hands, one for products."""


class QRResult(NamedTuple):
    """What `qr` returns."""

    Q: Any
    """Orthonormal columns, shape (m, k), k = min(m, n); None with ``mode="r"``."""
    R: AnyArray
    """Upper triangular, real diagonal not negative, shape (k, n)."""


def qr(
    a: Operand,
    mode: Literal["reduced", "r"] = "reduced",
    *,
    out_q: Any = None,
    memory: int | str | None = None,
) -> QRResult:
    """Factor a matrix into orthonormal columns and a triangle.

    The diagonal of R is real and not negative, which makes the factors of a matrix of full rank
    unique: they do not depend on `memory`, but for rounding.

    Parameters
    ----------
    a : PMArray or array_like
        Shape (m, n), either layout; meant for m much larger than n.
    mode
        "reduced" for both factors, "r" for R alone.
    out_q : numpy.ndarray or PMArray, optional
        Takes Q, shape (m, k) with k = min(m, n), dtype as R. Reflectors are kept in it meanwhile.
        It may be `a` itself, which is then overwritten.
    memory
        As in `matmul`, beside Q and R.

    Returns
    -------
    QRResult
        ``(Q, R)``. float32 and complex64 stay; other dtypes are factored in float64 or complex128.

    Raises
    ------
    LayoutError
        `a` has not two axes, or `out_q` does not fit.
    BudgetError
        `memory` has no room for twelve matrices of n x n, or Q not in memory; the message says
        how much is needed.

    Notes
    -----
    Sequential TSQR (Demmel, Grigori, Hoemmen, Langou 2012, "Communication-optimal parallel and
    sequential QR and LU factorizations", section 4): the R so far on top of the next panel of rows
    is factored by Householder reflections, so that R and Q are as accurate as LAPACK's: Q is
    orthonormal to rounding for any matrix, of deficient rank too. The part of the reflectors below
    R takes the place of the panel in `out_q`; their triangular factors are made again from it, so
    that nothing else grows with m.

    `a` is read once; Q is written twice and read once. 2 m n² flops for R, about 4 m n² more for
    Q. If m < n, the first m columns are factored, and the others read in a second pass over `a`.

    Examples
    --------
    >>> import numpy as np, pmarray
    >>> a = pmarray.open("dram:", shape=(3, 2), layout="col")
    >>> a[...] = [[3, 1], [4, 2], [0, 2]]
    >>> q, r = pmarray.linalg.qr(a)
    >>> np.round(r, 12)
    array([[5. , 2.2 ],
           [0. , 2.03960781]])
    >>> np.abs(q.T @ q - np.eye(2)).max() < 1e-15
    np.True_
    """
    if mode not in ("reduced", "r"):
        raise ValueError(f"mode={mode!r}: use 'reduced' or 'r'")
    nbytes = allowed_memory(memory)
    matrix = _two_axes(a)
    (m, n), dtype = matrix.shape, factor_dtype(matrix.dtype)
    target = None
    if mode == "reduced":
        target = _target(out_q, (m, min(m, n)), dtype, "out_q")
    if m < n:
        return _wide(matrix, target, dtype, nbytes)
    work = None if target is None else _Work(target, dtype, nbytes)
    r = triangle(matrix, dtype, nbytes, work)
    signs = _signs(r)
    r = np.triu(r * signs.conj()[:, None])  # zeros below, and none of them negative
    if work is None:
        return QRResult(None, r)
    write_q(work, np.diag(signs))
    return QRResult(work.target.array, r)


def factor_dtype(dtype: DType) -> DType:
    """What LAPACK factors a matrix of this dtype in.

    >>> factor_dtype(np.dtype("int32")), factor_dtype(np.dtype("complex64"))
    (dtype('float64'), dtype('complex64'))
    """
    if dtype.char in "fFdD":
        return dtype.newbyteorder("=")
    return np.dtype(np.complex128 if dtype.kind == "c" else np.float64)


class _Work:
    """Reflectors of the panels, kept where Q will be."""

    def __init__(self, target: Matrix, dtype: DType, nbytes: int) -> None:
        self.target = target
        self.dtype = dtype
        self.panels = cut(target.shape[0], plan_qr(*target.shape, dtype, nbytes))
        self.factors: list[AnyArray] = []
        """The scalar of each reflector, one vector a panel."""

    def read(self, rows: slice) -> AnyArray:
        """The reflectors below R."""
        n = self.target.shape[1]
        (found,) = walk(self.target, [(rows, slice(0, n))], self.dtype)
        return found[1].block


def plan_qr(m: int, n: int, dtype: DType, nbytes: int) -> int:
    """Rows of a panel."""
    if not n:
        return max(1, m)
    unit = _PANELS * n * dtype.itemsize
    # With fewer rows than R has, most of the work would be on R.
    return plan_panel(
        m, unit=unit, fixed=n * unit, nbytes=nbytes, least=n, what=f"QR of {n} columns"
    )


def triangle(matrix: Matrix, dtype: DType, nbytes: int, work: _Work | None = None) -> AnyArray:
    """R, with any signs; the reflectors go to `work`."""
    m, n = matrix.shape
    r = np.zeros((n, n), dtype)
    if not n:
        return r
    panels = work.panels if work else cut(m, plan_qr(m, n, dtype, nbytes))
    for (rows, _), sight in walk(matrix, [(rows, slice(0, n)) for rows in panels]):
        panel = sight.block
        # R above the panel, in one column-major array, which LAPACK gets as it is. Nothing is
        # above the first: zeros would take a share of Q where columns depend on one another.
        above = n if rows.start else 0
        stack = np.empty((above + len(panel), n), dtype, order="F")
        stack[:above], stack[above:] = r[:above], panel
        if work is None:
            r = np.asarray(np.linalg.qr(stack, mode="r"))
            continue
        # Transposed, as LAPACK sees it. R keeps its zeros, so that a reflector of a later panel
        # has a one in its own row of R, and else only items below R.
        raw, factors = np.linalg.qr(stack, mode="raw")
        r = np.triu(raw.T[:n])
        reflectors = raw.T[above:] if above else np.tril(raw.T, -1) + np.eye(len(panel), n)
        work.target.write((rows, slice(0, n)), reflectors.astype(dtype, copy=False))
        work.factors.append(factors)
    return r


def write_q(work: _Work, start: AnyArray) -> None:
    """Put Q times `start`, of shape (n, n), in the place of the reflectors.

    A panel's reflections are I - V T V*, where the stored part of V has the identity above it,
    but for the first panel, of which V is stored as it is.
    """
    top = np.ascontiguousarray(start, work.dtype)
    n = work.target.shape[1]
    if not n:
        return
    for rows, factors in zip(reversed(work.panels), reversed(work.factors), strict=True):
        stored = work.read(rows)
        inner = _block_factor(stored, factors)
        inner = inner @ (top if rows.start else stored[:n].conj().T @ top)
        product = -(stored @ inner)
        if not rows.start:
            product[:n] += top
        work.target.write((rows, slice(0, n)), product)
        top = top - inner


def _block_factor(stored: AnyArray, factors: AnyArray) -> AnyArray:
    """The triangular T of the reflectors I - factor v v* (Schreiber and Van Loan 1989)."""
    n = len(factors)
    products = stored.conj().T @ stored  # an identity above would add to the diagonal alone
    result = np.zeros((n, n), stored.dtype)
    for j, factor in enumerate(factors):
        result[:j, j] = -factor * (result[:j, :j] @ products[:j, j])
        result[j, j] = factor
    return result


def _wide(matrix: Matrix, target: Matrix | None, dtype: DType, nbytes: int) -> QRResult:
    """More columns than rows: the first ones, square, decide."""
    m, n = matrix.shape
    plan_qr(m, m, dtype, nbytes)  # raises if there is no room
    square = np.empty((m, m), dtype)
    order = [(slice(0, m), part) for part in cut(m, max(1, m // 4))]
    for (_, part), sight in walk(matrix, order):
        square[:, part] = sight.block
    q, first = np.linalg.qr(square)
    signs = _signs(first)
    q *= signs
    r = new_result((m, n), dtype, "factor fewer columns")
    if isinstance(matrix.array, StoredArray):
        matmul(q.conj().T, matrix.array, out=r, memory=nbytes)
    else:
        r[...] = q.conj().T @ np.asarray(matrix.array)
    r[:, :m] = np.triu(first * signs.conj()[:, None])
    if target is None:
        return QRResult(None, r)
    target.array[...] = q
    return QRResult(target.array, r)


def _signs(r: AnyArray) -> AnyArray:
    """What turns the diagonal real and not negative: its phases."""
    diagonal = np.diagonal(r)
    size = np.abs(diagonal)
    return np.where(size > 0, diagonal / np.where(size > 0, size, 1), 1).astype(r.dtype)


def _target(out: Any, shape: tuple[int, int], dtype: DType, what: str) -> Matrix:
    if out is None:
        out = new_result(shape, dtype, f"pass a PMArray as {what}=")
    else:
        as_output(out, shape, dtype, ())
    return Matrix(out, transposed=False)


def modulus_dtype(dtype: DType) -> DType:
    """The dtype of singular values."""
    return real_of(dtype) if dtype.kind == "c" else dtype

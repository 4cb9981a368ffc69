"""Singular values and vectors, by a few passes over the matrix."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from pmarray._sizes import format_bytes
from pmarray.errors import BudgetError
from pmarray.linalg._blocks import (
    AnyArray,
    DType,
    Matrix,
    allowed_memory,
    as_output,
    new_result,
    panels,
)
from pmarray.linalg._factorizations import (
    _Work,
    factor_dtype,
    modulus_dtype,
    triangle,
    write_q,
)
from pmarray.linalg._plans import plan_panel
from pmarray.linalg._products import Operand, _two_axes, gram_of

__all__ = ["SVDResult", "svd"]

_EPS = float(np.finfo(np.float64).eps)

Method = Literal["auto", "qr", "gram", "randomized"]


class SVDResult(NamedTuple):
    """What `svd` returns: the matrix is ``U @ np.diag(S) @ Vh``."""

    U: Any
    """Left singular vectors, shape (m, k)."""
    S: AnyArray
    """Singular values in descending order, shape (k,)."""
    Vh: AnyArray
    """Right singular vectors, conjugate transposed, shape (k, n)."""


def svd(
    a: Operand,
    rank: int | None = None,
    *,
    method: Method = "auto",
    n_oversamples: int = 10,
    n_power_iterations: int = 2,
    generator: np.random.Generator | int | None = None,
    out_u: Any = None,
    memory: int | str | None = None,
) -> SVDResult:
    """The singular value decomposition of a matrix, or the leading part of it.

    Parameters
    ----------
    a : PMArray or array_like
        Shape (m, n), either layout. The shorter side, s = min(m, n), decides what is held.
    rank
        Singular values wanted, k; all s unless told.
    method
        "qr": R of `qr`, and its singular values. "gram": the eigenvalues of the Gram matrix.
        "randomized": subspace iteration from random vectors. "auto" takes "randomized" where
        k + `n_oversamples` is less than s / 2, else "qr".
    n_oversamples, n_power_iterations
        Of "randomized": vectors held beside the k wanted, and iterations after the first.
    generator
        Of the random vectors; an int seeds one.
    out_u : numpy.ndarray or PMArray, optional
        Takes U, shape (m, k). Into a `PMArray` a panel of rows is written at a time.
    memory
        As in `matmul`, beside U, S and Vh.

    Returns
    -------
    SVDResult
        ``(U, S, Vh)``; float32 and complex64 stay, others come as float64 or complex128. All but
        the QR factorization is computed in float64 or complex128.

    Raises
    ------
    LayoutError
        `a` has not two axes, or `out_u` does not fit.
    BudgetError
        The s x s matrices of "qr" and "gram", the s x (k + `n_oversamples`) ones of "randomized",
        or a result, do not fit into memory; the message says how much is needed.

    Notes
    -----
    With s1 the largest singular value and e the rounding error of the dtype (float64 where the
    method says so), absolute errors are

    - "qr": e s1; one pass, and one for U; 2 l s² flops for the long side l, and 2 l s k for U.
    - "gram": e s1² / S, at most sqrt(s e) s1; one pass, and one for U; l s² flops, and 2 l s k
      for U.
    - "randomized": see below; 2 + q passes, and one for U; 4 l s (k + p) flops a pass.

    With ``rank=None`` and "qr", the long factor is Q times the small one, and orthonormal to
    rounding, whatever the matrix; the matrix is read once, and the place of the factor holds
    reflectors meanwhile. In all other cases the long factor is `a` times the short one, divided by
    S: its columns are orthonormal to e s1 / S, and zero where S is less than the error of the
    method, because what would stand there is noise.

    "randomized" is the subspace iteration of Halko, Martinsson and Tropp (2011), algorithm 4.4,
    on the side of the short factor: one pass multiplies by the matrix and its transpose at once,
    panel by panel, so that nothing of the long side is held. With q = `n_power_iterations` and
    p = `n_oversamples`, what the k + p vectors miss has a spectral norm of at most
    (1 + 9 sqrt(k + p) sqrt(s)) to the power 1 / (2 q + 2), times the first singular value left
    out, but for a probability of 3 p^-p (their equation 1.9 and theorem 9.2); cutting to k adds
    at most that singular value. Values below sqrt(e) s1 drown.

    Examples
    --------
    >>> import numpy as np, pmarray
    >>> a = pmarray.open("dram:", shape=(4, 2), layout="col")
    >>> a[...] = [[3, 0], [0, 2], [0, 0], [0, 0]]
    >>> u, s, vh = pmarray.linalg.svd(a)
    >>> np.round(s, 12)
    array([3., 2.])
    >>> np.abs(u @ np.diag(s) @ vh - a[...]).max() < 1e-15
    np.True_
    >>> pmarray.linalg.svd(a, 1, method="randomized", generator=0).S.round(12)
    array([3.])
    """
    nbytes = allowed_memory(memory)
    matrix = _two_axes(a)
    m, n = matrix.shape
    short = min(m, n)
    k = short if rank is None else rank
    if not 0 <= k <= short:
        raise ValueError(f"rank={rank} is not between 0 and {short}")
    if n_oversamples < 0 or n_power_iterations < 0:
        raise ValueError("n_oversamples and n_power_iterations must not be negative")
    if method == "auto":
        method = "randomized" if rank is not None and 2 * (k + n_oversamples) < short else "qr"
    dtype = factor_dtype(matrix.dtype)
    if out_u is not None:
        as_output(out_u, (m, k), dtype, (matrix.array,))
    if m >= n:
        long = new_result((m, k), dtype, "pass a PMArray as out_u=") if out_u is None else out_u
        s, vectors = _tall(
            matrix, k, method, Matrix(long, transposed=False), dtype, nbytes,
            n_oversamples, n_power_iterations, generator,
        )  # fmt: skip
        return SVDResult(long, s, vectors.conj().T.astype(dtype))
    # The transpose has the same singular values, and the singular vectors change places.
    held = new_result((k, n), dtype, "factor the transpose, which takes out_u=")
    s, vectors = _tall(
        matrix.T, k, method, Matrix(held, transposed=True), dtype, nbytes,
        n_oversamples, n_power_iterations, generator,
    )  # fmt: skip
    small = vectors.conj().astype(dtype)
    if out_u is not None:
        out_u[...] = small
    return SVDResult(small if out_u is None else out_u, s, held)


def _tall(
    matrix: Matrix,
    k: int,
    method: Method,
    long: Matrix,
    dtype: DType,
    nbytes: int,
    n_oversamples: int,
    n_power_iterations: int,
    generator: np.random.Generator | int | None,
) -> tuple[AnyArray, AnyArray]:
    """Fill `long` with left singular vectors; return values, and right vectors as columns."""
    n = matrix.shape[1]
    wide = np.dtype(np.complex128 if dtype.kind == "c" else np.float64)
    values = modulus_dtype(dtype)
    if not k or not n:
        return np.zeros(k, values), np.zeros((n, k), dtype)
    if method == "qr":
        if k == n:
            return _by_whole_qr(matrix, long, dtype, nbytes)
        r = triangle(matrix, dtype, nbytes)
        _, s, vh = np.linalg.svd(r.astype(wide, copy=False))
        vectors = vh.conj().T
        least = float(np.finfo(values).eps) * n
    elif method == "gram":
        s, vectors = _by_gram(matrix, wide, nbytes)
        least = float(np.sqrt(_EPS * n))
    elif method == "randomized":
        count = min(n, k + n_oversamples)
        s, vectors = _by_iteration(matrix, count, n_power_iterations, generator, wide, nbytes)
        least = _EPS * n
    else:
        raise ValueError(f"method={method!r}: use 'auto', 'qr', 'gram' or 'randomized'")
    s, vectors = s[:k], np.ascontiguousarray(vectors[:, :k])
    _divide_into(matrix, vectors, s, least, long, wide, nbytes)
    return s.astype(values), vectors


def _by_whole_qr(
    matrix: Matrix, long: Matrix, dtype: DType, nbytes: int
) -> tuple[AnyArray, AnyArray]:
    work = _Work(long, dtype, nbytes)
    u, s, vh = np.linalg.svd(triangle(matrix, dtype, nbytes, work))
    write_q(work, u)
    return s, vh.conj().T


def _by_gram(matrix: Matrix, dtype: DType, nbytes: int) -> tuple[AnyArray, AnyArray]:
    n = matrix.shape[1]
    need = 3 * n * n * dtype.itemsize
    if need > nbytes:
        raise BudgetError(
            f"the Gram matrix of {n} columns and its eigenvectors need {format_bytes(need)}, and "
            f"{format_bytes(nbytes)} are allowed: raise memory=, or use method='randomized'"
        )
    squares, vectors = np.linalg.eigh(gram_of(matrix, dtype, nbytes))
    return np.sqrt(np.maximum(squares[::-1], 0)), vectors[:, ::-1]


def _by_iteration(
    matrix: Matrix,
    count: int,
    n_power_iterations: int,
    generator: np.random.Generator | int | None,
    dtype: DType,
    nbytes: int,
) -> tuple[AnyArray, AnyArray]:
    """Subspace iteration with the Gram matrix, which is never made."""
    n = matrix.shape[1]
    need = 4 * n * count * dtype.itemsize
    if need > nbytes // 2:
        raise BudgetError(
            f"{count} vectors of {n} items and their products need {format_bytes(2 * need)}, and "
            f"{format_bytes(nbytes)} are allowed: raise memory=, or ask for a lower rank"
        )
    nbytes //= 2
    source = np.random.default_rng(generator)
    basis = source.standard_normal((n, count))
    if dtype.kind == "c":
        basis = basis + 1j * source.standard_normal((n, count))
    basis = np.linalg.qr(basis.astype(dtype))[0]
    for _ in range(n_power_iterations + 1):
        sums = np.zeros((n, count), dtype)
        for _, sight in _panels(matrix, count, dtype, nbytes):
            panel = sight.block
            # Conjugating the small factors, not the panel, twice.
            sums += (panel.T @ (panel @ basis).conj()).conj()
        basis = np.linalg.qr(sums)[0]
    # R of the matrix times the basis, without holding that.
    r = np.zeros((count, count), dtype)
    for _, sight in _panels(matrix, count, dtype, nbytes):
        r = np.asarray(np.linalg.qr(np.concatenate([r, sight.block @ basis]), mode="r"))
    _, s, vh = np.linalg.svd(r)
    return s, basis @ vh.conj().T


def _divide_into(
    matrix: Matrix,
    vectors: AnyArray,
    s: AnyArray,
    least: float,
    long: Matrix,
    dtype: DType,
    nbytes: int,
) -> None:
    """Write the matrix times right singular vectors, over the singular values."""
    kept = s > least * s[0]
    scaled = vectors * np.where(kept, 1 / np.where(kept, s, 1), 0)
    for (rows, _), sight in _panels(matrix, len(s), dtype, nbytes):
        long.write((rows, slice(0, len(s))), sight.block @ scaled)


def _panels(matrix: Matrix, count: int, dtype: DType, nbytes: int) -> Any:
    m, n = matrix.shape
    item = matrix.dtype.itemsize + dtype.itemsize * (matrix.dtype != dtype)
    rows = plan_panel(
        m,
        unit=n * item + 4 * count * dtype.itemsize,
        fixed=4 * count * count * dtype.itemsize,
        nbytes=nbytes,
        least=1,
        what=f"a panel of {n} columns",
    )
    return panels(matrix, rows, dtype)

"""Products of arrays, and norms."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from pmarray._array.overlap import apart_from_all_of, is_stored
from pmarray._config import config
from pmarray._numpy.functions.contractions import contract
from pmarray._numpy.functions.registry import streams, unstreamed
from pmarray._numpy.functions.subscripts import Subscripts, read
from pmarray._numpy.operands import has_numbers
from pmarray.errors import LayoutError
from pmarray.linalg import matmul, norm


def _array(value: Any) -> Any:
    return value if is_stored(value) else np.asarray(value)


def _product(operands: list[Any], subscripts: Subscripts, out: Any = None) -> Any:
    """Contract by `pmarray.linalg.matmul` where that is what it comes to."""
    operands = [apart_from_all_of(out, operand) for operand in operands]
    as_matrices = _matrices(operands, subscripts) if len(operands) == 2 else None
    if as_matrices is not None and any(map(is_stored, (*operands, out))):
        return matmul(*as_matrices, out=out)
    return contract(operands, subscripts, out)


def _matrices(operands: list[Any], subscripts: Subscripts) -> tuple[Any, Any] | None:
    """Transpose the operands so that their matrix product is the result, if it is one."""
    if max(operand.ndim for operand in operands) > 2 or not subscripts.output:
        return None
    left, right = zip(operands, subscripts.inputs, strict=True)
    output = subscripts.output
    shared = set(left[1]) & set(right[1])
    if len(shared) != 1 or shared & set(output) or set(output) ^ shared != {*left[1], *right[1]}:
        return None
    if output[0] not in left[1]:
        left, right = right, left
    (inner,) = shared
    first = left[0] if left[1][-1] == inner else left[0].T
    second = right[0] if right[1][0] == inner else right[0].T
    return first, second


def _is_streamed(operands: list[Any], subscripts: Subscripts) -> bool:
    """Whether there are one or two operands, no diagonals, and no axes of 1 to be broadcast."""
    extents: dict[int, int] = {}
    return (
        len(operands) <= 2
        and subscripts.is_plain
        and all(map(has_numbers, operands))
        and all(
            extents.setdefault(label, n) == n
            for operand, term in zip(operands, subscripts.inputs, strict=True)
            for label, n in zip(term, operand.shape, strict=True)
        )
    )


@streams(np.einsum)
def _einsum(*operands: Any, out: Any = None, optimize: Any = False, **kwargs: Any) -> Any:
    args = operands
    if args and isinstance(args[0], str):
        args = (args[0], *(_array(x) for x in args[1:]))
    else:
        count = len(args) // 2 * 2
        args = tuple(_array(x) if not i % 2 and i < count else x for i, x in enumerate(args))
    subscripts, arrays = read(args)
    if kwargs or not _is_streamed(list(arrays), subscripts):
        return unstreamed(np.einsum, args, {"out": out, "optimize": optimize, **kwargs})
    return _product(list(arrays), subscripts, out)  # which plans by itself, whatever `optimize` is


@streams(np.tensordot)
def _tensordot(a: Any, b: Any, axes: Any = 2) -> Any:
    a, b = _array(a), _array(b)
    if not (has_numbers(a) and has_numbers(b)):
        return unstreamed(np.tensordot, (a, b, axes), {})
    if np.ndim(axes) == 0:
        count = int(axes)
        of_a: Any = range(a.ndim - count, a.ndim)
        of_b: Any = range(count)
    else:
        of_a, of_b = (one if np.ndim(one) else (one,) for one in axes)
    of_a, of_b = normalize_axis_tuple(of_a, a.ndim), normalize_axis_tuple(of_b, b.ndim)
    if len(of_a) != len(of_b) or any(
        a.shape[i] != b.shape[j] for i, j in zip(of_a, of_b, strict=True)
    ):
        raise ValueError(f"shape-mismatch for sum: axes {axes} of shapes {a.shape} and {b.shape}")
    left = list(range(a.ndim))
    right = list(range(a.ndim, a.ndim + b.ndim))
    for i, j in zip(of_a, of_b, strict=True):
        right[j] = left[i]
    output = [one for one in left if one not in right] + [one for one in right if one not in left]
    found = _product([a, b], Subscripts((tuple(left), tuple(right)), tuple(output)))
    return found if output else np.asarray(found)


@streams(np.linalg.tensordot)
def _linalg_tensordot(x1: Any, x2: Any, /, *, axes: Any = 2) -> Any:
    return _tensordot(x1, x2, axes)


@streams(np.inner)
def _inner(a: Any, b: Any, /) -> Any:
    a, b = _array(a), _array(b)
    if not (has_numbers(a) and has_numbers(b)):
        return unstreamed(np.inner, (a, b), {})
    if not a.ndim or not b.ndim:
        return np.multiply(a, b)
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"shapes {a.shape} and {b.shape} not aligned: their last axes differ")
    return _tensordot(a, b, (-1, -1))[()]


@streams(np.vdot)
def _vdot(a: Any, b: Any, /) -> Any:
    a, b = _array(a), _array(b)
    if a.shape != b.shape or not (has_numbers(a) and has_numbers(b)):
        return unstreamed(np.vdot, (a, b), {})
    labels = tuple(range(a.ndim))
    return contract([a, b], Subscripts((labels, labels), ()), conjugate=a.dtype.kind == "c")


@streams(np.outer)
def _outer(a: Any, b: Any, out: Any = None) -> Any:
    a, b = _flat(_array(a)), _flat(_array(b))
    return np.multiply.outer(a, b, out=out)


@streams(np.linalg.outer)
def _linalg_outer(x1: Any, x2: Any, /) -> Any:
    x1, x2 = _array(x1), _array(x2)
    if x1.ndim != 1 or x2.ndim != 1:
        raise ValueError(
            f"Input arrays must be one-dimensional, but they are {x1.ndim=} and {x2.ndim=}."
        )
    return np.multiply.outer(x1, x2)


def _flat(a: Any) -> Any:
    if not is_stored(a):
        return a.reshape(-1)
    if a.ndim == 1:
        return a
    config.check_result(a.nbytes, "np.outer flattens; use np.multiply.outer, or np.einsum")
    return a[...].reshape(-1)


@streams(np.dot)
def _dot(a: Any, b: Any, out: Any = None) -> Any:
    a, b = _array(a), _array(b)
    if not (has_numbers(a) and has_numbers(b)):
        return unstreamed(np.dot, (a, b, out), {})
    if not a.ndim or not b.ndim:
        return np.multiply(a, b, out=out)
    a, b = apart_from_all_of(out, a), apart_from_all_of(out, b)
    if not any(map(is_stored, (a, b, out))):
        return np.dot(a, b, out)
    if max(a.ndim, b.ndim) <= 2 and (out is None or a.ndim + b.ndim > 2):
        return matmul(a, b, out=out)
    along = max(0, b.ndim - 2)
    if a.shape[-1] != b.shape[along]:
        raise LayoutError(f"shapes {a.shape} and {b.shape} not aligned")
    left = tuple(range(a.ndim))
    right = [a.ndim + i for i in range(b.ndim)]
    output = (*left[:-1], *(one for i, one in enumerate(right) if i != along))
    right[along] = left[-1]
    return _product([a, b], Subscripts((left, tuple(right)), output), out)


@streams(np.linalg.norm)
def _norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    spectral = x.ndim == 2 and axis is None and ord in (2, -2, "nuc")
    if spectral or keepdims or x.ndim > 2 or (axis is not None and not np.isscalar(axis)):
        return unstreamed(np.linalg.norm, (x, ord, axis, keepdims), {})
    # Summed in double precision, and given in NumPy's dtype.
    kind = np.linalg.norm(np.ones((1,) * x.ndim, x.dtype), ord, cast(Any, axis)).dtype
    found = np.asarray(norm(x, ord, cast(Any, axis)))
    with np.errstate(over="ignore"):
        return found.astype(kind, copy=False)[()]

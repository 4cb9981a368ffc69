"""NumPy's functions over arrays that outgrow memory, `PMArray.__array_function__`.

What streams is here by name. Every other function gets the whole arrays if they may be held in
memory, and is refused otherwise.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple
from numpy.typing import NDArray

from pmarray._config import config
from pmarray._sizes import format_bytes
from pmarray._ufuncs import is_stored, make_result, part_of, reduce, walk
from pmarray.errors import BudgetError

__all__ = ["array_function"]

AnyArray = NDArray[Any]
Function = TypeVar("Function", bound=Callable[..., Any])

_STREAMED: dict[Any, Callable[..., Any]] = {}
_NO = np._NoValue


def array_function(
    function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """`PMArray.__array_function__`."""
    streamed = _STREAMED.get(function)
    if streamed is not None:
        return streamed(*args, **options)
    stored: list[Any] = []
    _replace((args, options), stored.append)
    nbytes = sum(one.nbytes for one in stored)
    name = f"{function.__module__}.{function.__name__}"
    try:
        config.check_result(nbytes, "")
    except BudgetError:
        raise BudgetError(
            f"{name} would need {format_bytes(nbytes)} in memory, because it is not streamed: "
            "apply it to parts (a.iter_chunks), or allow it by pmarray.config.max_result"
        ) from None
    if "out" in options and is_stored(options["out"]):
        raise TypeError(f"{name} takes no PMArray as out=: assign its result")
    plain_args, plain_options = _replace((args, options), lambda one: np.asarray(one))
    return function(*plain_args, **plain_options)


def _replace(value: Any, change: Callable[[Any], Any]) -> Any:
    """Copy nested arguments with every `PMArray` changed."""
    if is_stored(value):
        return change(value)
    if type(value) in (list, tuple):
        return type(value)(_replace(one, change) for one in value)
    if type(value) is dict:
        return {key: _replace(one, change) for key, one in value.items()}
    return value


def _streams(*functions: Any) -> Callable[[Function], Function]:
    def register(implementation: Function) -> Function:
        for function in functions:
            _STREAMED[function] = implementation
        return implementation

    return register


# -- reductions that are a ufunc's --------------------------------------------------------------


def _reduction(function: Any, ufunc: np.ufunc, dtype: Any = None) -> None:
    """Register a function of NumPy's as the reduction of a ufunc, with its own parameters."""
    signature = inspect.signature(function)

    def streamed(*args: Any, **options: Any) -> Any:
        given = signature.bind(*args, **options).arguments
        array = given.pop("a")
        chosen = {key: value for key, value in given.items() if value is not _NO}
        chosen.setdefault("axis", None)
        if dtype is not None:
            chosen["dtype"] = dtype
        return reduce(ufunc, array, **chosen)

    _STREAMED[function] = streamed


_reduction(np.sum, np.add)
_reduction(np.prod, np.multiply)
_reduction(np.max, np.maximum)
_reduction(np.amax, np.maximum)
_reduction(np.min, np.minimum)
_reduction(np.amin, np.minimum)
_reduction(np.any, np.logical_or, bool)
_reduction(np.all, np.logical_and, bool)


@_streams(np.ptp)
def _ptp(a: Any, axis: Any = None, out: Any = None, keepdims: Any = False) -> Any:
    keepdims = bool(keepdims) and keepdims is not _NO
    result = np.subtract(
        reduce(np.maximum, a, axis, keepdims=keepdims),
        reduce(np.minimum, a, axis, keepdims=keepdims),
    )
    return _into(out, result)


@_streams(np.cumsum)
def _cumsum(a: Any, axis: Any = None, dtype: Any = None, out: Any = None) -> Any:
    return _cumulative(np.add, np.cumsum, a, axis, dtype, out)


@_streams(np.cumprod)
def _cumprod(a: Any, axis: Any = None, dtype: Any = None, out: Any = None) -> Any:
    return _cumulative(np.multiply, np.cumprod, a, axis, dtype, out)


def _cumulative(ufunc: np.ufunc, function: Any, a: Any, axis: Any, dtype: Any, out: Any) -> Any:
    if axis is None and a.ndim != 1:
        config.check_result(a.nbytes, "give an axis")
        return function(np.asarray(a), None, dtype, out)
    return ufunc.accumulate(a, axis=0 if axis is None else axis, dtype=dtype, out=out)


def _into(out: Any, result: Any) -> Any:
    if out is None:
        return result
    out[...] = result
    return out


# -- moments ------------------------------------------------------------------------------------


def _axes(a: Any, axis: Any) -> tuple[int, ...]:
    return tuple(range(a.ndim)) if axis is None else normalize_axis_tuple(axis, a.ndim)


def _finish(total: AnyArray, axes: tuple[int, ...], keepdims: Any, out: Any) -> Any:
    if keepdims is _NO or not keepdims:
        total = total.reshape([n for i, n in enumerate(total.shape) if i not in axes])
    if out is not None:
        return _into(out, total)
    return total if total.ndim else total[()]


def _moments(
    a: Any, axes: tuple[int, ...], dtype: Any, where: Any, omit: bool, mean: Any = _NO
) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Count, mean and sum of squared deviations along axes, merged piece by piece.

    Merged as Chan, Golub and LeVeque 1979 do: with n, m, S of either part and d = m2 - m1,
    ``m = m1 + d n2 / n`` and ``S = S1 + S2 + |d|² n1 n2 / n``. No squares are subtracted. `omit`
    leaves NaN out.
    """
    shape = a.shape
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    wide = np.result_type(dtype, np.float32 if np.dtype(dtype).kind != "c" else np.complex64)
    real = np.empty(0, wide).real.dtype
    count = np.zeros(kept, real)
    center = make_result(kept, wide, a.layout)
    spread = make_result(kept, real, a.layout)
    center[...] = 0
    spread[...] = 0
    # The block, its deviations, their squares, and moments that may be as large as the block.
    for piece in walk(shape, 12 * max(a.itemsize, wide.itemsize), a.layout):
        block = np.asarray(a[piece]).astype(wide)
        mask = part_of(where, shape, piece)
        use = np.broadcast_to(mask, block.shape)
        if omit:
            use = use & ~np.isnan(block)
            block = np.where(use, block, 0)
        place = tuple(slice(0, 1) if i in axes else one for i, one in enumerate(piece))
        n2 = np.sum(use, axis=axes, keepdims=True, dtype=real)
        safe = np.maximum(n2, 1)
        m2 = np.add.reduce(block, axis=axes, keepdims=True, where=use) / safe
        deviation = block - m2
        squares = deviation.real**2 + deviation.imag**2 if wide.kind == "c" else deviation**2
        s2 = np.add.reduce(squares, axis=axes, keepdims=True, where=use)
        n1, m1 = count[place], center[place]
        n = n1 + n2
        share = n2 / np.maximum(n, 1)
        d = m2 - m1
        spread[place] += s2 + (d.real**2 + d.imag**2) * n1 * share
        center[place] = np.where(n1 == 0, m2, m1 + d * share)
        count[place] = n
    return count, center, spread


def _mean_dtype(a: Any, dtype: Any) -> Any:
    if dtype is not None:
        return np.dtype(dtype)
    return np.dtype(float) if a.dtype.kind in "biu" else a.dtype


@_streams(np.mean)
def _mean(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = _NO, *,
    where: Any = True,
) -> Any:  # fmt: skip
    where = True if where is _NO else where
    found = _mean_dtype(a, dtype)
    axes = _axes(a, axis)
    wide = np.float32 if found == np.float16 else found
    total = reduce(np.add, a, axes, dtype=wide, keepdims=True, where=where)
    count = _count(a, axes, where)
    mean = np.asarray(np.true_divide(total, count, dtype=np.result_type(wide, np.float16)))
    return _finish(mean.astype(found, copy=False), axes, keepdims, out)


def _count(a: Any, axes: tuple[int, ...], where: Any) -> Any:
    if where is True:
        return np.prod([a.shape[i] for i in axes], dtype=np.intp)
    return np.sum(np.broadcast_to(where, a.shape), axis=axes, keepdims=True, dtype=np.intp)


def _spread(
    a: Any, axis: Any, dtype: Any, out: Any, ddof: Any, keepdims: Any, where: Any,
    correction: Any, omit: bool, root: bool,
) -> Any:  # fmt: skip
    where = True if where is _NO else where
    ddof = ddof if correction is _NO else correction
    found = _mean_dtype(a, dtype)
    axes = _axes(a, axis)
    count, _, squares = _moments(a, axes, found, where, omit)
    freedom = count - ddof
    if omit:
        freedom = np.where(freedom > 0, freedom, np.nan)
    variance = np.true_divide(squares, np.maximum(freedom, 0))
    result = np.sqrt(variance) if root else variance
    return _finish(result.astype(np.empty(0, found).real.dtype, copy=False), axes, keepdims, out)


@_streams(np.var)
def _var(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0,
    keepdims: Any = _NO, *, where: Any = _NO, mean: Any = _NO, correction: Any = _NO,
) -> Any:  # fmt: skip
    return _spread(a, axis, dtype, out, ddof, keepdims, where, correction, False, False)


@_streams(np.std)
def _std(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0,
    keepdims: Any = _NO, *, where: Any = _NO, mean: Any = _NO, correction: Any = _NO,
) -> Any:  # fmt: skip
    return _spread(a, axis, dtype, out, ddof, keepdims, where, correction, False, True)


# -- places of extremes -------------------------------------------------------------------------


def _arg(a: Any, axis: Any, out: Any, keepdims: Any, low: bool) -> Any:
    shape = a.shape
    axes = _axes(a, axis)
    if any(shape[i] == 0 for i in axes):
        raise ValueError(f"attempt to get arg{'min' if low else 'max'} of an empty sequence")
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    best = make_result(kept, a.dtype, a.layout)
    place_of = make_result(kept, np.intp, a.layout)
    search = np.argmin if low else np.argmax
    for piece in walk(shape, 2 * a.itemsize + 8, a.layout):
        block = np.asarray(a[piece])
        place = tuple(slice(0, 1) if i in axes else one for i, one in enumerate(piece))
        if axis is None:
            flat = int(search(block))
            local = np.unravel_index(flat, block.shape)
            values = block[local].reshape((1,) * block.ndim)
            found = [one.start + i for one, i in zip(piece, local, strict=True)]
            index = np.ravel_multi_index(found, shape) if shape else 0
            indices = np.full(values.shape, index, np.intp)
        else:
            (along,) = axes
            local_index = search(block, axis=along, keepdims=True)
            values = np.take_along_axis(block, local_index, along)
            indices = local_index + piece[along].start
        if all(piece[i].start == 0 for i in axes):
            best[place], place_of[place] = values, indices
            continue
        before, where_before = best[place], place_of[place]
        nan, had_nan = values != values, before != before
        ahead = np.less(values, before) if low else np.greater(values, before)
        tie = (values == before) | (nan & had_nan)
        better = ((ahead | (nan & ~had_nan)) & ~(had_nan & ~nan)) | (tie & (indices < where_before))
        best[place] = np.where(better, values, before)
        place_of[place] = np.where(better, indices, where_before)
    return _finish(place_of, axes, keepdims, out)


@_streams(np.argmin)
def _argmin(a: Any, axis: Any = None, out: Any = None, *, keepdims: Any = _NO) -> Any:
    return _arg(a, axis, out, keepdims, low=True)


@_streams(np.argmax)
def _argmax(a: Any, axis: Any = None, out: Any = None, *, keepdims: Any = _NO) -> Any:
    return _arg(a, axis, out, keepdims, low=False)


# -- without NaN --------------------------------------------------------------------------------


@_streams(np.nansum)
def _nansum(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = _NO,
    initial: Any = _NO, where: Any = _NO,
) -> Any:  # fmt: skip
    return _without_nan(np.add, a, axis, dtype, out, keepdims, 0)


@_streams(np.nanprod)
def _nanprod(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = _NO,
    initial: Any = _NO, where: Any = _NO,
) -> Any:  # fmt: skip
    return _without_nan(np.multiply, a, axis, dtype, out, keepdims, 1)


def _without_nan(
    ufunc: np.ufunc, a: Any, axis: Any, dtype: Any, out: Any, keepdims: Any, neutral: int
) -> Any:
    axes = _axes(a, axis)
    shape = a.shape
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    found = ufunc.reduce(np.ones((1,) * a.ndim, a.dtype), axis=None, dtype=dtype).dtype
    total = make_result(kept, found, a.layout)
    total[...] = neutral
    for piece in walk(shape, 3 * a.itemsize, a.layout):
        block = np.asarray(a[piece])
        if a.dtype.kind in "fc":
            block = np.where(np.isnan(block), np.asarray(neutral, a.dtype), block)
        place = tuple(slice(0, 1) if i in axes else one for i, one in enumerate(piece))
        total[place] = ufunc(
            total[place], ufunc.reduce(block, axis=axes, dtype=dtype, keepdims=True)
        )
    return _finish(total, axes, keepdims, out)


@_streams(np.nanmean)
def _nanmean(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = _NO, *,
    where: Any = _NO,
) -> Any:  # fmt: skip
    if a.dtype.kind not in "fc":
        return _mean(a, axis, dtype, out, keepdims, where=where)
    found = _mean_dtype(a, dtype)
    axes = _axes(a, axis)
    count, center, _ = _moments(a, axes, found, True if where is _NO else where, omit=True)
    center[count == 0] = np.nan
    return _finish(center.astype(found, copy=False), axes, keepdims, out)


@_streams(np.nanvar)
def _nanvar(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0,
    keepdims: Any = _NO, *, where: Any = _NO, mean: Any = _NO, correction: Any = _NO,
) -> Any:  # fmt: skip
    omit = a.dtype.kind in "fc"
    return _spread(a, axis, dtype, out, ddof, keepdims, where, correction, omit, False)


@_streams(np.nanstd)
def _nanstd(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0,
    keepdims: Any = _NO, *, where: Any = _NO, mean: Any = _NO, correction: Any = _NO,
) -> Any:  # fmt: skip
    omit = a.dtype.kind in "fc"
    return _spread(a, axis, dtype, out, ddof, keepdims, where, correction, omit, True)


@_streams(np.nanmin)
def _nanmin(
    a: Any, axis: Any = None, out: Any = None, keepdims: Any = _NO, initial: Any = _NO,
    where: Any = _NO,
) -> Any:  # fmt: skip
    return _extreme_without_nan(np.fmin, a, axis, out, keepdims, initial, where)


@_streams(np.nanmax)
def _nanmax(
    a: Any, axis: Any = None, out: Any = None, keepdims: Any = _NO, initial: Any = _NO,
    where: Any = _NO,
) -> Any:  # fmt: skip
    return _extreme_without_nan(np.fmax, a, axis, out, keepdims, initial, where)


def _extreme_without_nan(
    ufunc: np.ufunc, a: Any, axis: Any, out: Any, keepdims: Any, initial: Any, where: Any
) -> Any:
    keepdims = keepdims is not _NO and bool(keepdims)
    where = True if where is _NO else where
    return reduce(ufunc, a, axis, None, out, keepdims, initial, where)


# -- comparisons, copies, shapes ----------------------------------------------------------------


@_streams(np.count_nonzero)
def _count_nonzero(a: Any, axis: Any = None, *, keepdims: Any = False) -> Any:
    axes = _axes(a, axis)
    kept = tuple(1 if i in axes else n for i, n in enumerate(a.shape))
    total = np.zeros(kept, np.intp)
    for piece in walk(a.shape, 2 * a.itemsize, a.layout):
        place = tuple(slice(0, 1) if i in axes else one for i, one in enumerate(piece))
        total[place] += np.count_nonzero(np.asarray(a[piece]), axis=axes, keepdims=True)
    result = _finish(total, axes, keepdims, None)
    return int(result) if axis is None and not keepdims else result


def _agree(a: Any, b: Any, compare: Callable[[Any, Any], Any]) -> bool:
    a, b = (x if is_stored(x) else np.asarray(x) for x in (a, b))
    shape = np.broadcast_shapes(a.shape, b.shape)
    lead = a if is_stored(a) else b
    return all(
        bool(np.all(compare(part_of(a, shape, piece), part_of(b, shape, piece))))
        for piece in walk(shape, 4 * max(a.dtype.itemsize, b.dtype.itemsize), lead.layout)
    )


@_streams(np.allclose)
def _allclose(a: Any, b: Any, rtol: Any = 1e-5, atol: Any = 1e-8, equal_nan: bool = False) -> bool:
    return _agree(a, b, lambda x, y: np.isclose(x, y, rtol, atol, equal_nan))


@_streams(np.array_equal)
def _array_equal(a1: Any, a2: Any, equal_nan: bool = False) -> bool:
    if np.shape(a1) != np.shape(a2):
        return False
    return _agree(a1, a2, lambda x, y: np.array_equal(x, y, equal_nan))


@_streams(np.array_equiv)
def _array_equiv(a1: Any, a2: Any) -> bool:
    try:
        np.broadcast_shapes(np.shape(a1), np.shape(a2))
    except ValueError:
        return False
    return _agree(a1, a2, np.equal)


@_streams(np.copyto)
def _copyto(dst: Any, src: Any, casting: Any = "same_kind", where: Any = True) -> None:
    kind = src.dtype if hasattr(src, "dtype") else np.asarray(src).dtype
    if not np.can_cast(kind, dst.dtype, casting):
        raise TypeError(f"cannot cast from {kind} to {dst.dtype} according to the rule {casting!r}")
    src = src if is_stored(src) else np.asarray(src)
    lead = dst if is_stored(dst) else src
    for piece in walk(dst.shape, 2 * max(dst.dtype.itemsize, src.dtype.itemsize), lead.layout):
        part = part_of(src, dst.shape, piece)
        if where is True:
            dst[piece] = part
        else:
            target = np.asarray(dst[piece])
            np.copyto(target, part, casting, where=part_of(np.asarray(where), dst.shape, piece))
            dst[piece] = target


@_streams(np.concatenate)
def _concatenate(
    arrays: Any, axis: Any = 0, out: Any = None, *, dtype: Any = None, casting: Any = "same_kind"
) -> Any:
    if axis is None:
        raise TypeError("concatenate of a PMArray needs an axis")
    arrays = [x if is_stored(x) else np.asarray(x) for x in arrays]
    first = arrays[0]
    (along,) = normalize_axis_tuple(axis, first.ndim)
    for x in arrays:
        if x.ndim != first.ndim or any(
            n != m for i, (n, m) in enumerate(zip(x.shape, first.shape, strict=True)) if i != along
        ):
            raise ValueError(
                f"cannot concatenate shapes {first.shape} and {x.shape} on axis {along}"
            )
    shape = list(first.shape)
    shape[along] = sum(x.shape[along] for x in arrays)
    kind = np.result_type(*(x.dtype for x in arrays)) if dtype is None else np.dtype(dtype)
    lead = next(x for x in [out, *arrays] if is_stored(x))
    result = make_result(tuple(shape), kind, lead.layout) if out is None else out
    if result.shape != tuple(shape):
        raise ValueError(f"out has shape {result.shape}, the result {tuple(shape)}")
    start = 0
    for x in arrays:
        for piece in walk(x.shape, 2 * x.dtype.itemsize, lead.layout):
            moved = list(piece)
            moved[along] = slice(piece[along].start + start, piece[along].stop + start)
            part = np.asarray(x[piece])
            result[tuple(moved)] = part.astype(result.dtype, casting=casting, copy=False)
        start += x.shape[along]
    return result


@_streams(np.where)
def _where(condition: Any, *choices: Any) -> Any:
    if not choices:
        config.check_result(condition.nbytes, "np.where with one argument is not streamed")
        return np.where(np.asarray(condition))
    x, y = choices
    shape = np.broadcast_shapes(*(np.shape(v) for v in (condition, x, y)))
    values: list[Any] = [v if is_stored(v) else np.asarray(v) for v in (condition, x, y)]
    kind = np.result_type(*(v.dtype if hasattr(v, "dtype") else v for v in (x, y)))
    lead = next(v for v in values if is_stored(v))
    result = make_result(shape, kind, lead.layout)
    for piece in walk(shape, 3 * max(v.dtype.itemsize for v in values), lead.layout):
        result[piece] = np.where(*(part_of(v, shape, piece) for v in values))
    return result


@_streams(np.clip)
def _clip(a: Any, a_min: Any = _NO, a_max: Any = _NO, out: Any = None, **options: Any) -> Any:
    low = options.pop("min", None if a_min is _NO else a_min)
    high = options.pop("max", None if a_max is _NO else a_max)
    if out is not None:
        options["out"] = out
    if low is None and high is None:
        return np.positive(a, **options)
    if low is None:
        return np.minimum(a, high, **options)
    if high is None:
        return np.maximum(a, low, **options)
    raised = np.maximum(a, low, **options)
    return np.minimum(raised if out is None else out, high, **options)


@_streams(np.dot)
def _dot(a: Any, b: Any, out: Any = None) -> Any:
    if np.ndim(a) == 0 or np.ndim(b) == 0:
        return np.multiply(a, b, out=out)
    if max(np.ndim(a), np.ndim(b)) <= 2:
        from pmarray.linalg import matmul

        return matmul(a, b, out=out)
    return array_function(np.dot, tuple(np.asarray(x) for x in (a, b)), {"out": out})


@_streams(np.linalg.norm)
def _norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    from pmarray.linalg import norm

    if keepdims or x.ndim > 2 or (axis is not None and not np.isscalar(axis)):
        config.check_result(x.nbytes, "use pmarray.linalg.norm")
        return np.linalg.norm(np.asarray(x), ord, cast(Any, axis), keepdims)
    return norm(x, ord, cast(Any, axis))


@_streams(np.shape)
def _shape(a: Any) -> tuple[int, ...]:
    shape: tuple[int, ...] = a.shape
    return shape


@_streams(np.ndim)
def _ndim(a: Any) -> int:
    return len(a.shape)


@_streams(np.size)
def _size(a: Any, axis: Any = None) -> int:
    return int(a.size if axis is None else np.prod([a.shape[i] for i in _axes(a, axis)]))


@_streams(np.transpose)
def _transpose(a: Any, axes: Any = None) -> Any:
    return a.transpose() if axes is None else a.transpose(*axes)


@_streams(np.swapaxes)
def _swapaxes(a: Any, axis1: int, axis2: int) -> Any:
    return a.swapaxes(axis1, axis2)


@_streams(np.result_type)
def _result_type(*values: Any) -> Any:
    return np.result_type(*(v.dtype if is_stored(v) else v for v in values))


@_streams(np.iscomplexobj)
def _iscomplexobj(x: Any) -> bool:
    return bool(x.dtype.kind == "c")


def _like(make: Callable[..., AnyArray]) -> Callable[..., AnyArray]:
    def like(a: Any, *args: Any, dtype: Any = None, order: str = "K", subok: bool = True,
             shape: Any = None, **options: Any) -> AnyArray:  # fmt: skip
        shape = a.shape if shape is None else shape
        order = {"K": "F" if a.layout == "col" else "C", "A": "C"}.get(order, order)
        kind = np.dtype(a.dtype if dtype is None else dtype)
        config.check_result(int(np.prod(shape, dtype=object)) * kind.itemsize, "create a PMArray")
        return make(shape, *args, dtype=kind, order=order, **options)

    return like


_STREAMED[np.empty_like] = _like(np.empty)
_STREAMED[np.zeros_like] = _like(np.zeros)
_STREAMED[np.ones_like] = _like(np.ones)
_STREAMED[np.full_like] = _like(np.full)

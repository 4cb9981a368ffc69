"""Hypothesis strategies for everything that an array is made of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from pmarray._dtypes import DType, parse_dtype
from pmarray._geometry.layout import Order

__all__ = [
    "advanced_indices",
    "array_dtypes",
    "array_shapes",
    "basic_indices",
    "budgets",
    "filled",
    "layouts",
    "orthogonal_indices",
]


def _has_bfloat16() -> bool:
    try:
        import ml_dtypes  # noqa: F401
    except ImportError:
        return False
    return True


def array_dtypes() -> st.SearchStrategy[DType]:
    """Booleans, integers, floats, complex, strings, records; bfloat16 where ml_dtypes is there."""
    names: list[Any] = [
        "bool", "int8", "uint16", "int32", "uint64", ">i2", "float16", "float32", "float64",
        ">f8", "complex64", "complex128", "S5", "U3", "datetime64[s]", [("a", "<i4"), ("b", "?")],
    ]  # fmt: skip
    if _has_bfloat16():
        names.append("bfloat16")
    return st.sampled_from([parse_dtype(name) for name in names])


def array_shapes(max_items: int = 6000) -> st.SearchStrategy[tuple[int, ...]]:
    """Zero to four axes: empty, tiny, and long enough to need several chunks."""
    small = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)
    long = st.tuples(st.integers(1, max_items), st.integers(0, 5))
    wide = st.tuples(st.integers(0, 5), st.integers(1, max_items))
    deep = st.tuples(st.integers(1, 4), st.integers(1, max_items // 20), st.integers(1, 5))
    line = st.tuples(st.integers(0, 3 * max_items))
    return st.one_of(small, long, wide, deep, line).filter(
        lambda shape: math.prod(shape) <= 5 * max_items
    )


def layouts() -> st.SearchStrategy[Order]:
    """Both layouts."""
    return st.sampled_from(["row", "col"])


def budgets() -> st.SearchStrategy[int | str]:
    """Cache sizes from none at all to plenty."""
    return st.sampled_from([0, "16 KiB", 20_000, "64 KiB", "1 MiB", "auto"])


def basic_indices(shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Ints, slices with any step, ``...`` and ``None``, for an array of `shape`."""
    return npst.basic_indices(shape, allow_ellipsis=True, allow_newaxis=True)


@st.composite
def advanced_indices(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Integer arrays, lists and masks in any mixture with ints, slices, ``...`` and ``None``."""
    joint = draw(npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    parts: list[Any] = []
    axis, ellipsis = 0, False
    stop = draw(st.integers(0, len(shape)))
    while axis < stop or draw(st.integers(0, 5)) == 5:
        kind = draw(st.sampled_from(["array", "array", "list", "mask", "slice", "int", "..."]))
        extent = shape[axis] if axis < stop else 0
        if axis == stop:
            parts.append(draw(st.sampled_from([None, True, False, np.True_, np.array(True)])))
        elif kind == "..." and not ellipsis:
            parts.append(...)
            ellipsis = True
            axis += draw(st.integers(0, stop - axis))
            # What follows counts from the end.
            shape = (*shape[:axis], *shape[len(shape) - (stop - axis) :])
            stop = len(shape)
        elif kind == "mask":
            count = draw(st.integers(1, min(2, stop - axis)))
            parts.append(draw(_masks(shape[axis : axis + count])))
            axis += count
        elif kind == "int" and extent:
            parts.append(draw(st.integers(-extent, extent - 1)))
            axis += 1
        elif kind in ("array", "list") and extent:
            cut = draw(st.integers(0, len(joint)))
            own = [draw(st.sampled_from([n, n, 1])) if n else n for n in joint[cut:]]
            dtype = draw(st.sampled_from([np.int64, np.int8, np.intp]))
            low, high = max(-extent, -128), min(extent - 1, 127)
            rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
            array = rng.integers(low, high, own, dtype, endpoint=True)
            parts.append(array.tolist() if kind == "list" else array)
            axis += 1
        else:
            parts.append(draw(st.slices(extent)))
            axis += 1
    return tuple(parts)


@st.composite
def _masks(draw: st.DrawFn, shape: tuple[int, ...]) -> NDArray[Any]:
    # From a seed: item by item, Hypothesis would take longer than the array does.
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    return rng.random(shape) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))


def orthogonal_indices(shape: tuple[int, ...]) -> st.SearchStrategy[tuple[Any, ...]]:
    """One int, slice, integer array or mask for each axis."""
    return st.tuples(*(_orthogonal(extent) for extent in shape))


def _orthogonal(extent: int) -> st.SearchStrategy[Any]:
    choices: list[st.SearchStrategy[Any]] = [
        st.slices(extent),
        _masks((extent,)),
        st.just([]),
    ]
    if extent:
        items = st.integers(-extent, extent - 1)
        choices += [items, st.lists(items, max_size=6)]
    return st.one_of(choices)


def filled(shape: tuple[int, ...], dtype: DType, seed: int) -> NDArray[Any]:
    """Return an array of arbitrary but valid items, the same for the same `seed`."""
    rng = np.random.default_rng(seed)
    count = math.prod(shape)
    if dtype.kind == "b":
        flat: NDArray[Any] = rng.integers(0, 2, count).astype(dtype)
    elif dtype.kind in "SU":
        flat = np.array([f"{n:x}" for n in rng.integers(0, 4000, count)], dtype=dtype)
    elif dtype.names:
        flat = np.empty(count, dtype)
        for i, name in enumerate(dtype.names):
            flat[name] = filled((count,), dtype[name], seed + i + 1)
    elif dtype.kind == "c":
        flat = (rng.normal(size=count) + 1j * rng.normal(size=count)).astype(dtype)
    elif dtype.kind in "iuMm":
        flat = rng.integers(0, 100, count).astype(dtype)
    else:
        flat = rng.normal(size=count).astype(dtype)
    return flat.reshape(shape)

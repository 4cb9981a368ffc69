"""Hypothesis strategies for everything that an array is made of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from pmarray._dtypes import DType, parse_dtype

__all__ = ["array_dtypes", "array_shapes", "basic_indices", "budgets", "filled", "layouts"]


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


def layouts() -> st.SearchStrategy[str]:
    """Both layouts."""
    return st.sampled_from(["row", "col"])


def budgets() -> st.SearchStrategy[int | str]:
    """Cache sizes from none at all to plenty."""
    return st.sampled_from([0, "16 KiB", 20_000, "64 KiB", "1 MiB", "auto"])


def basic_indices(shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Ints, slices with any step, ``...`` and ``None``, for an array of `shape`."""
    return npst.basic_indices(shape, allow_ellipsis=True, allow_newaxis=True)


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

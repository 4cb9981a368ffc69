"""Shapes, dtypes, and new arrays like a `PMArray`; no item is read."""

from __future__ import annotations

from typing import Any

import numpy as np

from pmarray._array.overlap import is_stored, share
from pmarray._config import config
from pmarray._numpy.functions.axes import axes_of
from pmarray._numpy.functions.registry import AnyArray, streams


@streams(np.shape)
def _shape(a: Any) -> tuple[int, ...]:
    shape: tuple[int, ...] = a.shape
    return shape


@streams(np.ndim)
def _ndim(a: Any) -> int:
    return len(a.shape)


@streams(np.size)
def _size(a: Any, axis: Any = None) -> int:
    return int(a.size if axis is None else np.prod([a.shape[i] for i in axes_of(a, axis)]))


@streams(np.result_type)
def _result_type(*arrays_and_dtypes: Any) -> Any:
    return np.result_type(*(v.dtype if is_stored(v) else v for v in arrays_and_dtypes))


@streams(np.may_share_memory)
def _may_share_memory(a: Any, b: Any, /, max_work: Any = 0) -> bool:
    return share(a, b) or _may_be_of(a, b) or _may_be_of(b, a)


def _may_be_of(one: Any, other: Any) -> bool:
    """Whether a copy in memory may be of a stored array: who asks may want to write to one of his.

    It is read-only, as all are that NumPy would not have copied.
    """
    return (
        isinstance(one, np.ndarray)
        and is_stored(other)
        and not one.flags.writeable
        and one.shape == other.shape
        and one.dtype == other.dtype
    )


@streams(np.shares_memory)
def _shares_memory(a: Any, b: Any, /, max_work: Any = -1) -> bool:
    return share(a, b)


@streams(np.iscomplexobj)
def _iscomplexobj(x: Any) -> bool:
    return bool(x.dtype.kind == "c")


# -- new arrays -----------------------------------------------------------------------------------


def _as_told(a: Any, dtype: Any, order: str, shape: Any, device: Any) -> dict[str, Any]:
    """The parameters of a new array like `a`, if it fits into memory."""
    own = "F" if a.layout == "col" else "C"
    order = {"K": own, "A": own}.get(order, order)
    kind = np.dtype(a.dtype if dtype is None else dtype)
    shape = a.shape if shape is None else shape
    config.check_result(int(np.prod(shape, dtype=object)) * kind.itemsize, "create a PMArray")
    return {"shape": shape, "dtype": kind, "order": order, "device": device}


@streams(np.empty_like)
def _empty_like(
    prototype: Any, /, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None,
    *, device: Any = None,
) -> AnyArray:  # fmt: skip
    return np.empty(**_as_told(prototype, dtype, order, shape, device))


@streams(np.zeros_like)
def _zeros_like(
    a: Any, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None, *,
    device: Any = None,
) -> AnyArray:  # fmt: skip
    return np.zeros(**_as_told(a, dtype, order, shape, device))


@streams(np.ones_like)
def _ones_like(
    a: Any, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None, *,
    device: Any = None,
) -> AnyArray:  # fmt: skip
    return np.ones(**_as_told(a, dtype, order, shape, device))


@streams(np.full_like)
def _full_like(
    a: Any, fill_value: Any, dtype: Any = None, order: str = "K", subok: bool = True,
    shape: Any = None, *, device: Any = None,
) -> AnyArray:  # fmt: skip
    return np.full(fill_value=fill_value, **_as_told(a, dtype, order, shape, device))

"""Shapes, dtypes, and new arrays like a `PMArray`; no item is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pmarray._config import config
from pmarray._functions._axes import axes_of
from pmarray._functions._registry import STREAMED, AnyArray, streams
from pmarray._ufuncs import is_stored


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


@streams(np.transpose)
def _transpose(a: Any, axes: Any = None) -> Any:
    return a.transpose() if axes is None else a.transpose(*axes)


@streams(np.swapaxes)
def _swapaxes(a: Any, axis1: int, axis2: int) -> Any:
    return a.swapaxes(axis1, axis2)


@streams(np.result_type)
def _result_type(*values: Any) -> Any:
    return np.result_type(*(v.dtype if is_stored(v) else v for v in values))


@streams(np.iscomplexobj)
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


STREAMED[np.empty_like] = _like(np.empty)
STREAMED[np.zeros_like] = _like(np.zeros)
STREAMED[np.ones_like] = _like(np.ones)
STREAMED[np.full_like] = _like(np.full)

"""What may stand beside a `PMArray` in an expression, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from numbers import Number
from typing import Any

import numpy as np

from pmarray._array.overlap import is_stored
from pmarray._dtypes import as_ndarray
from pmarray._streams.sources import is_dask

__all__ = [
    "as_operand",
    "claims_operators",
    "has_numbers",
    "in_dask",
    "into_memory",
    "is_of_pandas",
    "is_operand",
]

_SCALARS = (np.generic, Number, str, bytes, date, timedelta)


def is_operand(value: Any) -> bool:
    """Whether NumPy would take it, and it does not say itself what becomes of it."""
    if isinstance(value, np.ndarray):
        return type(value).__array_ufunc__ is np.ndarray.__array_ufunc__
    if value is None or is_stored(value) or isinstance(value, (*_SCALARS, list, tuple, range)):
        return True
    if hasattr(type(value), "__array_ufunc__"):
        return False
    # Tensors, for example: arrays to NumPy, and no more than that. Anything else is one item to it.
    return hasattr(value, "__array__") or not claims_operators(value)


def claims_operators(value: Any) -> bool:
    """Whether arrays leave operators to it, though it is none: sparse matrices, for example."""
    kind = type(value)
    if hasattr(kind, "__array_ufunc__") or hasattr(value, "__array__"):
        return False
    return bool(getattr(kind, "__array_priority__", 0) > 0)


def is_of_pandas(value: Any) -> bool:
    """Whether it is one of pandas' tables, which take other arrays for lists."""
    return type(value).__module__.partition(".")[0] == "pandas" and hasattr(value, "iloc")


def into_memory(value: Any) -> Any:
    """What holds items, as an `ndarray`; anything else as it is, and what computes them later."""
    if is_dask(type(value)) or not hasattr(value, "__array__"):
        return value
    return as_ndarray(value)


def as_operand(value: Any) -> Any:
    """Return it with a shape and a dtype; scalars as they are, which have a say in dtypes."""
    if value is None or is_stored(value) or isinstance(value, (*_SCALARS, np.ndarray)):
        return value
    found = as_ndarray(value)
    return value if found.dtype == object and not found.ndim else found


def has_numbers(array: Any) -> bool:
    """Whether its items are truth values or numbers, which can be summed in pieces."""
    return array.dtype.kind in "biufc"


def in_dask(function: Callable[..., Any], args: Any, options: Any) -> Any:
    """Call a function of NumPy's with every `PMArray` as an array of dask: the result is lazy."""
    return function(*_to_dask(args), **_to_dask(options))


def _to_dask(value: Any) -> Any:
    if is_stored(value):
        return value.to_dask()
    if type(value) in (list, tuple):
        return type(value)(map(_to_dask, value))
    if type(value) is dict:
        return {key: _to_dask(one) for key, one in value.items()}
    return value

"""NumPy as the array API's suite sees it: whatever array a function returns is stored by us.

A `PMArray` has no namespace of its own: its namespace is NumPy, whose functions take it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

import pmarray

__all__ = ["count"]

_stored = 0


def count() -> int:
    """How many arrays were stored."""
    return _stored


def _store(value: Any) -> Any:
    """Put an ndarray into an array of ours; a NumPy scalar stays one, as NumPy has it."""
    global _stored
    if type(value) is np.ndarray and value.dtype.kind in "biufc":
        _stored += 1
        return pmarray.from_array(value, "dram:")
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_store, value))
    if type(value) in (list, tuple):
        return type(value)(map(_store, value))
    return value


def _through(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        result = function(*args, **options)
        # An array of ours as an ndarray is a view of it, and not another array.
        shown = function is np.asarray and isinstance(args[0], pmarray.PMArray)
        return result if shown else _store(result)

    return call


class _Module(ModuleType):
    def __init__(self, name: str, numpys: ModuleType) -> None:
        super().__init__(name)
        self._numpys = numpys

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._numpys, name)
        if isinstance(found, ModuleType):
            found = _Module(f"{self.__name__}.{name}", found)
        elif callable(found) and not isinstance(found, type):
            found = _through(found)
        setattr(self, name, found)
        return found


namespace = _Module(__name__, np)
namespace.count = count  # type: ignore[attr-defined]
sys.modules[__name__] = namespace

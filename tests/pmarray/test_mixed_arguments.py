"""NumPy functions of an array in memory, where another argument is a `PMArray`."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import pmarray
from pmarray._numpy.functions.streamed import STREAMED


def _parameters(function: Any) -> Any:
    """Those of ours, which are NumPy's: before NumPy 2.4 its functions in C do not say."""
    return inspect.signature(STREAMED[function]).parameters


_NAMES = ("where", "initial", "mean", "weights", "out")
CASES = [
    (function, name)
    for function in sorted(STREAMED, key=lambda function: function.__name__)
    if {"a", "axis"} <= (parameters := _parameters(function)).keys()
    for name in _NAMES
    if name in parameters
]


def _arguments(function: Any) -> tuple[Any, ...]:
    a = np.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    return (a, 0.5) if "q" in _parameters(function) else (a,)


def _value(function: Any, name: str) -> Any:
    if name == "where":
        return np.array([[True, False, True], [True, True, False]])
    if name == "initial":
        return np.float64(3)
    if name == "mean":
        return np.array([[4.5, 9.0, 18.0]])
    if name == "weights":
        return np.array([[1.0, 2.0, 1.0], [3.0, 1.0, 1.0]])
    result = function(*_arguments(function), axis=0)
    return np.zeros(np.shape(result), np.asarray(result).dtype)


@pytest.mark.parametrize(
    ("function", "name"), CASES, ids=[f"{function.__name__}-{name}" for function, name in CASES]
)
def test_the_first_argument_in_memory_and_another_one_stored(function: Any, name: str) -> None:
    value = _value(function, name)
    options: dict[str, Any] = {"axis": 0}
    if name == "mean":
        options["keepdims"] = False
    if name == "where" and function in (np.max, np.amax, np.min, np.amin):
        options["initial"] = 5.0
    if name == "where" and function in (np.nanmax, np.nanmin):
        options["initial"] = 5.0
    expected = function(*_arguments(function), **options, **{name: value.copy()})
    with pmarray.open("dram:", np.shape(value), value.dtype) as stored:
        stored[...] = value
        found = function(*_arguments(function), **options, **{name: stored})
        if name == "out":
            assert found is stored
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))

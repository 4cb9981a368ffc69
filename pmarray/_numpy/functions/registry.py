"""What streams, and what happens to the rest: `PMArray.__array_function__`.

A function of NumPy's is streamed if an implementation was registered for it. Every other one gets
the whole arrays if they may be held in memory, and is refused otherwise. What it gets is read-only,
and so is every view of it that it returns: a store into it would change memory that is not the
array's, and nothing else. Only what NumPy documents to be written, `out=` above all, is handed over
writable, and is written back.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pmarray._array.overlap import is_stored
from pmarray._config import config
from pmarray._numpy.ufuncs import is_foreign
from pmarray._sizes import format_bytes
from pmarray.errors import BudgetError

__all__ = ["NO", "STREAMED", "AnyArray", "Function", "array_function", "streams", "unstreamed"]

AnyArray = NDArray[Any]
Function = TypeVar("Function", bound=Callable[..., Any])

STREAMED: dict[Any, Callable[..., Any]] = {}
NO = np._NoValue


_INSTEAD: dict[Any, str] = {
    **dict.fromkeys(
        [np.median, np.quantile, np.percentile, np.nanmedian, np.nanquantile, np.nanpercentile],
        "np.histogram, which streams, brackets it",
    ),
    np.linalg.norm: "pmarray.linalg.norm streams others, pmarray.linalg.svd the singular values",
}


_WRITTEN: dict[Any, str] = {
    np.put: "a",
    np.putmask: "a",
    np.place: "arr",
    np.put_along_axis: "arr",
    np.fill_diagonal: "a",
}
"""Parameters, besides `out`, that functions write to."""

_POSITIONS: dict[Any, int] = {np.putmask: 0, np.dot: 2, np.concatenate: 2}
"""Where what they write to may stand, of functions in C, which before NumPy 2.4 do not say it."""


def array_function(
    function: Callable[..., Any], types: Any, args: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """`PMArray.__array_function__`."""
    streamed = STREAMED.get(function)
    # A class that is more than its items makes its own of what NumPy computes.
    if streamed is not None and not any(map(is_foreign, types)):
        return streamed(*args, **options)
    return unstreamed(function, args, options)


def unstreamed(function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Call a function with whole arrays, if they may be held in memory.

    Raises
    ------
    BudgetError
        They may not; the message names their size and what to do instead.
    """
    stored: list[Any] = []
    _replace((args, options), stored.append)
    nbytes = sum(one.nbytes for one in stored)
    name = f"{function.__module__}.{function.__name__}"
    try:
        config.check_result(nbytes, "")
    except BudgetError:
        raise BudgetError(
            f"{name} would need {format_bytes(nbytes)} in memory, because it is not streamed: "
            f"{_INSTEAD.get(function, 'apply it to parts (a.iter_chunks)')}, or allow it by "
            "pmarray.config.max_result"
        ) from None
    written = _written(function, args, options)
    for one in written:
        with one._turn():
            one._admit_writer()  # refused before anything is computed
    # Contents that a function may leave undefined, to save memory, are not the array's.
    options = {key: value for key, value in options.items() if key != "overwrite_input"}
    # In C order, which some functions ask of the arrays that they write to.
    memory = {id(one): np.ascontiguousarray(one[...]).reshape(one.shape) for one in written}

    def in_memory(one: Any) -> AnyArray:
        if id(one) not in memory:
            memory[id(one)] = np.asarray(one)
        return memory[id(one)]

    plain_args, plain_options = _replace((args, options), in_memory)
    result = function(*plain_args, **plain_options)
    for one in written:
        one[...] = memory[id(one)]
    # What a function returns of its arguments themselves is the argument.
    return next((one for one in stored if result is memory[id(one)]), result)


def _written(
    function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
) -> list[Any]:
    """The arrays among the arguments that the function writes to."""
    try:
        given = inspect.signature(function).bind(*args, **options).arguments
    except ValueError:  # before NumPy 2.4, a function written in C
        given, position = dict(options), _POSITIONS.get(function, len(args))
        if position < len(args):
            given[_WRITTEN.get(function, "out")] = args[position]
    names = ["out", _WRITTEN.get(function)]
    if function is np.nan_to_num and not given.get("copy", True):
        names.append("x")
    return [given[name] for name in names if name in given and is_stored(given[name])]


def _replace(value: Any, change: Callable[[Any], Any]) -> Any:
    """Copy nested arguments with every `PMArray` changed."""
    if is_stored(value):
        return change(value)
    if type(value) in (list, tuple):
        return type(value)(_replace(one, change) for one in value)
    if type(value) is dict:
        return {key: _replace(one, change) for key, one in value.items()}
    return value


def streams(*functions: Any) -> Callable[[Function], Function]:
    def register(implementation: Function) -> Function:
        for function in functions:
            STREAMED[function] = implementation
        return implementation

    return register

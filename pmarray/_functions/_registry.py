"""What streams, and what happens to the rest: `PMArray.__array_function__`.

A function of NumPy's is streamed if an implementation was registered for it. Every other one gets
the whole arrays if they may be held in memory, and is refused otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pmarray._config import config
from pmarray._sizes import format_bytes
from pmarray._ufuncs import is_stored
from pmarray.errors import BudgetError

__all__ = ["NO", "STREAMED", "AnyArray", "Function", "array_function", "streams", "unstreamed"]

AnyArray = NDArray[Any]
Function = TypeVar("Function", bound=Callable[..., Any])

STREAMED: dict[Any, Callable[..., Any]] = {}
NO = np._NoValue


_INSTEAD: dict[Any, str] = dict.fromkeys(
    [np.median, np.quantile, np.percentile, np.nanmedian, np.nanquantile, np.nanpercentile],
    "np.histogram, which streams, brackets it",
)


def array_function(
    function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """`PMArray.__array_function__`."""
    streamed = STREAMED.get(function)
    if streamed is not None:
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


def streams(*functions: Any) -> Callable[[Function], Function]:
    def register(implementation: Function) -> Function:
        for function in functions:
            STREAMED[function] = implementation
        return implementation

    return register

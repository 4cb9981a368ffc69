"""What reductions share: their axes, and the form of their results."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from numpy.lib.array_utils import normalize_axis_tuple

from pmarray._array.overlap import is_stored
from pmarray._numpy.functions.registry import NO, STREAMED, AnyArray, Function, unstreamed
from pmarray._numpy.ufuncs import into

__all__ = ["axes_of", "finish", "reduces"]


def reduces(*functions: Any) -> Callable[[Function], Function]:
    """Register what streams over its first parameter, `a`.

    An array in memory, whose result goes to a `PMArray`, or with a mask that is one, is for NumPy.
    """

    def register(implementation: Function) -> Function:
        for function in functions:
            STREAMED[function] = _first_stored(function, implementation)
        return implementation

    return register


def _first_stored(function: Any, implementation: Callable[..., Any]) -> Callable[..., Any]:
    names = tuple(inspect.signature(function).parameters)

    @functools.wraps(implementation)
    def streamed(*args: Any, **options: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | options
        # One item alone may be named by the axes 0 and -1, which it has not.
        if is_stored(given["a"]) and given["a"].ndim:
            return implementation(*args, **options)
        return unstreamed(function, args, options)

    return streamed


def axes_of(a: Any, axis: Any) -> tuple[int, ...]:
    return tuple(range(a.ndim)) if axis is None else normalize_axis_tuple(axis, a.ndim)


def finish(
    total: AnyArray, axes: tuple[int, ...], keepdims: Any, out: Any, casting: Any = "unsafe"
) -> Any:
    """Give a result its shape, and write it to ``out=``, cast as NumPy's reductions cast."""
    if keepdims is NO or not keepdims:
        total = total.reshape([n for i, n in enumerate(total.shape) if i not in axes])
    if out is not None:
        return into(out, total, casting)
    return total if total.ndim else total[()]

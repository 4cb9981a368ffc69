"""What reductions share: their axes, and the form of their results."""

from __future__ import annotations

from typing import Any

from numpy.lib.array_utils import normalize_axis_tuple

from pmarray._functions._registry import NO, AnyArray

__all__ = ["axes_of", "finish", "into"]


def axes_of(a: Any, axis: Any) -> tuple[int, ...]:
    return tuple(range(a.ndim)) if axis is None else normalize_axis_tuple(axis, a.ndim)


def finish(total: AnyArray, axes: tuple[int, ...], keepdims: Any, out: Any) -> Any:
    if keepdims is NO or not keepdims:
        total = total.reshape([n for i, n in enumerate(total.shape) if i not in axes])
    if out is not None:
        return into(out, total)
    return total if total.ndim else total[()]


def into(out: Any, result: Any) -> Any:
    if out is None:
        return result
    out[...] = result
    return out

"""Sums, products and extremes that leave NaN out."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from pmarray._numpy.functions.axes import reduces
from pmarray._numpy.functions.moments import as_mask
from pmarray._numpy.functions.registry import NO
from pmarray._numpy.ufuncs import into, reduce


@reduces(np.nansum)
def _nansum(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = NO,
    initial: Any = NO, where: Any = NO,
) -> Any:  # fmt: skip
    return reduce(
        np.add, a, axis, dtype, out, _truth(keepdims), initial, as_mask(where), instead_of_nan=0
    )


@reduces(np.nanprod)
def _nanprod(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = NO,
    initial: Any = NO, where: Any = NO,
) -> Any:  # fmt: skip
    return reduce(
        np.multiply, a, axis, dtype, out, _truth(keepdims), initial, as_mask(where),
        instead_of_nan=1,
    )  # fmt: skip


@reduces(np.nanmin)
def _nanmin(
    a: Any, axis: Any = None, out: Any = None, keepdims: Any = NO, initial: Any = NO,
    where: Any = NO,
) -> Any:  # fmt: skip
    return _extreme(np.fmin, a, axis, out, keepdims, initial, where)


@reduces(np.nanmax)
def _nanmax(
    a: Any, axis: Any = None, out: Any = None, keepdims: Any = NO, initial: Any = NO,
    where: Any = NO,
) -> Any:  # fmt: skip
    return _extreme(np.fmax, a, axis, out, keepdims, initial, where)


def _extreme(
    ufunc: np.ufunc, a: Any, axis: Any, out: Any, keepdims: Any, initial: Any, where: Any
) -> Any:
    found = reduce(ufunc, a, axis, None, None, _truth(keepdims), initial, as_mask(where))
    if a.dtype.kind in "fc" and np.isnan(found).any():
        warnings.warn("All-NaN slice encountered", RuntimeWarning, stacklevel=6)
    return found if out is None else into(out, np.asarray(found), casting="unsafe")


def _truth(keepdims: Any) -> bool:
    return keepdims is not NO and bool(keepdims)

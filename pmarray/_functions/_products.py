"""Products of arrays, and norms."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from pmarray._config import config
from pmarray._functions._registry import array_function, streams


@streams(np.dot)
def _dot(a: Any, b: Any, out: Any = None) -> Any:
    if np.ndim(a) == 0 or np.ndim(b) == 0:
        return np.multiply(a, b, out=out)
    if max(np.ndim(a), np.ndim(b)) <= 2:
        from pmarray.linalg import matmul

        return matmul(a, b, out=out)
    return array_function(np.dot, tuple(np.asarray(x) for x in (a, b)), {"out": out})


@streams(np.linalg.norm)
def _norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    from pmarray.linalg import norm

    if keepdims or x.ndim > 2 or (axis is not None and not np.isscalar(axis)):
        config.check_result(x.nbytes, "use pmarray.linalg.norm")
        return np.linalg.norm(np.asarray(x), ord, cast(Any, axis), keepdims)
    return norm(x, ord, cast(Any, axis))

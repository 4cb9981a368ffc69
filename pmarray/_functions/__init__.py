"""NumPy's functions over arrays that outgrow memory, `PMArray.__array_function__`.

Each module registers what it streams with `_registry`; importing it is all that has to be done.
"""

from __future__ import annotations

from pmarray._functions import (  # noqa: F401  # importing is what registers
    _comparisons,
    _extremes,
    _looks,
    _moments,
    _moving,
    _products,
    _reductions,
    _shapes,
    _statistics,
    _without_nan,
)
from pmarray._functions._registry import array_function

__all__ = ["array_function"]

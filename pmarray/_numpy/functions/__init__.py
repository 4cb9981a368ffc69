"""NumPy's functions over arrays that outgrow memory, `PMArray.__array_function__`.

Each module registers what it streams (`_numpy.functions.registry`); importing it is all that has to
be done.
"""

from __future__ import annotations

from pmarray._numpy.functions import (  # noqa: F401  # importing is what registers
    comparisons,
    extremes,
    looks,
    moments,
    moving,
    products,
    reductions,
    shapes,
    statistics,
    without_nan,
)
from pmarray._numpy.functions.registry import array_function

__all__ = ["array_function"]

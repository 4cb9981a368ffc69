"""All of NumPy's functions that stream.

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
from pmarray._numpy.functions.registry import STREAMED, array_function

__all__ = ["STREAMED", "array_function"]

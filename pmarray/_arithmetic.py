"""What makes a `PMArray` an operand of NumPy: operators, ufuncs, functions, reductions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

__all__ = ["Arithmetic"]


class Arithmetic(NDArrayOperatorsMixin):
    """NumPy's protocols for a `PMArray`, each streamed chunk by chunk."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]  # as an ndarray: == compares items

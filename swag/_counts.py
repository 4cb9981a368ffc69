"""Arguments that count something."""

from __future__ import annotations

import operator
from typing import SupportsIndex

__all__ = ["count"]


def count(name: str, value: SupportsIndex, least: int = 0) -> int:
    """Return an argument as Python's own number, which files and slices take.

    Raises
    ------
    ValueError
        It is no whole number, or less than `least`. Python and NumPy would say what they were
        doing with it, later.

    Examples
    --------
    >>> import numpy as np
    >>> count("samples", np.int64(3), least=1)
    3
    >>> count("samples", 20.0)
    Traceback (most recent call last):
        ...
    ValueError: samples must be a whole number, 0 or more, not 20.0
    """
    try:
        found = operator.index(value)
    except TypeError:
        found = None
    if found is None or found < least:
        raise ValueError(f"{name} must be a whole number, {least} or more, not {value!r}") from None
    return found

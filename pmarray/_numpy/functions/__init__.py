"""NumPy's functions over arrays that outgrow memory, `PMArray.__array_function__`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pmarray._lazy import attach

if TYPE_CHECKING:
    from pmarray._numpy.functions.streamed import array_function

__all__ = ["array_function"]

__getattr__, __dir__ = attach(__name__, {"pmarray._numpy.functions.streamed": ["array_function"]})

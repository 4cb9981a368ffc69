"""A `PMArray` in the hands of other libraries, of other processes, and of a notebook."""

from __future__ import annotations

__all__ = ["Interop"]


class Interop:
    """Exchange protocols of a `PMArray`."""

    __slots__ = ()

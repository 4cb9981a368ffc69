"""A descriptor of a file that is closed when nobody has it any more, in C.

An exception that a signal raises in a finalizer of Python's would leave it open for good.
"""

from __future__ import annotations

import io
import os

__all__ = ["Descriptor"]


class Descriptor(io.FileIO):
    """A descriptor, by its `fileno`, for as long as this object is kept.

    It is read and written with `os`; of `io.FileIO` it has what that does when it goes.
    """

    # `io.FileIO` sets this to say that it was left open, and warns. This one is meant to be left,
    # and the attribute cannot be set.
    _finalizing = property()

    @classmethod
    def duplicate(cls, fd: int) -> Descriptor:
        """Return a second descriptor of an open file."""
        # Both are called by C: no signal comes in between, when nothing has the descriptor yet.
        (result,) = map(cls, map(os.dup, (fd,)))
        return result

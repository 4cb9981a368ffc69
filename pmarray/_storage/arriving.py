"""Items that threads of ours read beside everything else: by which requests, and if they are right.

Such a read takes neither the group's lock nor the cache's, and is over long before anybody asks for
what it has read. So it is right only if nothing has happened to the array meanwhile; whoever takes
the items asks `Arrival.is_right`, with the group's lock, and reads them anew where it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pmarray._config import config
from pmarray._dtypes import DType
from pmarray._geometry.layout import BLOCK_BYTES
from pmarray._geometry.requests import Requests
from pmarray.backends._protocols import Beside

__all__ = ["Arrival", "FileArrival"]

AnyArray = NDArray[Any]

_LOOKS = 16
_LOOK_BYTES = 256 << 10


class Arrival(Protocol):
    """How a selection is read beside everything else, into a buffer that begins on a page."""

    @property
    def nbytes(self) -> int:
        """Of the buffer."""

    @property
    def is_right(self) -> Callable[[], bool]:
        """Tells, once all has been read, whether the array holds just that."""

    @property
    def in_place(self) -> Callable[[], None] | None:
        """What has the items come into memory where they lie, for who only looks.

        With one call after another, in their order. None where to read them into a buffer is
        better.
        """

    def calls(self, buffer: memoryview, *, direct: bool) -> Iterator[Callable[[], None]]:
        """Yield what fills the buffer, on any threads and in any order."""

    def is_at_hand(self) -> bool:
        """Whether the bytes are in the system's cache, as far as that is seen at a glance."""

    def block(self, buffer: memoryview) -> AnyArray:
        """Look at the items in the buffer."""

    def seen_by(self, look: Callable[[AnyArray], AnyArray]) -> Self:
        """Return the same for who looks at the items another way."""


class FileArrival(NamedTuple):
    """An `Arrival` of items that lie in one file."""

    requests: Requests
    """From where to where."""
    beside: Beside
    """What reads."""
    dtype: DType
    """Of the items."""
    shape: tuple[int, ...]
    """Of the selection in the array that is stored."""
    is_right: Callable[[], bool]
    look: Callable[[AnyArray], AnyArray] = lambda block: block
    """Looks at it as whoever asked does."""
    in_place: Callable[[], None] | None = None

    @property
    def nbytes(self) -> int:
        return self.requests.nbytes

    def calls(self, buffer: memoryview, *, direct: bool) -> Iterator[Callable[[], None]]:
        nbytes = max(1, config.request_bytes // BLOCK_BYTES) * BLOCK_BYTES
        for one in self.requests.cut(nbytes):
            out = buffer[one.place : one.place + one.stop - one.start]
            yield partial(self.beside.read, one, out, direct=direct)

    def is_at_hand(self) -> bool:
        start, length, step, count = self.requests.stretches
        stop = start + (count - 1) * step + length
        places = range(start, stop, max(1, (stop - start) // _LOOKS))
        return self.beside.are_resident([(at, min(stop, at + _LOOK_BYTES)) for at in places])

    def seen_by(self, look: Callable[[AnyArray], AnyArray]) -> FileArrival:
        before = self.look
        return self._replace(look=lambda block: look(before(block)))

    def block(self, buffer: memoryview) -> AnyArray:
        strides = self.requests.strides
        found: AnyArray = np.ndarray(
            self.shape, self.dtype, buffer, self.requests.offset, strides=strides
        )
        return self.look(found)

"""Stores to persistent memory, and what of them is not durable yet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pmarray._geometry.spans import SpanSet
from pmarray._system import osops
from pmarray.errors import PoisonedError
from pmarray.locks import Lock

__all__ = ["NOTHING", "Stores"]

NOTHING: NDArray[np.uint8] = np.empty(0, np.uint8)


class Stores:
    """Bytes in mapped memory that are stored to in two ways.

    What `write` stores is durable when it returns. What others have stored in place they note by
    `add`; it is durable after `persist`.

    Parameters
    ----------
    where
        For messages.
    """

    def __init__(self, where: str) -> None:
        self.memory = NOTHING
        """The bytes; replaced when they are mapped anew."""
        self._where = where
        self._spans = SpanSet()
        self._lock = Lock()  # loans end on other threads than commits

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` from `offset` on."""
        np.frombuffer(out, np.uint8)[:] = self.memory[offset : offset + out.nbytes]

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Store `buffers` one after another; they are durable on return."""
        for buffer in buffers:
            stop = offset + buffer.nbytes
            self.write_to(self.memory[offset:stop], buffer)
            offset = stop

    def write_to(self, memory: NDArray[np.uint8], data: memoryview) -> None:
        """The same for other memory of the same mapping."""
        try:
            osops.store(memory, np.frombuffer(data, np.uint8))
        except OSError as error:
            raise self._poisoned(error) from error

    def add(self, offset: int, nbytes: int) -> None:
        """Note that bytes have been stored in place."""
        with self._lock:
            self._spans.add(offset, offset + nbytes)

    def persist(self) -> None:
        """Return when everything that was noted is durable."""
        with self._lock:
            spans = list(self._spans)
            self._spans.clear()
        try:
            for start, stop in spans:
                osops.persist(self.memory[start:stop])
        except OSError as error:
            raise self._poisoned(error) from error

    def _poisoned(self, error: OSError) -> PoisonedError:
        return PoisonedError(
            error.errno,
            f"stores could not be made durable ({error.strerror}): what was written since the "
            "last flush may be lost; close the group, repair the medium and open it again",
            self._where,
        )

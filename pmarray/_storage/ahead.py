"""Reading ahead: the kernel is asked for bytes before they are wanted, many requests at a time.

One read after another leaves the device idle while the bytes are copied and worked on, and gives it
one request at a time. So what is known to follow is asked for while the caller is busy with what
is there: the rest of a long read, and, after two reads in order, what a third would want. The
window doubles with each read in order, up to `config.read_ahead`.

Nothing is asked for while everything comes from memory: looking up pages that are there takes time,
too. Whether anything came from a device since the last look is told by the kernel's count.
"""

from __future__ import annotations

from pmarray._config import config
from pmarray.backends._protocols import Region

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

__all__ = ["ReadAhead", "blocks_read"]


def blocks_read() -> int:
    """Blocks that the process has read from devices so far, by reads, faults and hints."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_inblock if resource is not None else 0


class ReadAhead:
    """Asks for the bytes of one region before they are read.

    Parameters
    ----------
    region
        Where they are.
    """

    def __init__(self, region: Region) -> None:
        self._region = region
        self._next = -1
        """Where a reader in order would go on."""
        self._in_order = 0
        """How many reads were in order."""
        self._asked = (0, 0)
        """What was asked for last."""
        self._blocks = 0

    def comes_from_device(self) -> bool:
        """Whether anything was read from a device since the last look."""
        before, self._blocks = self._blocks, blocks_read()
        return self._blocks != before

    def ask(self, start: int, stop: int) -> None:
        """Ask for bytes, but for what was asked for just before."""
        first, last = self._asked
        if first <= start <= last:
            self._asked = first, max(stop, last)
            start = last
        else:
            self._asked = start, stop
        if start < stop:
            self._region.will_read(start, stop - start)

    def was_read(self, offset: int, nbytes: int, *, gap: int, end: int) -> None:
        """Note a read, and ask for what follows if it was in order with the one before.

        Parameters
        ----------
        offset, nbytes
            What was read.
        gap
            How many bytes a reader in order may leave out.
        end
            Of the array.
        """
        in_order = 0 <= offset - self._next <= gap and self._next >= 0
        self._in_order = self._in_order + 1 if in_order else 1
        self._next = offset + nbytes
        if self._in_order > 1 and self._next < end and self.comes_from_device():
            window = min(config.read_ahead, nbytes << min(self._in_order, 16))
            self.ask(self._next, min(end, self._next + window))

"""What the kernel counts of a piece of work: processor time, bytes written, memory held."""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Meter", "Usage", "device_of", "peak_rss", "reset_peak_rss"]

_PROC = Path("/proc/self")
_SECTOR_BYTES = 512
"""The unit of ``/sys/block/*/stat``, whatever the sectors of the device are."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a piece of work used."""

    seconds: float
    """Wall time."""
    cpu_seconds: float
    """Processor time of all threads of this process, in the kernel too."""
    written_bytes: int | None
    """Bytes that this process caused to be sent to storage (``write_bytes`` of
    ``/proc/self/io``): direct writes, and pages of the page cache when they are first dirtied."""
    device_bytes: int | None
    """Bytes that the device wrote meanwhile, for whomever."""


class Meter:
    """Counts from its making on.

    Parameters
    ----------
    directory
        On the device to be looked at; None to look at none.

    Examples
    --------
    >>> meter = Meter()
    >>> _ = sum(range(100_000))
    >>> used = meter.read()
    >>> used.seconds > 0, used.cpu_seconds > 0, used.device_bytes
    (True, True, None)
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._device = None if directory is None else device_of(directory)
        self._written, self._on_device = _written(), _device_written(self._device)
        self._cpu, self._started = time.process_time(), time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall time since; cheap."""
        return time.perf_counter() - self._started

    def read(self) -> Usage:
        """Say what has been used since."""
        seconds = self.seconds
        cpu_seconds = time.process_time() - self._cpu
        return Usage(
            seconds,
            cpu_seconds,
            _since(self._written, _written()),
            _since(self._on_device, _device_written(self._device)),
        )


def device_of(directory: Path) -> Path | None:
    """Return the entry in ``/sys`` of the block device that a directory is on; None if it has none.

    Memory, network and overlay file systems have none.
    """
    number = os.stat(directory).st_dev
    entry = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    return entry.resolve() if (entry / "stat").exists() else None


def reset_peak_rss() -> None:
    """Start a new count of the peak, where the system has one that can be reset."""
    if sys.platform == "linux":
        (_PROC / "clear_refs").write_text("5")


def peak_rss() -> int | None:
    """Return the most resident memory since the last reset in bytes; None if not known here.

    Not ``getrusage``: its figure survives ``exec`` and so may be that of a parent process.

    Examples
    --------
    >>> import numpy as np
    >>> ballast = np.ones(100_000_000, dtype=np.uint8)
    >>> peak = peak_rss()
    >>> peak is None or peak >= ballast.nbytes
    True
    """
    return _field(_PROC / "status", r"^VmHWM:\s*(\d+) kB$", 1024)


def _written() -> int | None:
    return _field(_PROC / "io", r"^write_bytes: (\d+)$", 1)


def _device_written(device: Path | None) -> int | None:
    if device is None:
        return None
    return int((device / "stat").read_text().split()[6]) * _SECTOR_BYTES


def _field(file: Path, pattern: str, unit: int) -> int | None:
    try:
        found = re.search(pattern, file.read_text(), re.MULTILINE)
    except OSError:  # another system, or a kernel that does not count
        return None
    return int(found[1]) * unit if found else None


def _since(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before

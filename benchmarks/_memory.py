"""Memory that this process holds, as the kernel counts it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

__all__ = ["peak_rss", "reset_peak_rss"]

_PROC = Path("/proc/self")


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
    >>> reset_peak_rss()
    >>> before = peak_rss()
    >>> ballast = np.ones(100_000_000, dtype=np.uint8)
    >>> before is None or peak_rss() - before > 50_000_000
    True
    """
    if sys.platform != "linux":
        return None
    found = re.search(r"^VmHWM:\s*(\d+) kB$", (_PROC / "status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None

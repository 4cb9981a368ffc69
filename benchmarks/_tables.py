"""How figures are printed: rich tables, and what machine they were taken on."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path

from rich.filesize import decimal

__all__ = ["in_bytes", "in_ms", "machine"]


def in_ms(seconds: float) -> str:
    """Write a time in milliseconds, to three digits at most and to 0.01 ms.

    Examples
    --------
    >>> in_ms(0.01234), in_ms(1.8), in_ms(0.00000123)
    ('12.3', '1,800', '0')
    """
    ms = round(seconds * 1e3, 2)
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"


def in_bytes(nbytes: float | None) -> str:
    """Write a number of bytes; a dash for none.

    Examples
    --------
    >>> in_bytes(6_713_000_000), in_bytes(None)
    ('6.7 GB', '-')
    """
    return "-" if nbytes is None else decimal(int(nbytes))


def machine(directory: Path | None = None) -> str:
    """Describe this machine in one line: what a figure depends on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    parts = [
        f"{os.cpu_count()} cores",
        f"{in_bytes(memory)} of memory",
        f"{platform.system()} {platform.release().split('-')[0]}",
        f"Python {platform.python_version()}",
        *(f"{package} {version(package)}" for package in ("numpy", "torch")),
        f"load {os.getloadavg()[0]:.1f}",
    ]
    if directory is not None:
        parts.append(f"{in_bytes(shutil.disk_usage(directory).free)} free in {directory}")
    return ", ".join(parts)

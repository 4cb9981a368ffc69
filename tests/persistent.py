"""Persistent memory where there is none: shared mappings of files, which outlive the process.

The stores, the mappings and the kernel are real; what is missing is MAP_SYNC, and that a power
cut would leave anything. `tests.powercut` has the real thing, `tests.crash` its failures.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pmarray._formats import pool
from pmarray._system import osops
from pmarray.backends.shelf import devices

__all__ = ["MEMORY", "persistent_place", "pretend_dax", "pretend_devices"]

MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""A directory in memory, where there is one."""


@contextmanager
def pretend_dax() -> Iterator[None]:
    """Let every file system take MAP_SYNC."""
    real = osops.map_shared

    def without_sync(*arguments: Any, sync: bool, **options: Any) -> Any:
        return real(*arguments, sync=False, **options)

    osops.map_shared = without_sync
    try:
        yield
    finally:
        osops.map_shared = real


@contextmanager
def pretend_devices(alignment: int = 2 << 20, volatile: str | None = None) -> Iterator[None]:
    """Take files whose names begin with "dax" for devices of their length.

    New pools have units of this alignment. With `volatile`, that is what the devices are.
    """
    real, real_unit_bytes = devices.find_device, pool.MIN_UNIT_BYTES

    def find(path: str) -> devices.Device | None:
        if os.path.basename(path).startswith("dax") and os.path.isfile(path):
            nbytes = os.path.getsize(path) // alignment * alignment
            return devices.Device(path, nbytes, alignment, takes_msync=True, volatile=volatile)
        return real(path)

    devices.find_device, pool.MIN_UNIT_BYTES = find, alignment
    try:
        yield
    finally:
        devices.find_device, pool.MIN_UNIT_BYTES = real, real_unit_bytes


@contextmanager
def persistent_place(kind: str) -> Iterator[str]:
    """Yield the URL of a new place: "shelf", a directory on DAX, or "device", of 256 MiB."""
    with (
        tempfile.TemporaryDirectory(prefix="pmarray-persistent-", dir=MEMORY) as directory,
        pretend_dax(),
        pretend_devices(),
    ):
        if kind == "shelf":
            yield f"shelf:{directory}/group"
        else:
            with open(f"{directory}/dax0.0", "wb") as file:
                file.truncate(256 << 20)
            yield f"shelf:{directory}/dax0.0"

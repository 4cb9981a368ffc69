"""The memory of a volatile DAX device, shared out in units: Memory mode of one's own.

CXL memory and memory that the firmware has set apart come as DAX devices and forget everything at
power-off. What lies on them is `dram:`, only elsewhere: a region is some units of the device,
mapped one behind the other, and grows by more of them. Units are given back when nobody can see
them any more: neither the region nor an array made from one of its mappings.
"""

from __future__ import annotations

import errno
import os
import weakref

import numpy as np
from numpy.typing import NDArray

from pmarray._sizes import format_bytes
from pmarray._system.pmem import Mapping
from pmarray.backends._regions import DRAMRegion
from pmarray.backends.shelf import devices
from pmarray.errors import StorageError, URLError
from pmarray.locks import Lock, RLock

__all__ = ["DeviceMemory", "DeviceRegion", "device_memory"]

_UNIT_BYTES = 2 << 20
_STEP_BYTES = 1 << 30


class _Lease:
    """Units that somebody has; kept alive by the region and by each of its mappings."""

    def __init__(self) -> None:
        self.units: list[int] = []


class DeviceMemory:
    """The units of one device, of which this process has the lock until it ends.

    Parameters
    ----------
    device
        A volatile one.
    """

    def __init__(self, device: devices.Device) -> None:
        self.device = device
        self.unit_bytes = max(_UNIT_BYTES, device.alignment)
        self._free = list(reversed(range(device.nbytes // self.unit_bytes)))
        self._leases: list[tuple[weakref.ref[_Lease], list[int]]] = []
        """Who has units, and which; those of one who is gone are free."""
        self._books = RLock()
        self._lock = device.new_lock()
        self._lock.acquire("unknown")

    def take(self, count: int) -> list[int]:
        """Return units that nobody has, or raise and change nothing."""
        with self._books:
            free = self.free_units
            if count > free:
                raise StorageError(
                    errno.ENOSPC,
                    f"cannot reserve {format_bytes(count * self.unit_bytes)} more, "
                    f"{format_bytes(free * self.unit_bytes)} are free",
                    self.device.path,
                )
            return [self._free.pop() for _ in range(count)]

    def give(self, units: list[int]) -> None:
        """Take units back."""
        with self._books:
            self._free.extend(reversed(units))

    def lease(self) -> _Lease:
        """Return a lease of no units yet."""
        lease = _Lease()
        with self._books:
            self._leases.append((weakref.ref(lease), lease.units))
        return lease

    @property
    def free_units(self) -> int:
        """How many nobody has."""
        with self._books:
            # Looked for, and not told by a finalizer, which an exception of a signal may tear.
            gone = [units for lease, units in self._leases if lease() is None]
            self._leases = [one for one in self._leases if one[0]() is not None]
            for units in gone:
                self._free.extend(reversed(units))
            return len(self._free)

    def abandon(self) -> None:
        """In a forked child: the device is the parent's."""
        self._lock.abandon()


class DeviceRegion(DRAMRegion):
    """Bytes in units of a device."""

    def __init__(self, nbytes: int, owner: DeviceMemory) -> None:
        self._owner = owner
        self._mapping: Mapping | None = None
        self._lease = owner.lease()
        super().__init__(nbytes)

    @property
    def memory(self) -> NDArray[np.uint8]:
        """The bytes themselves."""
        if self._memory is None:
            self._memory = np.empty(0, np.uint8) if self._mapping is None else self._mapping.memory
        return self._memory

    def reserve(self, nbytes: int, /) -> None:
        before = self.capacity
        self.reserve_unfilled(nbytes)
        self.memory[before:] = 0  # somebody else's, or of before the last start

    def reserve_unfilled(self, nbytes: int, /) -> None:
        if nbytes <= self.capacity:
            return
        unit = self._owner.unit_bytes
        generous = max(nbytes, self.capacity + min(self.capacity // 2, _STEP_BYTES))
        have = len(self._lease.units)
        try:
            units = self._owner.take(-(-generous // unit) - have)
        except StorageError:
            units = self._owner.take(-(-nbytes // unit) - have)
        pieces = [(i * unit, unit) for i in [*self._lease.units, *units]]
        try:
            mapping = self._owner.device.map(pieces, write=True)
        except OSError as error:
            self._owner.give(units)
            raise StorageError(
                error.errno, f"cannot map: {error.strerror}", self._owner.device.path
            ) from error
        self._lease.units.extend(units)
        mapping.lease = self._lease  # old arrays keep their mapping, and it the units
        self._mapping, self._memory = mapping, None
        self.capacity = len(pieces) * unit

    def release(self) -> None:
        self._mapping = self._memory = None
        self._lease = self._owner.lease()
        self.capacity = 0


_MEMORIES: dict[str, DeviceMemory] = {}
_OPENING = Lock()


def device_memory(path: str) -> DeviceMemory:
    """Return the memory of the device at a path.

    Raises
    ------
    URLError
        There is no such device, or it keeps what is stored to it.
    """
    with _OPENING:
        found = _MEMORIES.get(path)
        if found is None:
            device = devices.find_device(path)
            if device is None:
                raise URLError(f"there is no DAX device at {path}")
            if device.volatile is None:
                raise URLError(
                    f"{path} is persistent memory, whose contents would be overwritten: "
                    f"shelf:{path} keeps what is stored there"
                )
            found = _MEMORIES[path] = DeviceMemory(device)
        return found


def _forget_in_child() -> None:
    for memory in _MEMORIES.values():
        memory.abandon()
    _MEMORIES.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)

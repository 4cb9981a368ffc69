"""DAX devices, such as ``/dev/dax0.0``: what they are, and the lock of their one writer.

A device cannot be read, written, truncated or synced by system calls; it is mapped. Its length is
not to be had from `stat` either: it stands in sysfs, with the alignment that mappings need.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pmarray._system import osops, pmem
from pmarray._system.lockfile import locked_by
from pmarray._system.uninterrupted import uninterrupted
from pmarray.errors import StorageError, URLError

__all__ = ["Device", "DeviceLock", "find_device"]

_SYSFS_ROOT = "/sys"
_SYSFS = f"{_SYSFS_ROOT}/dev/char"


@dataclass(frozen=True, slots=True)
class Device:
    """A device that is mapped."""

    path: str
    nbytes: int
    """A multiple of the alignment."""
    alignment: int
    """Of offsets and lengths of mappings, in bytes."""
    takes_msync: bool = False
    """Whether the kernel can make stores durable; without, only libpmem can."""
    volatile: str | None = None
    """What it is if it forgets everything at power-off; None for persistent memory."""
    is_ours: ClassVar[bool] = False

    def map(self, pieces: Sequence[tuple[int, int]], *, write: bool) -> pmem.Mapping:
        """Map offsets and lengths one behind the other."""
        # A reader does so when a writer has replaced the directory, on whatever thread it reads.
        return uninterrupted(lambda: self._map(pieces, write=write))

    def _map(self, pieces: Sequence[tuple[int, int]], *, write: bool) -> pmem.Mapping:
        fd = osops.open_device(self.path, write=write)
        try:
            return osops.map_shared(
                fd,
                pieces,
                write=write,
                sync=False,  # there is no file system that would have books to keep
                alignment=self.alignment,
            )
        finally:
            osops.close(fd)

    def check_writable(self) -> None:
        """Raise where stores could not be made durable."""
        if not self.takes_msync and pmem.libpmem() is None:
            raise StorageError(
                None,
                "libpmem is not installed, and nothing else makes stores to a device durable: "
                "install it (Debian: apt install libpmem1), or open with mode='r'",
                self.path,
            )

    def new_lock(self) -> DeviceLock:
        """Return a lock on it that is not taken yet."""
        return DeviceLock(self.path)


def find_device(path: str) -> Device | None:
    """Return the DAX device at a path; None where something else is, or nothing.

    Raises
    ------
    URLError
        It is a device of another kind.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    if stat.S_ISBLK(found.st_mode):
        raise URLError(
            f"{path} is a block device: make a file system on it and mount that with -o dax=always "
            "(shelf:/mnt/pmem0), or reconfigure its namespace as devdax (ndctl create-namespace)"
        )
    if not stat.S_ISCHR(found.st_mode):
        return None
    place = f"{_SYSFS}/{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    if os.path.basename(os.path.realpath(f"{place}/subsystem")) != "dax":
        raise URLError(f"{path} is a device, but not one of persistent memory")
    alignment = _number(f"{place}/align")
    nbytes = _number(f"{place}/size") // alignment * alignment
    return Device(path, nbytes, alignment, volatile=_volatile(os.path.realpath(place)))


def _volatile(place: str) -> str | None:
    """Say what a device is that forgets everything at power-off, by what it hangs on in sysfs.

    The driver of NVDIMMs, which those of CXL go through too, promises persistence. What other
    drivers make into DAX devices is memory like any other, only set apart.
    """
    while place.startswith(f"{os.path.realpath(_SYSFS_ROOT)}/"):
        bus = os.path.basename(os.path.realpath(f"{place}/subsystem"))
        if bus == "nd":
            return None
        if bus == "cxl":
            return "CXL memory (RAM)"
        if bus == "platform" and os.path.basename(place).startswith("hmem"):
            return "memory that the firmware has set apart (hmem)"
        place = os.path.dirname(place)
    return "memory of a kind that the kernel does not call persistent"


def _number(path: str) -> int:
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError) as error:
        code = error.errno if isinstance(error, OSError) else None
        raise StorageError(code, f"cannot read what the kernel says of the device: {error}") from (
            error
        )


class DeviceLock:
    """The lock on a device, which says who has it by a note that the caller keeps."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """Whether this handle holds it."""
        return self._fd is not None

    def acquire(self, holder: str) -> None:
        """Take it, or raise `GroupLockedError`, which names the `holder`."""
        try:
            fd = osops.open_device(self._path, write=True)
        except OSError as error:
            raise StorageError(error.errno, f"cannot open: {error.strerror}", self._path) from error
        try:
            osops.lock(fd, exclusive=True)
        except (BlockingIOError, PermissionError) as error:
            osops.close(fd)
            raise locked_by(self._path, holder) from error
        except OSError as error:
            osops.close(fd)
            raise StorageError(error.errno, f"cannot lock: {error.strerror}", self._path) from error
        self._fd = fd

    def release(self) -> None:
        """Give it up, if it is held."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            try:
                osops.unlock(fd)
            finally:
                osops.close(fd)
        except OSError as error:
            raise StorageError(
                error.errno, f"cannot unlock: {error.strerror}", self._path
            ) from error

    def abandon(self) -> None:
        """In a forked child: close the copy, and do not unlock, which would unlock the parent's."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

"""The lock file of a group: one writer, and who it is."""

from __future__ import annotations

import errno
import os

from pmarray._system import osops
from pmarray._system.beneath import status
from pmarray._system.counter import advance
from pmarray._system.files import write_fully
from pmarray.errors import GroupLockedError, LockLostError, StorageError

__all__ = ["OWNER_BYTES", "LockFile", "locked_by", "owner", "owner_note", "read_owner"]

OWNER_BYTES = 64
"""What the name of an owner takes in a file."""


def owner() -> str:
    """The name of this process: its number, and where that counts.

    In containers, all programs may have the same number.
    """
    return f"{os.getpid()} on {os.uname().nodename}"[: OWNER_BYTES - 1]


def owner_note() -> bytes:
    """The same as a line in a file."""
    return owner().encode("ascii", "replace").ljust(OWNER_BYTES - 1) + b"\n"


def read_owner(noted: bytes) -> str:
    """The name in the first bytes of a file, or "unknown"."""
    text = noted[:OWNER_BYTES].decode("ascii", "replace").rstrip("\0").strip()
    return text if text[:1].isdigit() and text.isprintable() else "unknown"


def locked_by(where: str, holder: str) -> GroupLockedError:
    """The error of a group that is being written to, by the process of that name (`owner`)."""
    if holder != owner():
        what = f"is being written to by process {holder}; wait for it"
    else:
        what = (
            "is open for writing in this process already; close that handle, which a variable of "
            "an earlier notebook cell may hold"
        )
    return GroupLockedError(f"{where} {what}, or open with mode='r'")


class LockFile:
    """A lock on a file, which holds the name of its owner.

    Taking it: the file is made where it is missing, then locked; and since the last owner may
    remove it at the end (`release` with `remove`), it is looked at again whether the file that
    was locked is still the one that has the name.
    """

    def __init__(self, path: str, group: str) -> None:
        self.path = path
        self._group = group
        self._fd: int | None = None
        self._identity: tuple[int, int] | None = None
        """Of the file that is locked: device and inode."""
        self._shared = False

    @property
    def held(self) -> bool:
        """Whether this handle holds it."""
        return self._fd is not None

    def acquire(self, *, shared: bool = False) -> bool:
        """Take the lock, or raise `GroupLockedError`, which names the owner.

        A shared one keeps out who wants it for himself. Returns whether the file had to be made.
        """
        self._shared = shared
        while True:
            fd, made = self._open_locked()
            found = os.fstat(fd)
            self._identity = found.st_dev, found.st_ino
            if self._is_in_place():
                break
            osops.close(fd)
        try:
            write_fully(fd, [memoryview(owner_note())], 0, path=self.path)
        except BaseException:
            osops.close(fd)  # and nobody has it
            raise
        self._fd = fd
        return made

    def advance(self) -> None:
        """Tell readers that something is about to change under them; see `_system.counter`."""
        assert self._fd is not None
        try:
            advance(self._fd)
        except OSError as error:
            raise StorageError(error.errno, f"cannot write: {error.strerror}", self.path) from error

    def _is_in_place(self) -> bool:
        """Whether the file that is locked is still the one that has the name."""
        found = status(self.path)
        return found is not None and (found.st_dev, found.st_ino) == self._identity

    def refuse_lost(self) -> None:
        """Raise `LockLostError` if the lock keeps nobody out any more."""
        if self._fd is not None and not self._is_in_place():
            raise LockLostError(
                errno.ESTALE,
                "the lock file was removed or replaced while this writer had it, so that another "
                "one may be at work: nothing more is written; close the group, and open it again",
                self.path,
            )

    def _open_locked(self) -> tuple[int, bool]:
        made = True
        try:
            try:
                fd = osops.open_file(self.path, write=True, create=True)
            except FileExistsError:
                made = False
                fd = osops.open_file(self.path, write=True)
        except OSError as error:
            raise StorageError(error.errno, f"cannot open: {error.strerror}", self.path) from error
        try:
            osops.lock(fd, exclusive=not self._shared)
        except (BlockingIOError, PermissionError) as error:
            holder = read_owner(os.pread(fd, OWNER_BYTES, 0))
            osops.close(fd)
            raise locked_by(self._group, holder) from error
        except OSError as error:
            osops.close(fd)
            raise StorageError(error.errno, f"cannot lock: {error.strerror}", self.path) from error
        return fd, made

    def release(self, *, remove: bool = False) -> None:
        """Give the lock up, if it is held; the file goes when the last of several does so."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            try:
                if remove and self._is_in_place() and self._is_alone(fd):
                    osops.unlink(self.path)
                osops.unlock(fd)
            finally:
                osops.close(fd)
        except OSError as error:
            raise StorageError(
                error.errno, f"cannot unlock: {error.strerror}", self.path
            ) from error

    def _is_alone(self, fd: int) -> bool:
        if self._shared:
            try:
                osops.lock(fd, exclusive=True)
            except (BlockingIOError, PermissionError):
                return False
        return True

    def abandon(self) -> None:
        """In a forked child: close the copy, and do not unlock, which would unlock the parent's."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

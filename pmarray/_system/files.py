"""Whole reads and writes of files, over the single system calls of `_system.osops`."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from pmarray._geometry.layout import BLOCK_BYTES
from pmarray._system import osops
from pmarray._system.beneath import Below, open_path, status
from pmarray.errors import DamagedError, PoisonedError, StorageError

__all__ = [
    "MAX_UNBACKED_BYTES",
    "MIN_BACKED",
    "barrier",
    "keep_access",
    "make_directories",
    "occupied_nbytes",
    "read_file",
    "read_fully",
    "replace_durably",
    "write_fully",
]

_MAX_IOV = 1000  # IOV_MAX is 1024 on Linux
_MAX_CALL_BYTES = 1 << 30
# A file may be all holes. Up to this size it is read all the same; beyond, it has to have blocks
# for a tenth of what it is to take in memory, which is what file systems that compress may save.
MAX_UNBACKED_BYTES = 64 << 20
MIN_BACKED = 10
_STAT_BLOCK_BYTES = 512


_ACL = "system.posix_acl_access"


def occupied_nbytes(path: str) -> int:
    """Return the bytes that a file occupies on its medium; 0 where there is none."""
    found = status(path)
    return 0 if found is None else found.st_blocks * _STAT_BLOCK_BYTES


def keep_access(path: str, fd: int) -> None:
    """Let who may use the file `path` use `fd`, which is about to take its place.

    What this process may not give away stays its own.
    """
    old, new = status(path), os.fstat(fd)
    if old is None:
        return
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        for user in (old.st_uid, -1):  # only root can change the first, members of a group that
            try:
                osops.chown(fd, user, old.st_gid)
                break
            except PermissionError:
                continue
    mode = stat.S_IMODE(old.st_mode)
    if os.fstat(fd).st_gid != old.st_gid:
        mode &= ~stat.S_IRWXG  # which were another group's
    if mode != stat.S_IMODE(new.st_mode):
        osops.chmod(fd, mode)
    if hasattr(os, "getxattr"):
        try:
            source = open_path(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                osops.setxattr(fd, _ACL, os.getxattr(source, _ACL))
            finally:
                os.close(source)
        except PermissionError:
            pass  # what may not be read is replaced by what its writer may make
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM):
                raise


def write_fully(fd: int, buffers: Sequence[memoryview], offset: int, *, path: str) -> None:
    """Write all of `buffers` at `offset`, however many calls it takes."""
    pending = [buffer for buffer in buffers if buffer.nbytes]
    while pending:
        try:
            done = osops.pwritev(fd, pending[:_MAX_IOV], offset)
        except InterruptedError:
            continue
        except OSError as error:
            raise StorageError(error.errno, f"cannot write: {error.strerror}", path) from error
        if done == 0:
            raise StorageError(errno.EIO, "cannot write: the system took no bytes", path)
        # What was cut short goes on from a whole block, as direct I/O needs it; some bytes of it
        # may be written twice.
        if done < sum(buffer.nbytes for buffer in pending[:_MAX_IOV]):
            done = done // BLOCK_BYTES * BLOCK_BYTES or done
        offset += done
        while pending and done >= pending[0].nbytes:
            done -= pending.pop(0).nbytes
        if done:
            pending[0] = pending[0][done:]


def read_fully(fd: int, out: memoryview, offset: int, *, path: str) -> None:
    """Fill `out` from `offset` on.

    Raises
    ------
    DamagedError
        The file ends before that.
    StorageError
        The medium cannot be read.
    """
    while out.nbytes:
        try:
            done = os.preadv(fd, [out[:_MAX_CALL_BYTES]], offset)
        except InterruptedError:
            continue
        except OSError as error:
            raise StorageError(error.errno, f"cannot read: {error.strerror}", path) from error
        if done == 0:
            raise DamagedError(f"{path} is truncated: it ends at byte {offset}, more is expected")
        out = out[done:]
        offset += done


def read_file(path: str, at_most: int | None = None) -> bytes:
    """Return the contents of a file, or their first bytes.

    Raises
    ------
    OSError
        As `_system.osops.open_file` does.
    DamagedError
        It claims to be so long that it must be all holes.
    StorageError
        The medium cannot be read.
    """
    fd = osops.open_file(path)
    try:
        found = os.fstat(fd)
        nbytes = found.st_size if at_most is None else min(found.st_size, at_most)
        backed = found.st_blocks * _STAT_BLOCK_BYTES
        if nbytes > max(MAX_UNBACKED_BYTES, backed * MIN_BACKED):
            raise DamagedError(f"{path} has {nbytes} bytes, and the medium holds {backed} of them")
        return _read_whole(fd, nbytes, path)
    finally:
        osops.close(fd)


def _read_whole(fd: int, nbytes: int, path: str) -> bytes:
    try:
        # In one call there is no second copy, but the system may end it early.
        data = os.pread(fd, min(nbytes, _MAX_CALL_BYTES), 0)
    except OSError as error:
        raise StorageError(error.errno, f"cannot read: {error.strerror}", path) from error
    if len(data) == nbytes:
        return data
    pieces = bytearray(nbytes)
    read_fully(fd, memoryview(pieces), 0, path=path)
    return bytes(pieces)


def barrier(fd: int, *, path: str) -> None:
    """Return when what was written to `fd` is durable; a failure is final."""
    try:
        osops.fdatasync(fd)
    except OSError as error:
        raise PoisonedError(
            error.errno,
            f"a barrier failed ({error.strerror}): what was written since the last flush may be "
            "lost; close the group, repair the medium and open it again",
            path,
        ) from error


def make_directories(path: str) -> None:
    """Make a directory with its parents, where they are missing, and return when they are durable.

    Raises
    ------
    StorageError
        One cannot be made.
    """
    missing: list[str] = []
    above = os.path.abspath(path)
    while not os.path.isdir(above):
        missing.append(above)
        above = os.path.dirname(above)
    try:
        for one in reversed(missing):
            try:
                osops.mkdir(one)
            except FileExistsError:
                if not os.path.isdir(one):
                    raise  # else another process was faster
        for one in missing:
            osops.fsync_directory(os.path.dirname(one))
    except OSError as error:
        text = f"cannot make a directory: {error.strerror}"
        raise StorageError(error.errno, text, path) from error


def replace_durably(path: str, data: bytes) -> None:
    """Replace the contents of `path` in one step that survives a power cut.

    1. Write the new contents to a temporary file beside it, for those who may use the old one.
    2. Make that file durable.
    3. Rename it over the old one.
    4. Make the directory durable.

    Before step 3 is durable the old contents stand, after it the new; never a mixture. A
    temporary file that a crash leaves behind is overwritten by the next attempt.

    Raises
    ------
    StorageError
        Up to step 3: the old contents stand, and it may be tried again.
    PoisonedError
        At step 4: a power cut may leave either.
    """
    temporary = path + ".new"
    directory = path.parent if isinstance(path, Below) else os.path.dirname(path) or "."
    try:
        if status(temporary) is not None:
            osops.unlink(temporary)
        fd = osops.open_file(temporary, write=True, create=True)  # 1
        try:
            write_fully(fd, [memoryview(data)], 0, path=temporary)
            keep_access(path, fd)
            osops.fsync(fd)  # 2
        finally:
            osops.close(fd)
        osops.rename(temporary, path)  # 3
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(error.errno, f"cannot replace: {error.strerror}", path) from error
    try:
        osops.fsync_directory(directory)  # 4
    except OSError as error:
        raise PoisonedError(
            error.errno,
            f"a barrier failed ({error.strerror}): whether the new metadata stand is unknown until "
            "the group is opened again; close it and repair the medium",
            path,
        ) from error

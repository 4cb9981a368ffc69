"""Everything by which the library changes a file system or persistent memory.

The rest of the package calls these functions as ``osops.pwritev(...)``, through the module,
and calls nothing else that writes. One seam serves three masters: the simulated disk of the
crash rig records what passes here and builds the images a power cut could leave, the fault
injector makes any call fail, and a reader who asks "what does this library do to my disk" has
one page to read.

Persistent memory has two functions of its own, `store` and `persist`; NumPy may store to what
`map_shared` has mapped, too, and what it has stored is durable after `persist`.

Each other function is one system call and has its semantics: `pwritev` may write less than it was
given and raises `InterruptedError` only where Python does. Loops, retries and alignment are the
caller's business (`_system.files`). A path that is `Below` a directory is resolved from there, and
through no link (`_system.beneath`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pmarray._system import pmem
from pmarray._system.beneath import directory_of, open_path

__all__ = [
    "chmod",
    "chown",
    "close",
    "count",
    "fallocate",
    "fdatasync",
    "fsync",
    "fsync_directory",
    "ftruncate",
    "link",
    "lock",
    "map_again",
    "map_shared",
    "mkdir",
    "open_device",
    "open_file",
    "open_nameless",
    "persist",
    "pwritev",
    "rename",
    "rmdir",
    "setxattr",
    "store",
    "symlink",
    "temporary_directory",
    "unlink",
    "unlock",
]

_DIRECT = getattr(os, "O_DIRECT", 0)
# Open-file-description locks belong to the handle, not to the process: a second handle in the
# same process is shut out too, and closing an unrelated handle of the file does not drop them.
_OFD_SETLK = getattr(fcntl, "F_OFD_SETLK", 37)


def open_file(path: str, *, write: bool = False, create: bool = False, direct: bool = False) -> int:
    """Open `path` and return a descriptor; `create` makes a new file and fails if it exists.

    It is a regular file, or an error: a FIFO would make whoever opens it wait for ever, and a
    device has bytes without end.
    """
    # Of what is no regular file, nothing is waited for.
    flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    if create:
        flags |= os.O_CREAT | os.O_EXCL
    if direct:
        flags |= _DIRECT
    fd = open_path(path, flags, 0o666)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            raise OSError(errno.ENXIO, f"{_KINDS[stat.S_IFMT(mode)]}, and no regular file", path)
    except BaseException:
        os.close(fd)
        raise
    return fd


_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_device(path: str, *, write: bool = False) -> int:
    """Open a device, which is to be mapped, and return a descriptor."""
    return os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)


def open_nameless(directory: str, *, direct: bool = False) -> int:
    """Make a file without a name, for reading and writing; it is gone when it is closed."""
    flags = os.O_RDWR | os.O_CLOEXEC | (_DIRECT if direct else 0)
    try:
        return os.open(directory, flags | getattr(os, "O_TMPFILE", 0), 0o600)
    except OSError as error:
        if direct or error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    import tempfile  # it brings a dozen modules along, and is hardly ever needed

    # A file system without such files: the name is there for an instant.
    fd, path = tempfile.mkstemp(dir=directory)
    os.unlink(path)
    return fd


def temporary_directory() -> str:
    """Return the system's place for temporary files."""
    import tempfile

    return tempfile.gettempdir()


def close(fd: int) -> None:
    """Close `fd`; an error here can be the report of a failed write (NFS, quota)."""
    os.close(fd)


def chmod(fd: int, mode: int) -> None:
    """Set the permission bits of `fd`."""
    os.fchmod(fd, mode)


def chown(fd: int, user: int, group: int) -> None:
    """Give `fd` to a user and a group."""
    os.fchown(fd, user, group)


def setxattr(fd: int, name: str, value: bytes) -> None:
    """Set an extended attribute of `fd`, such as its access control list."""
    os.setxattr(fd, name, value)


def pwritev(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
    """Write `buffers` one after another at `offset`; return the number of bytes written."""
    return os.pwritev(fd, buffers, offset)


def count(fd: int, value: int, offset: int) -> None:
    """Store a number of 8 bytes, for processes that run; it need not survive a power cut."""
    os.pwrite(fd, value.to_bytes(8, sys.byteorder), offset)


def fdatasync(fd: int) -> None:
    """Make the data of `fd`, and the metadata needed to read it back, durable."""
    os.fdatasync(fd)


def fsync(fd: int) -> None:
    """Make the data and all metadata of `fd` durable."""
    os.fsync(fd)


def fsync_directory(path: str) -> None:
    """Make the entries of the directory `path` durable."""
    fd = open_path(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def ftruncate(fd: int, nbytes: int) -> None:
    """Set the length of `fd`; bytes beyond the old length read as zeros."""
    os.ftruncate(fd, nbytes)


def fallocate(fd: int, offset: int, nbytes: int) -> None:
    """Reserve space, so that a full disk is an `OSError` now and not a bus error later.

    The file is extended where `offset + nbytes` lies beyond its end; new bytes read as zeros.
    """
    os.posix_fallocate(fd, offset, nbytes)


def rename(source: str, target: str) -> None:
    """Replace `target` by `source` in one step; durable after `fsync_directory`."""
    with directory_of(source) as (old, source_name), directory_of(target) as (new, target_name):
        os.rename(source_name, target_name, src_dir_fd=old, dst_dir_fd=new)


def link(source: str, target: str) -> None:
    """Give the file `source` a second name; durable after `fsync_directory`."""
    with directory_of(source) as (old, source_name), directory_of(target) as (new, target_name):
        os.link(source_name, target_name, src_dir_fd=old, dst_dir_fd=new, follow_symlinks=False)


def symlink(target: str, path: str) -> None:
    """Create `path` as a symbolic link to `target`; durable after `fsync_directory`."""
    with directory_of(path) as (fd, name):
        os.symlink(target, name, dir_fd=fd)


def unlink(path: str) -> None:
    """Remove the entry `path`; durable after `fsync_directory`."""
    with directory_of(path) as (fd, name):
        os.unlink(name, dir_fd=fd)


def mkdir(path: str) -> None:
    """Create a directory; durable after `fsync_directory` of its parent."""
    with directory_of(path) as (fd, name):
        os.mkdir(name, dir_fd=fd)


def rmdir(path: str) -> None:
    """Remove an empty directory; durable after `fsync_directory` of its parent."""
    with directory_of(path) as (fd, name):
        os.rmdir(name, dir_fd=fd)


def map_shared(
    fd: int,
    pieces: Sequence[tuple[int, int]],
    *,
    write: bool,
    sync: bool,
    alignment: int = pmem.PAGE_BYTES,
) -> pmem.Mapping:
    """Map offsets and lengths of `fd` one behind the other; see `_system.pmem.map_pieces`."""
    return pmem.map_pieces(fd, pieces, write=write, sync=sync, alignment=alignment)


def map_again(start: int, pieces: Sequence[tuple[int, int]], *, write: bool) -> pmem.Mapping:
    """Map pieces of the shared memory at `start` once more; see `_system.pmem.map_again`."""
    return pmem.map_again(start, pieces, write=write)


def store(memory: NDArray[np.uint8], data: NDArray[np.uint8]) -> None:
    """Copy bytes to persistent memory of the same size; durable on return, 8 bytes at a time."""
    pmem.copy_and_persist(memory, data)


def persist(memory: NDArray[np.uint8]) -> None:
    """Return when what anyone has stored to this persistent memory is durable."""
    pmem.persist(memory)


def lock(fd: int, *, exclusive: bool, start: int = 0, nbytes: int = 0) -> None:
    """Take an open-file-description lock of `fd`; `BlockingIOError` if another handle has it.

    Of bytes that need not exist; of all of them unless told.
    """
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    fcntl.fcntl(fd, _OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, start, nbytes, 0))


def unlock(fd: int) -> None:
    """Release the lock of `fd` for every descriptor that shares its open file description."""
    fcntl.fcntl(fd, _OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))

"""Names below a directory that a stranger may have made.

A directory is reached as its user says, through symbolic links if there are any. Below it, none is
followed and nothing leads out: a name is resolved from the directory, one component after another,
by the kernel where it can do that in one call (``openat2``, Linux 5.6), by `_open_by_steps`
elsewhere. What a group reads and writes there are regular files, so that neither a FIFO can make a
program wait for ever, nor a device give it bytes without end.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Self

from pmarray._formats.names import is_name
from pmarray.errors import DamagedError, StorageError

__all__ = [
    "Below",
    "directory_of",
    "entries",
    "exists",
    "glance",
    "is_directory",
    "open_path",
    "status",
    "walk",
]

_O_PATH = getattr(os, "O_PATH", os.O_RDONLY)
_DIRECTORY = _O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_SYS_OPENAT2 = 437  # on every architecture but Alpha
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08


class Below(str):
    """A path below a directory, which `open_path` and `_system.osops` resolve from there.

    It is the whole path as a string, too, for messages. Parts are appended by ``/``, a suffix by
    ``+``; `os.path` functions return strings that are not protected any more.

    Raises
    ------
    DamagedError
        A name is none, or leads elsewhere.

    Examples
    --------
    >>> path = Below("/data/run") / "x/c/0"
    >>> path, path.parent, path + ".new"
    ('/data/run/x/c/0', '/data/run/x/c', '/data/run/x/c/0.new')
    >>> Below("/data/run") / "../home"
    Traceback (most recent call last):
        ...
    pmarray.errors.DamagedError: '../home' is no name below /data/run
    """

    root: str
    """The directory, which is trusted."""
    names: tuple[str, ...]
    """The components of the rest."""

    def __new__(cls, root: str, names: Sequence[str] = ()) -> Self:
        for name in names:
            if not is_name(name):
                raise DamagedError(f"{'/'.join(names)!r} is no name below {root}")
        result = super().__new__(cls, "/".join([root.rstrip("/") or "/", *names]))
        result.root, result.names = root, tuple(names)
        return result

    def __truediv__(self, names: str) -> Self:
        return type(self)(self.root, [*self.names, *names.split("/")])

    def __add__(self, suffix: str) -> Self:
        return type(self)(self.root, [*self.names[:-1], self.names[-1] + suffix])

    @property
    def name(self) -> str:
        """The last component."""
        return self.names[-1]

    @property
    def parent(self) -> Self:
        """The directory that it is in."""
        return type(self)(self.root, self.names[:-1])


def open_path(path: str, flags: int, mode: int = 0) -> int:
    """Open a path as `os.open` does; if it is `Below` a directory, from there."""
    if not isinstance(path, Below) or not path.names:
        return os.open(path, flags, mode)
    try:
        if len(path.names) == 1:
            return _open_step(None, path, flags, mode)
        root = os.open(path.root, _DIRECTORY)
        try:
            if _has_openat2():
                return _openat2(root, "/".join(path.names), flags, mode)
            return _open_by_steps(root, path.names, flags, mode)
        finally:
            os.close(root)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(
                error.errno, "a symbolic link, and none is followed inside a group", str(path)
            ) from None
        error.filename = str(path)
        raise


@contextmanager
def directory_of(path: str) -> Iterator[tuple[int | None, str]]:
    """Return what the calls of `os` that take ``dir_fd=`` need to reach an entry.

    None and the path itself if it is in the directory that is trusted, or not `Below` any. These
    calls do not follow the entry itself.
    """
    if not isinstance(path, Below) or len(path.names) < 2:
        yield None, path
        return
    fd = open_path(path.parent, _DIRECTORY)
    try:
        yield fd, path.name
    finally:
        os.close(fd)


def status(path: str) -> os.stat_result | None:
    """Return what `os.lstat` does, or None where nothing has that name.

    Raises
    ------
    StorageError
        It cannot be looked at, which is not the same as missing.
    """
    try:
        followed = not isinstance(path, Below) or not path.names
        with directory_of(path) as (fd, name):
            return os.stat(name, dir_fd=fd, follow_symlinks=followed)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(error.errno, f"cannot look at: {error.strerror}", str(path)) from error


def glance(path: str) -> os.stat_result | None:
    """The same in one call, which follows links on the way: to see whether something has changed.

    Nothing that is found there may be read, or trusted.
    """
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(error.errno, f"cannot look at: {error.strerror}", str(path)) from error


def exists(path: str) -> bool:
    """Whether anything has that name; raises where that cannot be found out."""
    return status(path) is not None


def is_directory(path: str) -> bool:
    """Whether a directory has that name, and no link to one."""
    found = status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def entries(path: str) -> list[str]:
    """Return the names in a directory, sorted.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        There is none of that name.
    StorageError
        It cannot be looked at.
    """
    try:
        fd = open_path(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise StorageError(error.errno, f"cannot look at: {error.strerror}", str(path)) from error


def walk(path: Below) -> Iterator[tuple[Below, list[str]]]:
    """Yield each directory below one, itself the last, with all in it that is no directory."""
    others = []
    for name in entries(path):
        if is_directory(path / name):
            yield from walk(path / name)
        else:
            others.append(name)
    yield path, others


class _How(ctypes.Structure):
    """``struct open_how``."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


@cache
def _syscall() -> ctypes._NamedFuncPointer:
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    call.argtypes = [
        ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t,
    ]  # fmt: skip
    return call


@cache
def _has_openat2() -> bool:
    """Whether the kernel has it, and whatever filters system calls lets it through."""
    try:
        root = os.open("/", _DIRECTORY)
        try:
            os.close(_openat2(root, ".", _DIRECTORY, 0))
        finally:
            os.close(root)
    except (OSError, AttributeError):
        return False
    return True


def _openat2(root: int, names: str, flags: int, mode: int) -> int:
    how = _How(flags, mode if flags & os.O_CREAT else 0, _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH)
    while True:
        fd = _syscall()(
            _SYS_OPENAT2, root, os.fsencode(names), ctypes.addressof(how), ctypes.sizeof(how)
        )
        if fd >= 0:
            return int(fd)
        code = ctypes.get_errno()
        if code not in (errno.EINTR, errno.EAGAIN):  # EAGAIN: a directory was moved meanwhile
            raise OSError(code, os.strerror(code))


def _open_by_steps(root: int, names: Sequence[str], flags: int, mode: int) -> int:
    """The same by one `os.open` a component, which takes no link for a directory or a file."""
    here = os.dup(root)
    try:
        for name in names[:-1]:
            below = _open_step(here, name, _DIRECTORY, 0)
            os.close(here)
            here = below
        return _open_step(here, names[-1], flags, mode)
    finally:
        os.close(here)


def _open_step(here: int | None, name: str, flags: int, mode: int) -> int:
    try:
        return os.open(name, flags | os.O_NOFOLLOW, mode, dir_fd=here)
    except NotADirectoryError:
        if stat.S_ISLNK(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
        raise

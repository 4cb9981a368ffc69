"""IBM's PyMM as a medium: one shelf in a directory, and in it one array, which holds a pool.

PyMM is met with care, for it aborts the process where others raise:

- An array for which there is no room gets the address 0; a store through it, and erasing it, is a
  SIGSEGV, and the shelf cannot be opened any more. Nor does PyMM say how much room there is: its
  heap gives less than the shelf has, in steps. So a shelf gets a single array when it is made, of
  a size that was measured to fit; what goes where in it is our own business (`_formats.pool`), and
  so are transactions, which PyMM's do not roll back.
- Opening a shelf in a directory of which another process has one is an abort, until that process
  ends, whether it has closed the shelf or not. So we lock the directory first, and as long.
- A shelf is mapped at an address that it keeps. Two at one address are one memory, and two of one
  name, in whatever directories, are a SIGSEGV. So both are drawn at random, and compared with
  those that the process has.
- Each new array takes references of None that it does not have; they are given back.
- It prints from Python and from C; it is silenced.
- Its memory is not there after a fork; the groups of the parent are closed in the child.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import importlib.util
import io
import os
import secrets
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pmarray._sizes import format_bytes
from pmarray._system import osops, pmem
from pmarray._system.beneath import Below, status
from pmarray._system.files import make_directories, read_file
from pmarray._system.lockfile import LockFile, locked_by, owner
from pmarray.errors import DamagedError, GroupLockedError, StorageError, URLError
from pmarray.locks import Lock, RLock

__all__ = ["Arena", "holds_shelf", "is_installed", "open_shelf", "why_not"]

_PREFIX = "pmarray-"
_ARRAY = "pmarray_pool"
_LOCK = "pmarray.lock"
_UNIT = 2 << 20
_MIN_SHELF_BYTES = 128 << 20
_SPARE_BYTES = 260 << 20
_SMALL_BYTES = 384 << 20
_SMALL_ARENA_BYTES = 120 << 20
# Where a process of Linux on x86-64 has nothing of its own.
_ADDRESSES = (0x1000_0000_0000, 0x5000_0000_0000)
_ADDRESS_STEP = 1 << 30
_LOST_REFERENCES = 8
_MAX_MAP_BYTES = 4096
_OFD_GETLK = getattr(fcntl, "F_OFD_GETLK", 36)


def why_not() -> str | None:
    """Say why PyMM cannot be used here; None if it can."""
    try:
        spec = importlib.util.find_spec("pymm")
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return "the package pymm, IBM's Python Memory Management, is not installed"
    # Asked of the files: importing a stranger is not for us.
    places = spec.submodule_search_locations or []
    if not any(os.path.exists(os.path.join(place, "shelf.py")) for place in places):
        return (
            "the package pymm that is installed is not IBM's Python Memory Management: it has no "
            "shelf (the one on PyPI is a user interface for microscopes)"
        )
    return None


def is_installed() -> bool:
    """Whether the real PyMM can be imported."""
    return why_not() is None


def holds_shelf(directory: str) -> bool:
    """Whether a shelf of ours is in a directory; nothing in it is opened."""
    return bool(_shelves(directory))


def _shelves(directory: str) -> list[str]:
    try:
        entries = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(
        entry.removesuffix(".data")
        for entry in entries
        if entry.startswith(_PREFIX) and entry.endswith(".data")
    )


def arena_bytes(shelf_bytes: int) -> int:
    """Return how large an array fits into a shelf of a size, as measured from 128 MiB to 4 GiB.

    >>> [arena_bytes(n << 20) >> 20 for n in (128, 256, 512, 4096)]
    [120, 120, 252, 3836]
    """
    usable = shelf_bytes - _SPARE_BYTES if shelf_bytes >= _SMALL_BYTES else _SMALL_ARENA_BYTES
    return usable // _UNIT * _UNIT


@dataclass(eq=False)
class Arena:
    """The array of a shelf, as a medium for a pool."""

    path: str
    """The directory."""
    start: int
    """Its first whole page, as an address."""
    nbytes: int
    """Whole units from there on."""
    array: NDArray[np.uint8]
    """The array itself, as PyMM has it."""
    alignment: ClassVar[int] = pmem.PAGE_BYTES
    is_ours: ClassVar[bool] = True
    _writer: Lock = field(default_factory=Lock)

    def map(self, pieces: Sequence[tuple[int, int]], *, write: bool) -> pmem.Mapping:
        """Map offsets and lengths one behind the other."""
        return osops.map_again(self.start, pieces, write=write)

    def check_writable(self) -> None:
        """Every shelf is; without libpmem, the kernel makes stores durable."""

    def new_lock(self) -> ArenaLock:
        """Return a lock on it that is not taken yet."""
        return ArenaLock(self)


class ArenaLock:
    """Keeps a second handle of this process from writing; other processes are out anyway."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self.held = False

    def acquire(self, holder: str) -> None:
        """Take it, or raise `GroupLockedError`."""
        if not self._arena._writer.acquire(blocking=False):
            raise locked_by(self._arena.path, owner())
        self.held = True

    def release(self) -> None:
        """Give it up, if it is held."""
        if self.held:
            self.held = False
            self._arena._writer.release()

    def abandon(self) -> None:
        """In a forked child: it was the parent's."""
        self.held = False


_open_arenas: dict[str, Arena] = {}
_used: dict[str, tuple[str, int, int]] = {}
"""Directory, address and length by name, of all shelves that this process has ever opened."""
_locks: list[LockFile] = []
_one_at_a_time = RLock()


def _forget_in_child() -> None:
    for lock in _locks:
        lock.abandon()
    _locks.clear()
    # Kept, for destructors would touch memory that is not there.
    _of_the_parent.append(dict(_open_arenas))
    _open_arenas.clear()


_of_the_parent: list[dict[str, Arena]] = []
os.register_at_fork(after_in_child=_forget_in_child)


def open_shelf(directory: str, size_bytes: int | None) -> Arena:
    """Open the shelf of a directory, or make it.

    Parameters
    ----------
    directory
        Made if it is missing.
    size_bytes
        Of a new shelf, which cannot grow; None for half of what is free. Not asked of an old one.

    Raises
    ------
    URLError
        PyMM is not there, or another package has its name.
    GroupLockedError
        Another process has used the directory and has not ended.
    StorageError
        There is no room for it.
    DamagedError
        There is more than one shelf of ours, or one is a copy of another that is open.
    """
    reason = why_not()
    if reason is not None:
        raise URLError(f"shelf:{directory}?engine=pymm: {reason}")
    directory = os.path.realpath(directory)
    with _one_at_a_time:
        arena = _open_arenas.get(directory)
        if arena is None:
            arena = _open_arenas[directory] = _open(directory, size_bytes)
        return arena


def _open(directory: str, size_bytes: int | None) -> Arena:
    make_directories(directory)
    names = _shelves(directory)
    if len(names) > 1:
        raise DamagedError(f"{directory} holds {len(names)} shelves of pmarray; leave one of them")
    lock = _lock(directory)
    try:
        return _open_locked(directory, names, size_bytes)
    except BaseException:
        # Another size may be asked for next; a shelf that did open is found to be locked by PyMM.
        _locks.remove(lock)
        lock.release()
        raise


def _open_locked(directory: str, names: list[str], size_bytes: int | None) -> Arena:
    if names:
        name = names[0]
        address, length = _place_of(directory, name)
    else:
        name = f"{_PREFIX}{secrets.token_hex(6)}"
        length = _shelf_bytes(directory, size_bytes)
        address = _free_address(length)
    _refuse_collision(directory, name, address, length)
    pymm = _load()
    _used[name] = (directory, address, length)
    try:
        with _silence():
            shelf = pymm.shelf(
                name, pmem_path=directory, size_mb=length >> 20, load_addr=hex(address)
            )
            if _ARRAY not in shelf.items:
                _make_array(pymm, shelf, arena_bytes(length))
            memory = np.asarray(getattr(shelf, _ARRAY))
    except RuntimeError as error:
        raise StorageError(
            None, f"PyMM cannot open a shelf of {format_bytes(length)}: {error}", directory
        ) from error
    # Its destructor would warn and release nothing: the directory stays locked in any case.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(shelf))
    first = -(-memory.ctypes.data // pmem.PAGE_BYTES) * pmem.PAGE_BYTES
    usable = memory.nbytes - (first - memory.ctypes.data)
    return Arena(directory, first, usable // _UNIT * _UNIT, memory)


def _make_array(pymm: Any, shelf: Any, nbytes: int) -> None:
    setattr(shelf, _ARRAY, pymm.ndarray((nbytes + pmem.PAGE_BYTES,), dtype=np.uint8))
    for _ in range(_LOST_REFERENCES):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(None))
    array = getattr(shelf, _ARRAY)
    if int(array.addr[0], 16) == 0:
        raise RuntimeError("its heap has less room than expected; the shelf has to be deleted")
    # Its memory is not cleared, and an old superblock there would be taken for one.
    np.asarray(array)[: 4 * pmem.PAGE_BYTES] = 0
    array.persist()


def _lock(directory: str) -> LockFile:
    """Lock the directory until the process ends."""
    lock = LockFile(Below(directory) / _LOCK, directory)
    try:
        lock.acquire()
    except GroupLockedError as error:
        raise GroupLockedError(
            f"{str(error).split(';')[0]}, and PyMM leaves a directory to one process, also for "
            "reading, until that ends"
        ) from error
    _locks.append(lock)
    # Another program's shelf in the same directory would be the same abort.
    for entry in os.listdir(directory):
        if entry.endswith(".data") and _is_locked(Below(directory) / entry):
            lock.release()
            _locks.remove(lock)
            raise GroupLockedError(
                f"another process has opened {entry} in {directory} with PyMM, which leaves a "
                "directory to one process until that ends"
            )
    return lock


def _is_locked(path: str) -> bool:
    # Before PyMM has it: it has POSIX locks, which closing any descriptor of the file drops.
    try:
        fd = osops.open_file(path, write=True)
    except OSError as error:
        raise StorageError(error.errno, f"cannot open: {error.strerror}", path) from error
    try:
        query = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = struct.unpack("hhqqi4x", fcntl.fcntl(fd, _OFD_GETLK, query))
        return bool(answer[0] != fcntl.F_UNLCK)
    finally:
        osops.close(fd)


def _shelf_bytes(directory: str, size_bytes: int | None) -> int:
    space = os.statvfs(directory)
    free = space.f_bavail * space.f_frsize
    size = free // 2 if size_bytes is None else size_bytes
    size = size // (32 << 20) * (32 << 20)  # its own step
    if size < _MIN_SHELF_BYTES:
        raise StorageError(
            None,
            f"a shelf of {format_bytes(size)} is too small to hold a group: give ?size= of "
            f"{format_bytes(_MIN_SHELF_BYTES)} or more",
            directory,
        )
    if size > free:
        raise StorageError(
            None,
            f"a shelf of {format_bytes(size)} does not fit into {format_bytes(free)}; nothing was "
            "changed",
            directory,
        )
    return size


def _place_of(directory: str, name: str) -> tuple[int, int]:
    path = Below(directory) / f"{name}.map"
    try:
        first, second = read_file(path, _MAX_MAP_BYTES).decode("ascii").split()[:2]
        address, length = int(first, 16), int(second, 16)
        there = status(Below(directory) / f"{name}.data")
        # PyMM maps it where it is told to, also over what the process has there already.
        if (
            not _ADDRESSES[0] <= address <= _ADDRESSES[1] - length
            or address % _ADDRESS_STEP
            or not (length > 0 and there is not None and length <= there.st_size)
        ):
            raise ValueError(f"{length} bytes at {address:#x}")
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} does not say where its shelf belongs: {error}") from error
    return address, length


def _free_address(length: int) -> int:
    low, high = _ADDRESSES
    while True:
        address = low + secrets.randbelow((high - low - length) // _ADDRESS_STEP) * _ADDRESS_STEP
        if not any(_overlap(address, length, a, n) for _, a, n in _used.values()):
            return address


def _refuse_collision(directory: str, name: str, address: int, length: int) -> None:
    for other, (place, a, n) in _used.items():
        if place != directory and (other == name or _overlap(address, length, a, n)):
            raise DamagedError(
                f"the shelves of {directory} and {place} belong to one address (one is perhaps a "
                "copy of the other), and PyMM cannot have both in one process: open one of them "
                "in another process"
            )


def _overlap(a: int, a_length: int, b: int, b_length: int) -> bool:
    return a < b + b_length and b < a + a_length


def _load() -> Any:
    with _silence():
        return importlib.import_module("pymm")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what is printed in the block, by Python and by C, from everybody."""
    flush = ctypes.CDLL(None).fflush
    sys.stdout.flush()
    sys.stderr.flush()
    flush(None)
    saved = [os.dup(1), os.dup(2)]
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        flush(None)
        for number, fd in enumerate(saved, 1):
            os.dup2(fd, number)
            os.close(fd)
        os.close(sink)

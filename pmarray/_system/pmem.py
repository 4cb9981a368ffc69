"""Memory that is mapped from persistent media, and the processor's side of making it durable.

A store to persistent memory is durable when its cache line has been written back and a fence has
followed. libpmem knows how the processor at hand does that best; it is looked for at run time
(Debian: ``libpmem1``). Without it the kernel is asked, by ``msync``, which works on files only.

What changes persistent memory goes through `_system.osops`; here is how it is done.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "PAGE_BYTES",
    "Mapping",
    "copy_and_persist",
    "libpmem",
    "map_again",
    "map_pieces",
    "persist",
    "persistence",
]

_PROT_NONE = 0
_MAP_SHARED_VALIDATE = 0x03
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MAP_SYNC = 0x80000
_MREMAP_MAYMOVE_FIXED = 1 | 2
_MS_SYNC = 4
_FAILED = ctypes.c_void_p(-1).value
_NONTEMPORAL = 1 << 2  # PMEM_F_MEM_NONTEMPORAL: past the cache, which has no use for the bytes
PAGE_BYTES = mmap.PAGESIZE


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    ]  # fmt: skip
    libc.mremap.restype = ctypes.c_void_p
    libc.mremap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p,
    ]  # fmt: skip
    libc.msync.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


@cache
def libpmem() -> ctypes.CDLL | None:
    """Return libpmem, or None where it is not installed."""
    try:
        library = ctypes.CDLL("libpmem.so.1")
        library.pmem_memcpy.restype = ctypes.c_void_p
        library.pmem_memcpy.argtypes = [
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint,
        ]  # fmt: skip
        library.pmem_persist.restype = None
        library.pmem_persist.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        library.pmem_has_auto_flush.argtypes = []
    except (OSError, AttributeError):  # not there, or older than 1.5
        return None
    return library


class Mapping:
    """Shared memory mapped from one or more pieces of a file, seen as consecutive bytes.

    It stays mapped as long as this object or any array made from its `memory` is there.

    Attributes
    ----------
    memory : numpy.ndarray
        All bytes, uint8; read-only where it was mapped so.
    """

    def __init__(self, address: int, nbytes: int, *, write: bool, reserved: mmap.mmap):
        self.address = address
        self.nbytes = nbytes
        # What NumPy keeps alive for an array is the object it got this from.
        self.__array_interface__ = {
            "data": (address, not write),
            "shape": (nbytes,),
            "typestr": "|u1",
            "version": 3,
        }
        self.lease: object = None
        """Kept alive as long as the memory can be seen."""
        # Gives the addresses back as it goes, in C: an exception that a signal raises in a
        # finalizer of Python's would leave them mapped for good.
        self._reserved = reserved

    @property
    def memory(self) -> NDArray[np.uint8]:
        """All bytes."""
        return np.asarray(self)


def map_pieces(
    fd: int,
    pieces: Sequence[tuple[int, int]],
    *,
    write: bool,
    sync: bool,
    alignment: int = PAGE_BYTES,
) -> Mapping:
    """Map pieces of a file or device one behind the other.

    Parameters
    ----------
    fd
        The file; it may be closed afterwards.
    pieces
        Offset and length of each, in bytes, multiples of `alignment`; the last length may be any
        where the alignment is a page.
    write
        Whether the memory may be stored to.
    sync
        Whether the file system has to keep its own books durable behind every store (MAP_SYNC),
        which only DAX can do.
    alignment
        Of the medium; the memory begins at a multiple of it too.

    Raises
    ------
    OSError
        `errno.EOPNOTSUPP` where `sync` is asked of a file that is not on DAX.
    """
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
    flags = (_MAP_SHARED_VALIDATE | _MAP_SYNC if sync else mmap.MAP_SHARED) | _MAP_FIXED

    def place(address: int, offset: int, length: int) -> int | None:
        return _mmap(address, length, protection, flags, fd, offset)

    return _map_with(place, pieces, write=write, alignment=alignment)


def map_again(start: int, pieces: Sequence[tuple[int, int]], *, write: bool) -> Mapping:
    """Map pieces of shared memory a second time, one behind the other.

    Parameters
    ----------
    start
        The address where it is mapped already, a multiple of a page.
    pieces
        Offset from there and length of each, in bytes, multiples of a page.
    write
        Whether arrays of the memory are writable.

    Raises
    ------
    OSError
        The kernel refuses.
    """

    def place(address: int, offset: int, length: int) -> int | None:
        # Of shared memory, what was 0 bytes long is not moved but mapped once more.
        result: int | None = _libc().mremap(
            start + offset, 0, length, _MREMAP_MAYMOVE_FIXED, address
        )
        return result

    return _map_with(place, pieces, write=write, alignment=PAGE_BYTES)


def _map_with(
    place: Callable[[int, int, int], int | None],
    pieces: Sequence[tuple[int, int]],
    *,
    write: bool,
    alignment: int,
) -> Mapping:
    """Reserve addresses, and let `place` put each piece there."""
    nbytes = sum(length for _, length in pieces)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    reserved = mmap.mmap(-1, nbytes + alignment, flags=flags, prot=_PROT_NONE)
    start = np.frombuffer(reserved, np.uint8).ctypes.data
    address = -(-start // alignment) * alignment
    # It owns what is reserved from here on, and gives it back if a piece cannot be mapped.
    mapping = Mapping(address, nbytes, write=write, reserved=reserved)
    for offset, length in pieces:
        if place(address, offset, length) == _FAILED:
            raise _error("mmap")
        address += length
    return mapping


def _mmap(
    address: int | None, nbytes: int, protection: int, flags: int, fd: int, offset: int
) -> int | None:
    result: int | None = _libc().mmap(address, nbytes, protection, flags, fd, offset)
    return result


def copy_and_persist(memory: NDArray[np.uint8], data: NDArray[np.uint8]) -> None:
    """Copy bytes to persistent memory of the same size; they are durable on return."""
    library = libpmem()
    if library is None:
        memory[:] = data
        persist(memory)
    else:
        library.pmem_memcpy(memory.ctypes.data, data.ctypes.data, memory.nbytes, _NONTEMPORAL)


def persist(memory: NDArray[np.uint8]) -> None:
    """Return when what was stored here is durable."""
    library = libpmem()
    if library is not None:
        library.pmem_persist(memory.ctypes.data, memory.nbytes)
        return
    start = memory.ctypes.data // PAGE_BYTES * PAGE_BYTES
    if _libc().msync(start, memory.ctypes.data + memory.nbytes - start, _MS_SYNC):
        raise _error("msync")


def persistence() -> str:
    """Say in a few words how stores are made durable here.

    >>> persistence() in ("libpmem", "libpmem, caches flushed on power loss", "msync")
    True
    """
    library = libpmem()
    if library is None:
        return "msync"
    if library.pmem_has_auto_flush() == 1:
        return "libpmem, caches flushed on power loss"
    return "libpmem"


def _error(call: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{call}: {os.strerror(code)}")

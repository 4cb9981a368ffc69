"""Memory that a program has mapped: whose bytes it is, and what was stored there unseen.

Stores to mapped memory are no calls. What they have changed is found by comparing the file with a
copy of what is known of it, which is done before and after every call that is seen.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pmarray._system import pmem

__all__ = ["Mappings", "Place"]

Bytes = NDArray[np.uint8]
Place = tuple[int, int, int]
"""File, offset and length of a run of bytes."""

_WORD_BYTES = 8
_LINE_WORDS = 8
"""Of a cache line. Stores to lines side by side are noted as one; across a line that was not stored
to they are not, or that line would be pending though nobody has stored there, and nobody would
persist it."""


@dataclass(frozen=True, slots=True)
class _Mapped:
    mapping: weakref.ref[pmem.Mapping]
    address: int
    pieces: tuple[tuple[int, int], ...]
    inode: int
    writable: bool


class _Known:
    """A file that is mapped to be stored to, beside what is known of it."""

    def __init__(self, fd: int) -> None:
        # Opened anew: it outlives the program's descriptor, and has a position of its own.
        self._fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)
        self._known: Bytes = np.zeros(0, np.uint8)
        self.resized()
        for start, stop in self._data():
            self._known[start:stop] = self._now[start:stop]

    @property
    def nbytes(self) -> int:
        """Its length, as far as it is known."""
        return self._known.nbytes

    def resized(self) -> None:
        """Look again how long it is; what is new is zeros."""
        nbytes = os.fstat(self._fd).st_size
        known = np.zeros(nbytes, np.uint8)  # of a sparse file this is sparse, too
        kept = min(nbytes, self._known.nbytes)
        for start, stop in self._data():
            known[start : min(stop, kept)] = self._known[start : min(stop, kept)]
        self._known = known
        # One view of all of it, whatever pieces the program has mapped.
        now = mmap.mmap(self._fd, nbytes, access=mmap.ACCESS_READ) if nbytes else b""
        self._now: Bytes = np.frombuffer(now, np.uint8)

    def _data(self) -> Iterator[tuple[int, int]]:
        """Yield where anything was ever written; the rest is zeros, and not to be touched."""
        stop = 0
        with suppress(OSError):  # ENXIO: nothing more
            while True:
                start = os.lseek(self._fd, stop, os.SEEK_DATA)
                stop = os.lseek(self._fd, start, os.SEEK_HOLE)
                yield start, stop

    def learn(self, offset: int, data: Bytes) -> None:
        """Take note of bytes."""
        self._known[offset : offset + data.nbytes] = data

    def differences(self, but: Sequence[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        """Yield what has been stored, in whole words; not where calls are storing just now."""
        for start, end in self._data():
            stop = min(end, self.nbytes)  # a call that makes it longer may be in flight
            words = (stop - start) // _WORD_BYTES * _WORD_BYTES
            known, now = self._known[start : start + words], self._now[start : start + words]
            if (known.view(np.uint64) != now.view(np.uint64)).any():
                yield from self._spans(start, start + words, but)
            rest = slice(start + words, stop)
            if (self._known[rest] != self._now[rest]).any():
                yield from self._spans(start + words, stop, but)

    def _spans(
        self, start: int, stop: int, but: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, bytes]]:
        now = self._now[start:stop].copy()
        for low, high in but:
            here = slice(max(start, low), max(start, min(stop, high)))
            now[here.start - start : here.stop - start] = self._known[here]
        found = np.flatnonzero(now != self._known[start:stop]) // _WORD_BYTES
        if not len(found):
            return
        at = (start // _WORD_BYTES + found) // _LINE_WORDS
        edges = np.flatnonzero(np.diff(at) > 1)
        firsts = found[np.concatenate([[0], edges + 1])]
        lasts = found[np.concatenate([edges, [len(found) - 1]])]
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            data = now[first * _WORD_BYTES : (last + 1) * _WORD_BYTES]
            self.learn(start + first * _WORD_BYTES, data)
            yield start + first * _WORD_BYTES, data.tobytes()


class Mappings:
    """The mappings of files below a recorder's root; its lock is held by who calls."""

    def __init__(self) -> None:
        self._mapped: list[_Mapped] = []
        self._files: dict[int, _Known] = {}
        self._in_flight: dict[int, list[Place]] = {}
        """Bytes that calls are writing, by a number of each call."""
        self._calls = 0

    def add(
        self,
        fd: int,
        inode: int,
        mapping: pmem.Mapping,
        pieces: Sequence[tuple[int, int]],
        *,
        writable: bool,
    ) -> None:
        """Note a mapping, which lives as long as anybody holds its memory."""
        self._mapped.append(
            _Mapped(weakref.ref(mapping), mapping.address, tuple(pieces), inode, writable)
        )
        if writable and inode not in self._files:
            self._files[inode] = _Known(fd)

    def find(self, memory: Bytes) -> list[Place]:
        """Return which bytes of files this memory is; nothing if it is none of these mappings."""
        address, left = memory.ctypes.data, memory.nbytes
        found: list[Place] = []
        for mapped in self._mapped:
            if mapped.mapping() is None:  # another one may be there now
                continue
            start = mapped.address
            for offset, length in mapped.pieces:
                if left and start <= address < start + length:
                    nbytes = min(left, start + length - address)
                    found.append((mapped.inode, offset + address - start, nbytes))
                    address, left = address + nbytes, left - nbytes
                start += length
        return found

    def stores(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield file, offset and bytes of what was stored since the last time."""
        if not self._files:
            return
        self._mapped = [one for one in self._mapped if one.mapping() is not None]
        live = {one.inode for one in self._mapped if one.writable}
        writing = [place for places in self._in_flight.values() for place in places]
        for inode, known in list(self._files.items()):
            but = [(at, at + nbytes) for i, at, nbytes in writing if i == inode]
            for offset, data in known.differences(but):
                yield inode, offset, data
            if inode not in live:
                del self._files[inode]

    def begin(self, places: list[Place]) -> int:
        """Note that a call is going to write there; return its number."""
        self._calls += 1
        self._in_flight[self._calls] = places
        return self._calls

    def end(self, call: int) -> None:
        """Note that a call is over."""
        del self._in_flight[call]

    def learn(self, inode: int, offset: int, data: Bytes) -> None:
        """Note what a call has written."""
        known = self._files.get(inode)
        if known is not None:
            if offset + data.nbytes > known.nbytes:
                known.resized()
            known.learn(offset, data)

    def resized(self, inode: int) -> None:
        """Note that a file has another length."""
        known = self._files.get(inode)
        if known is not None:
            known.resized()

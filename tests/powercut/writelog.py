"""The log that dm-log-writes keeps of a block device, and the disks that a power cut could leave.

The kernel logs a write that has FUA set when it is done, and any other one with the next FLUSH that
was issued after it: between two flushes the log has FUA writes first, then those that were in the
disk's own cache. Of these a power cut may lose any, and parts of any, in any order.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

__all__ = ["Entry", "Point", "points", "read_log", "write_entry"]

_MAGIC = 0x6A736677736872
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
_FLUSH, _FUA, _DISCARD, _MARK = 1, 2, 4, 8
_BLOCK_BYTES = 4096
"""What a disk writes as a whole."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One request to the device, or a mark."""

    flags: int
    start: int
    """Where it goes, in bytes."""
    length: int
    """How much it writes or discards, in bytes; 0 for a flush alone."""
    data: int
    """Where that is in the log, in bytes."""
    mark: str

    @property
    def flushes(self) -> bool:
        """Whether it makes durable what was done before."""
        return bool(self.flags & _FLUSH)

    @property
    def durable(self) -> bool:
        """Whether it is durable when it is done."""
        return bool(self.flags & _FUA)

    @property
    def writes(self) -> bool:
        """Whether it changes the device. A discard may, and need not, so it does nothing here."""
        return self.length > 0 and not self.flags & _DISCARD

    def number(self, word: str, otherwise: int) -> int:
        """Return the number of a mark with that word."""
        name, _, digits = self.mark.partition("-")
        return int(digits) if name == word else otherwise


def read_log(log: BinaryIO) -> Iterator[Entry]:
    """Yield the entries in their order."""
    magic, version, count, sector_bytes = _SUPER.unpack(log.read(_SUPER.size))
    if (magic, version) != (_MAGIC, 1):
        raise OSError(f"no log of writes: magic {magic:#x}, version {version}")
    at = sector_bytes
    for _ in range(count):
        log.seek(at)
        sector, sectors, flags, mark_bytes = _ENTRY.unpack(log.read(_ENTRY.size))
        mark = log.read(mark_bytes).rstrip(b"\0").decode() if flags & _MARK else ""
        length = sectors * sector_bytes
        at += sector_bytes
        yield Entry(flags, sector * sector_bytes, length, at, mark)
        if not flags & _DISCARD:
            at += length


@dataclass(frozen=True, slots=True)
class Point:
    """An instant at which the power may go."""

    flushed: int
    """Entries before this one are durable."""
    kept: tuple[tuple[int, int], ...]
    """Entries after those that happen to be, too, and seeds that say which of their blocks."""
    committed: int
    """What had been promised by then."""
    begun: int
    """The last transaction that any of these writes can be of."""


def points(entries: Sequence[Entry], count: int, rng: random.Random) -> Iterator[Point]:
    """Choose so many instants, in their order; at every other one the disk kept all it had."""
    chosen = set(rng.sample(range(len(entries)), min(count, len(entries))))
    starts = [0, *(i for i, entry in enumerate(entries) if entry.flushes)]
    committed = begun = 0
    # A request that flushes stands first: what it writes itself is not covered by it.
    for start, end in zip(starts, [*starts[1:], len(entries)], strict=True):
        for entry in entries[start:end]:
            begun = entry.number("begun", begun)
        for i in range(start, end):
            committed = entries[i].number("committed", committed)
            if i in chosen:
                yield Point(start, tuple(_kept(entries, start, i, rng)), committed, begun)


def _kept(
    entries: Sequence[Entry], start: int, last: int, rng: random.Random
) -> Iterator[tuple[int, int]]:
    share = rng.choice([0.0, 0.5, 1.0, 1.0])
    for i in range(start, last + 1):
        if entries[i].durable or share == 1.0:
            yield i, 0
        elif rng.random() < share:
            yield i, rng.choice([0, rng.randrange(1, 1 << 30)])


def write_entry(entry: Entry, seed: int, log: BinaryIO, device: BinaryIO) -> None:
    """Do a write again; with a seed other than 0, only some of its blocks."""
    if not entry.writes:
        return
    log.seek(entry.data)
    data = log.read(entry.length)
    rng = random.Random(seed)
    for at in range(0, entry.length, _BLOCK_BYTES):
        if not seed or rng.random() < 0.5:
            device.seek(entry.start + at)
            device.write(data[at : at + _BLOCK_BYTES])

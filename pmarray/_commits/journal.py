"""The journal of a group: before-images and commits, one after another in one region.

It begins with two slots of a *header*, which says how long the region is at least, and up to where
there may be records; then come the records (`_formats.records`):

- BEFORE: before-images. Bytes that were all zero have no payload.
- COMMIT: the metadata of the group as of this transaction.

A checkpoint draws a *nonce*, and a record that has another one is stale, all of them in the same
instant. So nothing is cleared, and records are written over older ones.

Damage, and what a power cut leaves
-----------------------------------
Whatever was written on the strength of a record was written after a barrier that followed it. So
a record that a power cut has torn had no consequences, and reading stops there. A record that is
bad for another reason has had some, and reading on without it would give wrong values:

- Each record tells how much of the journal a barrier had covered by then, and no COMMIT is written
  before a barrier that covers everything before it. What is bad below that is damage.
- Nobody vouches for the last records. Their heads, and so all of a COMMIT, are there twice. Of a
  block of an image the head has a checksum: if the block is bad, the data file has to have it
  still, for if the data had been overwritten, the image would have been durable.
- A record of a later generation than the metadata's shows that those have been replaced by older
  ones: the journal is not reused before newer metadata are durable.
- The region grows, durably, before the header says so, and the header says so before a record
  counts on it. It is shortened the other way round. One of its slots is valid at any time: a slot
  is written when the other one is durable.
- No record is written beyond where the header says that there may be some, so nobody has to look
  for them there. A barrier that covers such a record covers the header.

All of this is for one fault at a time. A journal that was replaced as a whole is not noticed.

The region is filled with zeros when it grows. A reserved but unwritten extent would cost a commit
of the file system's own journal at each first write to it.
"""

from __future__ import annotations

import mmap
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from pmarray._commits.sidewrites import SideWrites
from pmarray._formats.records import (
    HEAD_ROOM,
    MAGIC,
    MAX_IMAGE_BYTES,
    Fixed,
    Image,
    Record,
    StoredImage,
    blocks_of,
    checksum,
    parse_fixed,
    parse_head,
    spell_head,
    table_nbytes,
)
from pmarray._geometry.layout import BLOCK_BYTES
from pmarray.backends._protocols import Region
from pmarray.errors import DamagedError

__all__ = [
    "FIRST",
    "IMAGES_UNDER_WAY",
    "MAX_PAYLOAD_BYTES",
    "Journal",
]

_HEADER = struct.Struct("<8sIIQQQ")
# magic, crc, -; number of the header, least bytes, where records end at the latest
_HEADER_MAGIC = b"pmarrayH"
_SLOTS = 2
FIRST = _SLOTS * BLOCK_BYTES
"""Where the first record begins."""
MAX_PAYLOAD_BYTES = MAX_IMAGE_BYTES
"""A record holds at most this much, unless the metadata are larger."""
IMAGES_UNDER_WAY = 4
"""How many images may be read at a time: each has memory from `Journal.memory`."""
_COPIED_BYTES = 64 << 10
"""Shorter records are copied into one buffer."""
_WRITE_BYTES = 4 << 20
"""So much is written at a time: one request after another leaves the device idle in between."""
_WRITES_UNDER_WAY = 2
"""How many such writes other threads do at most, while further records are made."""
_INITIAL_BYTES = 4 << 20
_INITIAL_REACH = FIRST + (64 << 10)
"""Where the first records end at the latest; every opener looks so far."""
_PIECE_BYTES = 64 << 10
"""Small enough for memory that was used before: new pages cost more than to read them again."""


class _Header(NamedTuple):
    number: int = 0
    nbytes: int = 0
    """The region has at least these."""
    reach: int = 0
    """Records end here at the latest."""


class Journal:
    """Appends records to a region and reads them back; one thread at a time.

    Parameters
    ----------
    region
        Where it is.
    nonce, generation
        Of the checkpoint in force; records with another nonce are stale.
    """

    def __init__(self, region: Region, nonce: int, generation: int = 0) -> None:
        self.region = region
        self.adopt(nonce, generation)
        self.position = self.durable_to = FIRST
        """Where the next record goes, and up to where a barrier has covered all."""
        self._header = _Header()
        """The one in force."""
        self._header_is_durable = True
        self._beside = SideWrites(region, _WRITES_UNDER_WAY)
        self._stagings = deque(
            memoryview(mmap.mmap(-1, 2 * BLOCK_BYTES + MAX_PAYLOAD_BYTES))
            for _ in range(_WRITES_UNDER_WAY + 1)
        )
        """One for the records that wait, the others of writes under way."""
        self._staged = 0
        """Bytes of the first that are in `_waiting`."""
        self._waiting: list[memoryview] = []
        """Records, in whole blocks, that follow `position` and are not written yet."""
        self._waiting_nbytes = 0
        self._memory: memoryview | None = None
        self._used = 0
        """Bytes of it that were handed out since it was begun again."""

    # -- its length -----------------------------------------------------------------------------

    def adopt(self, nonce: int, generation: int) -> None:
        """Go on with the records of another checkpoint."""
        self.nonce, self.generation = nonce, generation

    @property
    def stop(self) -> int:
        """Where records end at the latest."""
        return min(self._header.reach or self.region.capacity, self.region.capacity)

    def make(self) -> None:
        """Make an empty journal, durably, whatever is there; no metadata may count on it yet."""
        self._grow(_INITIAL_BYTES)
        self._clear()
        self.mend()

    def _clear(self) -> None:
        """Take away the first record of a journal that was here before."""
        self.region.write(FIRST, [memoryview(mmap.mmap(-1, 2 * BLOCK_BYTES))])

    def mend(self) -> None:
        """Make the header anew, durably."""
        self._grow(_INITIAL_BYTES)
        nbytes = self.region.capacity
        for number in range(_SLOTS):
            self._write_header(_Header(number, nbytes, min(_INITIAL_REACH, nbytes)))
        self.barrier()

    def check_length(self) -> None:
        """Note how long the region is said to be.

        Raises
        ------
        DamagedError
            It is shorter, or does not say.
        """
        slots = self._slots()
        while True:
            valid = [slot for slot in slots if slot is not None]
            if valid and self._reaches(max(valid).nbytes):
                self._header = max(valid)
                return
            again = self._slots()  # a writer may have shortened it meanwhile
            if again == slots:
                break
            slots = again
        if not valid:
            raise DamagedError(f"the journal has no header ({self.region.capacity} bytes)")
        raise DamagedError(
            f"the journal was cut: it has {self.region.capacity} bytes, and had {max(valid).nbytes}"
        )

    def bad_slots(self) -> int:
        """Return how many slots hold no header."""
        return sum(slot is None for slot in self._slots())

    def _slots(self) -> list[_Header | None]:
        found: list[_Header | None] = []
        for slot in range(_SLOTS):
            block = self._read(slot * BLOCK_BYTES, BLOCK_BYTES)
            if len(block) < BLOCK_BYTES:
                found.append(None)
                continue
            magic, crc, _, *fields = _HEADER.unpack_from(block)
            whole = magic == _HEADER_MAGIC and crc == checksum(
                bytes(block[:8]) + bytes(4) + bytes(block[12:])
            )
            found.append(_Header(*fields) if whole else None)
        return found

    def _write_header(self, header: _Header) -> None:
        """Write the next header, to the slot that does not have the last; durable at a barrier."""
        block = memoryview(mmap.mmap(-1, BLOCK_BYTES))
        block[: _HEADER.size] = _HEADER.pack(_HEADER_MAGIC, 0, 0, *header)
        block[8:12] = struct.pack("<I", checksum(block))
        self.region.write(header.number % _SLOTS * BLOCK_BYTES, [block])
        self._header, self._header_is_durable = header, False

    def _replace_header(self, nbytes: int, reach: int) -> None:
        if not self._header_is_durable:
            self.barrier()
        self._write_header(_Header(self._header.number + 1, nbytes, reach))

    def reserve(self, nbytes: int) -> None:
        """Make room for `nbytes` more bytes of records, or raise and change nothing."""
        need = self.position + self._waiting_nbytes + nbytes
        if need <= self._header.reach:
            return
        nbytes = self._header.nbytes
        if need > nbytes:
            self._grow(max(need, nbytes * 2))
            self.barrier()
            nbytes = self.region.capacity
        self._replace_header(nbytes, min(4 * need, nbytes))  # so that this happens seldom

    def _grow(self, nbytes: int) -> None:
        before = self.region.capacity
        self.region.reserve(nbytes)
        zeros = memoryview(mmap.mmap(-1, MAX_PAYLOAD_BYTES))
        for offset in range(before, self.region.capacity, MAX_PAYLOAD_BYTES):
            length = min(MAX_PAYLOAD_BYTES, self.region.capacity - offset)
            self.region.write(offset, [zeros[:length]])

    def trim(self, nbytes: int) -> None:
        """Give back the space beyond `nbytes` of an empty journal, and let nobody look far."""
        before = self._header
        length = min(before.nbytes, nbytes)
        reach = min(before.reach, _INITIAL_REACH, length)
        if before != (before.number, length, reach):
            self._replace_header(length, reach)
        if before.nbytes > nbytes:
            self.barrier()
        self.region.trim(nbytes)

    # -- writing --------------------------------------------------------------------------------

    def memory(self, nbytes: int) -> memoryview:
        """Memory for the next image that `before` is given, of at most `MAX_IMAGE_BYTES`.

        It is used again: fresh memory takes the kernel longer to clear than the image to read. When
        it comes round, what it held is written. What is not is `_WRITE_BYTES` of records and one
        more, as much for each write under way, the images for the next, in whole blocks as many as
        a head has room for, an image that did not fit, and those that are still being read.
        """
        if self._memory is None:
            written = (1 + _WRITES_UNDER_WAY) * (_WRITE_BYTES + MAX_PAYLOAD_BYTES)
            images = 5 + IMAGES_UNDER_WAY
            self._memory = memoryview(mmap.mmap(-1, written + images * MAX_PAYLOAD_BYTES))
        if self._used + nbytes > len(self._memory):
            self._used = 0
        start = self._used
        self._used += blocks_of(nbytes) * BLOCK_BYTES
        return self._memory[start : start + nbytes]

    def before(self, number: int, images: Iterable[Image]) -> bool:
        """Append before-images, in as few records as they fit; return whether there were any."""
        self._forget_waiting()  # of one that has failed
        try:
            found = self._append_images(number, images)
            self._write()
            self._beside.settle()
        except BaseException:
            # No barrier has covered what failed, and no record behind it says so.
            failed = self._beside.abandon()
            self.position = self.position if failed is None else failed
            raise
        return found

    def _append_images(self, number: int, images: Iterable[Image]) -> bool:
        batch: list[Image] = []
        table = payload = 0
        found = False
        for image in images:
            found = True
            room, nbytes = table_nbytes([image]), image.data.nbytes
            if batch and (table + room > HEAD_ROOM or payload + nbytes > MAX_PAYLOAD_BYTES):
                self._append(number, batch)
                batch, table, payload = [], 0, 0
                if self._waiting_nbytes >= _WRITE_BYTES:
                    self._begin_write()
            batch.append(image)
            table += room
            payload += nbytes
        if batch:
            self._append(number, batch)
        return found

    def commit(self, number: int, metadata: bytes) -> None:
        """Append a commit; it vouches for all that is before it."""
        if self.durable_to < self.position:
            self.barrier()
        self._forget_waiting()
        self._append(number, (), metadata)
        self._write()

    def barrier(self) -> None:
        """Return when all records are durable."""
        self._beside.settle()
        position = self.position
        self.region.barrier()
        self.durable_to, self._header_is_durable = position, True

    def restart(self, nonce: int, generation: int) -> None:
        """Begin anew: the metadata of this checkpoint are durable and need no older record."""
        self.adopt(nonce, generation)
        self.position = self.durable_to = FIRST

    def _append(self, number: int, images: Iterable[Image], metadata: bytes | None = None) -> None:
        """Add a record to those that wait to be written, a few megabytes at a time."""
        first, second, payload = spell_head(
            nonce=self.nonce,
            generation=self.generation,
            position=self.position + self._waiting_nbytes,
            durable_to=self.durable_to,
            number=number,
            images=tuple(images),
            metadata=metadata,
        )
        blocks = sum(blocks_of(data.nbytes) for data in payload)
        total = 2 * len(first) + blocks * BLOCK_BYTES
        self.reserve(total)
        parts = [memoryview(first), memoryview(second)]
        # Direct I/O wants aligned buffers. What is large, and has the memory for it, is not copied.
        in_place = total > _COPIED_BYTES and all(map(_is_aligned, payload))
        if not in_place:
            parts += payload
        buffer = self._stage(2 * len(first) if in_place else total)
        at = 0
        for part in parts:
            buffer[at : at + part.nbytes] = part
            end = at + blocks_of(part.nbytes) * BLOCK_BYTES
            buffer[at + part.nbytes : end] = bytes(end - at - part.nbytes)
            at = end
        self._waiting += [buffer, *(payload if in_place else ())]
        self._waiting_nbytes += total

    def _stage(self, nbytes: int) -> memoryview:
        """Aligned memory until the next write."""
        if nbytes > len(self._stagings[0]):
            return memoryview(mmap.mmap(-1, nbytes))
        if self._staged + nbytes > len(self._stagings[0]):
            self._write()
        start = self._staged
        self._staged += nbytes
        return self._stagings[0][start : self._staged]

    def _write(self) -> None:
        """Write the records that wait."""
        if self._waiting:
            self.region.write(self.position, self._waiting)
            self.position += self._waiting_nbytes
        self._forget_waiting()

    def _begin_write(self) -> None:
        """The same on another thread: to make records takes half as long as to write them.

        What is not durable has no consequences, so that no order of the writes is a wrong one.
        """
        if self.region.memory is not None:
            self._write()
            return
        start, waiting = self.position, self._waiting
        self.position += self._waiting_nbytes
        self._stagings.rotate(-1)
        self._forget_waiting()
        self._beside.begin(start, waiting)

    def _forget_waiting(self) -> None:
        self._waiting, self._waiting_nbytes, self._staged = [], 0, 0

    # -- reading --------------------------------------------------------------------------------

    def records(self, start: int = FIRST) -> Iterator[Record]:
        """Yield the records from `start` on, as far as they follow one another."""
        while (record := self.record_at(start)) is not None:
            yield record
            start = record.end

    def record_at(self, start: int) -> Record | None:
        """Return the record that begins at `start`, if either of its heads is whole."""
        blocks = self._read(start, 2 * BLOCK_BYTES)
        second = start + BLOCK_BYTES
        fixed = parse_fixed(blocks, self.nonce, start) if blocks else None
        if fixed is not None and fixed.position == start:
            record = self._whole(fixed, start)
            if record is not None:
                return record
            second = start + fixed.nbytes
            fixed = parse_fixed(self._read(second, BLOCK_BYTES), self.nonce, second)
        else:
            fixed = parse_fixed(blocks[BLOCK_BYTES:], self.nonce, second)
        return self._whole(fixed, second) if fixed is not None and fixed.position == start else None

    def newer_generation(self) -> int | None:
        """Return the generation of the first record, if that is later than that of the metadata."""
        blocks = self._read(FIRST, 2 * BLOCK_BYTES)
        for at in (FIRST, FIRST + BLOCK_BYTES):
            fixed = parse_fixed(blocks[at - FIRST :], None, at)
            if fixed is not None and fixed.generation > self.generation:
                return fixed.generation
        return None

    def record_after(self, start: int, stop: int) -> Record | None:
        """Return the first record of which a head stands between `start` and `stop`."""
        for base in range(start, stop, _PIECE_BYTES):
            piece = self._read(base, min(_PIECE_BYTES, stop - base))
            words = np.frombuffer(piece[: len(piece) // BLOCK_BYTES * BLOCK_BYTES], "<u8")
            words = words.reshape(-1, BLOCK_BYTES // 8)
            likely = (words[:, 0] == int.from_bytes(MAGIC, "little")) & (words[:, 2] == self.nonce)
            for i in np.flatnonzero(likely):
                at = base + int(i) * BLOCK_BYTES
                fixed = parse_fixed(piece[at - base :], self.nonce, at)
                record = None if fixed is None else self._whole(fixed, at)
                if record is not None and record.start >= start:
                    return record
        return None

    def _whole(self, fixed: Fixed, at: int) -> Record | None:
        if not self._reaches(fixed.end):
            return None
        head = self._read(at, fixed.nbytes)
        return parse_head(fixed, head) if len(head) == fixed.nbytes else None

    def head_is_bad(self, record: Record) -> bool:
        """Whether one of the two heads of a record cannot be read."""
        nbytes = (record.payload - record.start) // 2
        for at in (record.start, record.start + nbytes):
            fixed = parse_fixed(self._read(at, BLOCK_BYTES), self.nonce, at)
            if fixed is None or self._whole(fixed, at) is None:
                return True
        return False

    def fetch(self, image: StoredImage) -> memoryview:
        """Return the bytes of a before-image, in a buffer fit for direct I/O."""
        data = memoryview(mmap.mmap(-1, image.nbytes))
        if image.data is not None:
            data[:] = image.data
        elif image.position is not None:
            self.region.read_into(image.position, data)
        return data

    def _reaches(self, stop: int) -> bool:
        """Whether the region goes on to `stop`, perhaps since another process has grown it."""
        if stop > self.region.capacity:
            self.region.refresh()
        return stop <= self.region.capacity

    def _read(self, start: int, nbytes: int) -> memoryview:
        """Return some bytes, fewer where the region ends before."""
        while True:
            stop = start + nbytes
            if not self._reaches(stop):
                stop = max(start, self.region.capacity)
            data = memoryview(bytearray(stop - start))
            try:
                if data:
                    self.region.read_into(start, data)
                return data
            except DamagedError:
                self.region.refresh()  # its writer may have shortened it since
                if stop <= self.region.capacity:
                    raise


def _is_aligned(data: memoryview) -> bool:
    address = np.frombuffer(data, np.uint8).ctypes.data
    return address % BLOCK_BYTES == 0 and data.nbytes % BLOCK_BYTES == 0

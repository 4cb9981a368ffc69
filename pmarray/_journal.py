"""The journal of a group: before-images and commits, one after another in one region.

Records
-------
A record starts on a block of its own: a fixed head, a table of what it holds, then, on the next
block, its payload. Every record carries the generation of the metadata it belongs to, so that
replacing the metadata by those of the next generation makes all older records stale in the same
instant; the number of its transaction; its length; and a CRC-32C of everything in it.

- BEFORE: up to `_MAX_IMAGES` before-images. Bytes that were all zero have no payload.
- COMMIT: the metadata of the group as of this transaction.

Reading stops at the first record that is not whole, or of another generation, or out of order.
That loses nothing: whatever was written on the strength of a record was written after a barrier
that followed it, so a record that is not whole had no consequences yet.

The region is filled with zeros when it grows. A reserved but unwritten extent would cost a commit
of the file system's own journal at each first write to it.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import google_crc32c
import numpy as np

from pmarray.backends import Region
from pmarray.errors import DamagedError
from pmarray.layout import BLOCK_BYTES

__all__ = ["Image", "Journal", "Record", "StoredImage"]

_MAGIC = b"pmarrayJ"
_BEFORE, _COMMIT = 1, 2
_HEAD = struct.Struct("<8sIIQQIIQ")  # magic, crc, kind, generation, number, count, -, payload
_ENTRY = struct.Struct("<QQQQ")  # file id, offset, length, 1 if there is payload
_MAX_IMAGES = (BLOCK_BYTES - _HEAD.size) // _ENTRY.size
MAX_PAYLOAD_BYTES = 1 << 20
"""A record holds at most this much, unless the metadata are larger."""
_MAX_METADATA_BYTES = 1 << 30
_INITIAL_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Image:
    """Bytes of a data file as they were before a transaction overwrote them."""

    file_id: int
    offset: int
    data: memoryview

    def is_zero(self) -> bool:
        """Whether no byte is set; such an image takes no room."""
        return not np.frombuffer(self.data, np.uint8).any()


@dataclass(frozen=True, slots=True)
class StoredImage:
    """The same in the journal; fetched when it is wanted, since there may be many."""

    number: int
    file_id: int
    offset: int
    nbytes: int
    position: int | None
    """Where in the journal the bytes are; None stands for zeros."""


@dataclass(frozen=True, slots=True)
class Record:
    """One whole record."""

    number: int
    """Of the transaction."""
    images: tuple[StoredImage, ...]
    """What it overwrote; empty for a commit."""
    metadata: bytes | None
    """What it committed; None for before-images."""
    end: int
    """Where the next record begins."""


class Journal:
    """Appends records to a region and reads them back; one thread at a time.

    Parameters
    ----------
    region
        Where it is.
    generation
        Of the metadata in force; records of another one are stale.
    position
        Where the next record goes.
    """

    def __init__(self, region: Region, generation: int, position: int = 0) -> None:
        self.region = region
        self.generation = generation
        self.position = position
        self._staging = memoryview(mmap.mmap(-1, BLOCK_BYTES + MAX_PAYLOAD_BYTES))

    # -- writing --------------------------------------------------------------------------------

    def reserve(self, nbytes: int) -> None:
        """Make room for `nbytes` more bytes of records, or raise and change nothing."""
        need = self.position + nbytes
        before = self.region.capacity
        if need <= before:
            return
        self.region.reserve(max(need, before * 2, _INITIAL_BYTES))
        zeros = memoryview(mmap.mmap(-1, MAX_PAYLOAD_BYTES))
        for offset in range(before, self.region.capacity, MAX_PAYLOAD_BYTES):
            length = min(MAX_PAYLOAD_BYTES, self.region.capacity - offset)
            self.region.write(offset, [zeros[:length]])

    def before(self, number: int, images: Iterable[Image]) -> bool:
        """Append before-images, in as few records as they fit; return whether there were any."""
        batch: list[tuple[Image, bool]] = []
        payload = 0
        found = False
        for image in images:
            found = True
            stored = not image.is_zero()
            nbytes = image.data.nbytes if stored else 0
            if batch and (len(batch) == _MAX_IMAGES or payload + nbytes > MAX_PAYLOAD_BYTES):
                self._append_images(number, batch)
                batch, payload = [], 0
            batch.append((image, stored))
            payload += nbytes
        if batch:
            self._append_images(number, batch)
        return found

    def commit(self, number: int, metadata: bytes) -> None:
        """Append a commit."""
        self._append(_COMMIT, number, 0, b"", [memoryview(metadata)])

    def barrier(self) -> None:
        """Return when all records are durable."""
        self.region.barrier()

    def restart(self, generation: int) -> None:
        """Begin anew: the metadata of `generation` are durable and need no older record."""
        self.generation = generation
        self.position = 0

    def _append_images(self, number: int, images: list[tuple[Image, bool]]) -> None:
        table = b"".join(
            _ENTRY.pack(image.file_id, image.offset, image.data.nbytes, stored)
            for image, stored in images
        )
        payload = [image.data for image, stored in images if stored]
        self._append(_BEFORE, number, len(images), table, payload)

    def _append(
        self,
        kind: int,
        number: int,
        count: int,
        table: bytes,
        payload: list[memoryview],
    ) -> None:
        nbytes = sum(part.nbytes for part in payload)
        total = BLOCK_BYTES + -(-nbytes // BLOCK_BYTES) * BLOCK_BYTES
        self.reserve(total)
        # Direct I/O wants one aligned buffer; metadata larger than the usual one get their own.
        buffer = self._staging if total <= len(self._staging) else memoryview(mmap.mmap(-1, total))
        buffer = buffer[:total]
        head = _HEAD.pack(_MAGIC, 0, kind, self.generation, number, count, 0, nbytes)
        buffer[: len(head)] = head
        buffer[len(head) : len(head) + len(table)] = table
        buffer[len(head) + len(table) : BLOCK_BYTES] = bytes(BLOCK_BYTES - len(head) - len(table))
        at = BLOCK_BYTES
        for part in payload:
            buffer[at : at + part.nbytes] = part
            at += part.nbytes
        buffer[at:] = bytes(total - at)
        buffer[8:12] = struct.pack("<I", _checksum(buffer))
        self.region.write(self.position, [buffer])
        self.position += total

    # -- reading --------------------------------------------------------------------------------

    def records(self, start: int = 0) -> Iterator[Record]:
        """Yield the whole records of this generation from `start` on."""
        number = 0
        while (record := self._read(start)) is not None and record.number >= number:
            yield record
            number, start = record.number, record.end

    def fetch(self, image: StoredImage) -> memoryview:
        """Return the bytes of a before-image, in a buffer fit for direct I/O."""
        data = memoryview(mmap.mmap(-1, image.nbytes))
        if image.position is not None:
            self.region.read_into(image.position, data)
        return data

    def _reaches(self, stop: int) -> bool:
        """Whether the region goes on to `stop`, perhaps since another process has grown it."""
        if stop > self.region.capacity:
            self.region.refresh()
        return stop <= self.region.capacity

    def _read(self, start: int) -> Record | None:
        if not self._reaches(start + BLOCK_BYTES):
            return None
        head = bytearray(BLOCK_BYTES)
        self.region.read_into(start, memoryview(head))
        magic, checksum, kind, generation, number, count, _, nbytes = _HEAD.unpack_from(head)
        total = BLOCK_BYTES + -(-nbytes // BLOCK_BYTES) * BLOCK_BYTES
        if (
            magic != _MAGIC
            or generation != self.generation
            or count > _MAX_IMAGES
            or nbytes > (MAX_PAYLOAD_BYTES if kind == _BEFORE else _MAX_METADATA_BYTES)
            or not self._reaches(start + total)
        ):
            return None
        data = bytearray(total)
        self.region.read_into(start, memoryview(data))
        if checksum != _checksum(memoryview(data)):
            return None
        if kind == _COMMIT:
            metadata = bytes(data[BLOCK_BYTES : BLOCK_BYTES + nbytes])
            return Record(number, (), metadata, start + total)
        images = []
        at = BLOCK_BYTES
        for i in range(count):
            file_id, offset, length, has_data = _ENTRY.unpack_from(
                data, _HEAD.size + i * _ENTRY.size
            )
            position = start + at if has_data else None
            images.append(StoredImage(number, file_id, offset, length, position))
            at += length if has_data else 0
            if not 0 < length <= MAX_PAYLOAD_BYTES or offset >= 1 << 62 or at > total:
                raise DamagedError(
                    f"a journal record names {length} bytes at {offset} of file {file_id}: "
                    "restore the group from a backup"
                )
        return Record(number, tuple(images), None, start + total)


def _checksum(record: memoryview) -> int:
    """CRC-32C of a record, its own field left out."""
    crc = google_crc32c.value(bytes(record[:8]))
    return int(google_crc32c.extend(crc, np.frombuffer(record[12:].toreadonly(), np.uint8)))

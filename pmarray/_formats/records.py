"""One record of the journal: how it is spelled, and how it is told from what is none.

A record is a *head*, the same head again, and a payload, each in whole blocks::

    head     fixed fields, a table of before-images, a CRC of each block of the payload, and bytes
             that are few: small images, or the metadata of a commit
    head     the same, so that one of them may be damaged
    payload  images of whole blocks, one after another

The fixed fields have a CRC of their own, which covers that of the rest of the head, which covers
those of the payload. They name the checkpoint that the record belongs to, by its nonce and its
generation, and the place where it stands: no other bytes, such as a copy of a journal that
somebody has stored in an array, pass for a record.

`durable_to` says how much of the journal a barrier had covered when the record was written: what
is bad below that is damage, and no power cut's work.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import google_crc32c
import numpy as np

from pmarray._geometry.layout import BLOCK_BYTES

__all__ = [
    "BEFORE",
    "COMMIT",
    "HEAD_ROOM",
    "MAGIC",
    "MAX_IMAGE_BYTES",
    "Fixed",
    "Image",
    "Record",
    "StoredImage",
    "blocks_of",
    "checksum",
    "parse_fixed",
    "parse_head",
    "spell_head",
    "table_nbytes",
]

MAGIC = b"pmarrayJ"
BEFORE, COMMIT = 1, 2
_FIXED = struct.Struct("<8sIIQQQQQHHIQQ")
# magic, CRC of the fixed fields, CRC of the rest; nonce, generation, position, durable_to, number;
# kind, copy, entries; bytes of the rest, blocks of payload
_ENTRY = struct.Struct("<QQQQ")  # file id, offset, length, where the bytes are
_ZEROS, _PAYLOAD, _INLINE = 0, 1, 2
_CRC_BYTES = 4
HEAD_ROOM = BLOCK_BYTES - _FIXED.size
"""Bytes of a head of one block that are not fixed fields."""
MAX_IMAGE_BYTES = 1 << 20
"""No image is longer."""
_MAX_OFFSET = 1 << 62
_MAX_METADATA_BYTES = 1 << 30


def checksum(data: memoryview | bytes) -> int:
    """CRC-32C of some bytes."""
    view = memoryview(data).toreadonly()
    if view.nbytes <= BLOCK_BYTES:
        return int(google_crc32c.value(view.tobytes()))  # to look at them in place takes longer
    return int(google_crc32c.extend(0, np.frombuffer(view, np.uint8)))


def _checksums(data: memoryview) -> bytes:
    """The checksums of the blocks of an image, one after another."""
    whole = data.nbytes // BLOCK_BYTES
    blocks = np.frombuffer(data.toreadonly(), np.uint8, whole * BLOCK_BYTES)
    # One call for each, and nothing else that would need the interpreter in between.
    found = list(map(google_crc32c.value, blocks.reshape(whole, BLOCK_BYTES)))
    if whole * BLOCK_BYTES < data.nbytes:
        found.append(checksum(data[whole * BLOCK_BYTES :]))
    return struct.pack(f"<{len(found)}I", *found)


def blocks_of(nbytes: int) -> int:
    """How many blocks hold so many bytes."""
    return -(-nbytes // BLOCK_BYTES)


class Image(NamedTuple):
    """Bytes of a data file as they were before a transaction overwrote them."""

    file_id: int
    offset: int
    data: memoryview

    def is_zero(self) -> bool:
        """Whether no byte is set; such an image takes no room."""
        data = np.frombuffer(self.data, np.uint8)
        return not (data[:BLOCK_BYTES].any() or data.any())  # the first block tells of most


class StoredImage(NamedTuple):
    """The same in the journal; fetched when it is wanted, since there may be many."""

    number: int
    file_id: int
    offset: int
    nbytes: int
    position: int | None = None
    """Where in the journal the bytes are; None where they are `data`, or zeros."""
    checksums: bytes = b""
    """Of each of its blocks in the payload."""
    data: bytes | None = None
    """A small image."""

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """Yield first byte, end, and checksum of each block that is in the payload."""
        for i in range(len(self.checksums) // _CRC_BYTES):
            start = i * BLOCK_BYTES
            (crc,) = struct.unpack_from("<I", self.checksums, i * _CRC_BYTES)
            yield start, min(start + BLOCK_BYTES, self.nbytes), crc

    def bad_in(self, data: memoryview) -> list[tuple[int, int]]:
        """Return start and right checksum of the blocks that are not what they should be."""
        return [
            (start, crc) for start, stop, crc in self.blocks() if checksum(data[start:stop]) != crc
        ]


class Record(NamedTuple):
    """One record with a whole head."""

    number: int
    """Of the transaction."""
    start: int
    """Where it begins."""
    durable_to: int
    """How much of the journal was durable when it was written."""
    images: tuple[StoredImage, ...]
    """What it overwrote; empty for a commit."""
    metadata: bytes | None
    """What it committed; None for before-images."""
    payload: int
    """Where the payload begins."""
    end: int
    """Where the next record begins."""


def table_nbytes(images: Sequence[Image]) -> int:
    """Return how many bytes of a head before-images take."""
    result = 0
    for image in images:
        result += _ENTRY.size
        if image.data.nbytes < BLOCK_BYTES:
            result += image.data.nbytes
        else:
            result += _CRC_BYTES * blocks_of(image.data.nbytes)
    return result


def spell_head(
    *,
    nonce: int,
    generation: int,
    position: int,
    durable_to: int,
    number: int,
    images: Sequence[Image] = (),
    metadata: bytes | None = None,
) -> tuple[bytes, bytes, list[memoryview]]:
    """Return both heads of a record, in whole blocks, and the images that are its payload."""
    entries, checksums, small, payload = [], [], [], []
    for image in images:
        where = _ZEROS if image.is_zero() else _PAYLOAD
        if where == _PAYLOAD and image.data.nbytes < BLOCK_BYTES:
            where = _INLINE
            small.append(bytes(image.data))
        elif where == _PAYLOAD:
            payload.append(image.data)
            checksums.append(_checksums(image.data))
        entries.append(_ENTRY.pack(image.file_id, image.offset, image.data.nbytes, where))
    rest = b"".join([*entries, *checksums, *small, metadata or b""])
    nbytes = blocks_of(_FIXED.size + len(rest)) * BLOCK_BYTES
    padded = rest.ljust(nbytes - _FIXED.size, b"\0")
    kind = BEFORE if metadata is None else COMMIT
    rest_crc = checksum(padded)
    heads = []
    for copy in (0, 1):
        where_and_when = (nonce, generation, position, durable_to, number)
        sizes = (len(entries), len(rest), sum(blocks_of(data.nbytes) for data in payload))
        spelled = _FIXED.pack(MAGIC, 0, rest_crc, *where_and_when, kind, copy, *sizes)
        crc = checksum(spelled)
        heads.append(spelled[:8] + struct.pack("<I", crc) + spelled[12:] + padded)
    return heads[0], heads[1], payload


class Fixed(NamedTuple):
    """The fixed fields of a head."""

    rest_crc: int
    nonce: int
    generation: int
    position: int
    durable_to: int
    number: int
    kind: int
    copy: int
    entries: int
    rest_nbytes: int
    payload_blocks: int

    @property
    def nbytes(self) -> int:
        """Of the whole head."""
        return blocks_of(_FIXED.size + self.rest_nbytes) * BLOCK_BYTES

    @property
    def payload(self) -> int:
        """Where the payload begins."""
        return self.position + 2 * self.nbytes

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return self.payload + self.payload_blocks * BLOCK_BYTES


def parse_fixed(block: memoryview, nonce: int | None, at: int) -> Fixed | None:
    """Read the fixed fields of a head that stands at `at`; None if this is none of this nonce.

    None as `nonce` is any.
    """
    if len(block) < _FIXED.size or bytes(block[:8]) != MAGIC:
        return None
    spelled = bytes(block[: _FIXED.size])
    _, crc, *fields = _FIXED.unpack(spelled)
    fixed = Fixed(*fields)
    if nonce not in (None, fixed.nonce) or crc != checksum(spelled[:8] + bytes(4) + spelled[12:]):
        return None
    here = fixed.position + fixed.copy * fixed.nbytes
    possible = fixed.kind in (BEFORE, COMMIT) and fixed.copy < 2
    return fixed if possible and here == at and fixed.rest_nbytes <= _MAX_METADATA_BYTES else None


def parse_head(fixed: Fixed, head: memoryview) -> Record | None:
    """Read a whole head, of which the fixed fields have been read; None if it is bad."""
    if checksum(head[_FIXED.size :]) != fixed.rest_crc:
        return None
    rest = bytes(head[_FIXED.size : _FIXED.size + fixed.rest_nbytes])
    images: list[StoredImage] = []
    metadata = None
    if fixed.kind == COMMIT:
        metadata = rest
    else:
        found = _parse_images(fixed, rest)
        if found is None:
            return None
        images = found
    return Record(
        fixed.number,
        fixed.position,
        fixed.durable_to,
        tuple(images),
        metadata,
        fixed.payload,
        fixed.end,
    )


def _parse_images(fixed: Fixed, rest: bytes) -> list[StoredImage] | None:
    crcs = fixed.entries * _ENTRY.size
    small = crcs + fixed.payload_blocks * _CRC_BYTES
    if small > len(rest):
        return None
    position, images = fixed.payload, []
    for i in range(fixed.entries):
        file_id, offset, nbytes, where = _ENTRY.unpack_from(rest, i * _ENTRY.size)
        if not 0 < nbytes <= MAX_IMAGE_BYTES or offset >= _MAX_OFFSET:
            return None
        if where == _ZEROS:
            images.append(StoredImage(fixed.number, file_id, offset, nbytes))
        elif where == _INLINE:
            data = rest[small : small + nbytes]
            images.append(StoredImage(fixed.number, file_id, offset, nbytes, data=data))
            small += nbytes
        else:
            blocks = blocks_of(nbytes)
            checksums = rest[crcs : crcs + blocks * _CRC_BYTES]
            images.append(StoredImage(fixed.number, file_id, offset, nbytes, position, checksums))
            crcs += blocks * _CRC_BYTES
            position += blocks * BLOCK_BYTES
    return images if position == fixed.end and small == len(rest) else None

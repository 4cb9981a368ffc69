"""Chunks of shards that are read without the rest of their shard.

A shard is what is cached in one piece, as it lies in memory. Where each of its chunks is some of
its lines, and all of these, some bytes of the shard in memory are some bytes of a few chunks: of
the file, the index of the shard is read, and these chunks.

A file stays open from the one to the other: a shard that is replaced meanwhile is read as it was.
An object in a store of another kind is asked for its index once more, and that has to be the same.
Each chunk comes in one request: so it is one of this shard, or of another with the same index,
unless the shard was replaced and put back meanwhile.
"""

from __future__ import annotations

import math
import os
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.codecs import ShardingCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync

from pmarray._formats.metadata import ArrayMetadata
from pmarray._system.beneath import Below
from pmarray._system.descriptor import Descriptor
from pmarray._system.files import read_fully

__all__ = ["Slabs", "StoredObject", "WholeFile"]


class WholeFile:
    """A file that is read in ranges of bytes, as zarr-python asks for them."""

    def __init__(self, descriptor: Descriptor, path: Below) -> None:
        self._descriptor = descriptor
        self._path = path
        self._nbytes = os.fstat(descriptor.fileno()).st_size

    async def get(
        self, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer:
        """Return some bytes.

        Raises
        ------
        ValueError
            The file has not all of them.
        """
        start, stop = 0, self._nbytes
        match byte_range:
            case RangeByteRequest():
                start, stop = byte_range.start, byte_range.end
            case OffsetByteRequest():
                start = byte_range.offset
            case SuffixByteRequest():
                start = stop - byte_range.suffix
        if not 0 <= start < stop <= self._nbytes:
            raise ValueError(f"it has {self._nbytes} bytes, and not those from {start} to {stop}")
        data = memoryview(bytearray(stop - start))
        read_fully(self._descriptor.fileno(), data, start, path=self._path)
        return prototype.buffer.from_bytes(data)


class StoredObject:
    """An object that is read in ranges of bytes, as zarr-python asks for them.

    Parameters
    ----------
    store, key
        Where it is.
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._key = key
        self._first: tuple[ByteRequest | None, bytes | None] | None = None

    async def get(
        self, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return some bytes; None where there is no object.

        Raises
        ------
        ValueError
            The object has not all of them.
        """
        if self._first is not None and self._first[0] == byte_range:
            _, known = self._first
            return None if known is None else prototype.buffer.from_bytes(known)
        found = await self._store.get(self._key, prototype, byte_range)
        if self._first is None:
            self._first = byte_range, None if found is None else found.to_bytes()
        if found is not None and isinstance(byte_range, RangeByteRequest):
            wanted = byte_range.end - byte_range.start
            if len(found) != wanted:
                raise ValueError(f"{len(found)} bytes are there of {wanted} at {byte_range.start}")
        return found

    async def is_as_it_was(self) -> bool:
        """Whether what was read first, the index of a shard, is still the same."""
        if self._first is None:
            return True
        byte_range, before = self._first
        if byte_range is None:
            return True  # all of it in one request
        found = await self._store.get(self._key, default_buffer_prototype(), byte_range)
        return (None if found is None else found.to_bytes()) == before


class Slabs:
    """How parts of the shards of one array are read.

    Parameters
    ----------
    codec
        The array's only one.
    spec
        Of a shard, for the codec.
    array
        Has the order of items, and their type.
    """

    def __init__(self, codec: ShardingCodec, spec: ArraySpec, array: ArrayMetadata) -> None:
        self._codec = codec
        self._spec = spec
        self._dtype = array.dtype
        self._order = array.order
        shape = spec.shape
        self._slow = 0 if array.order == "row" else len(shape) - 1
        self._line_nbytes = array.dtype.itemsize * math.prod(
            n for axis, n in enumerate(shape) if axis != self._slow
        )
        self.part_nbytes = codec.chunk_shape[self._slow] * self._line_nbytes
        """Of a chunk."""

    @classmethod
    def of(cls, codecs: Any, spec: ArraySpec, array: ArrayMetadata) -> Self | None:
        """None where the chunks are no slabs of their shard, or where there are no shards."""
        only = next(iter(codecs)) if len(codecs) == 1 else None
        if not isinstance(only, ShardingCodec) or array.dtype.kind not in "biufcmM":
            return None
        if not spec.shape or len(only.chunk_shape) != len(spec.shape):
            return None  # metadata that make no sense; decoding says so
        slow = 0 if array.order == "row" else len(spec.shape) - 1
        pairs = zip(only.chunk_shape, spec.shape, strict=True)
        if any(inner != n for axis, (inner, n) in enumerate(pairs) if axis != slow):
            return None
        return cls(only, spec, array)

    def read(
        self, file: WholeFile | StoredObject, start: int, stop: int
    ) -> NDArray[np.uint8] | None:
        """Return bytes of a shard in memory, from one to before another; None if there is none.

        Raises
        ------
        Exception
            The file does not hold them: whatever its codecs raise.
        """
        first, last = start // self._line_nbytes, -(-stop // self._line_nbytes)
        selection = tuple(
            slice(first, last) if axis == self._slow else slice(0, n)
            for axis, n in enumerate(self._spec.shape)
        )
        (found,) = sync(self._codec.decode_partial([(file, selection, self._spec)]))
        if found is None:
            return None
        items = found.as_numpy_array().astype(self._dtype, copy=False)
        flat = items.reshape(-1, order="C" if self._order == "row" else "F")
        base = first * self._line_nbytes
        return flat.view(np.uint8)[start - base : stop - base]

"""The chunks of one Zarr array, in any store that zarr-python knows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.buffer.cpu import NDBuffer
from zarr.core.sync import sync

from pmarray._dtypes import without_gaps
from pmarray._formats.metadata import ArrayMetadata
from pmarray._system.keptfiles import Parts
from pmarray.backends.zarr import translation as zarr_format
from pmarray.backends.zarr.codecs import ChunkCodecs, damage_told
from pmarray.backends.zarr.shards import Slabs, StoredObject, WholeFile
from pmarray.errors import DamagedError

__all__ = ["AnyArray", "ZarrChunks"]

AnyArray = NDArray[Any]
_TRIES = 3


class ZarrChunks:
    """The chunks of one Zarr array."""

    is_near = False
    _least_of_shard = 1 << 20
    """Bytes of a shard for which a request, and two for its index, are worth while."""

    def __init__(self, store: Store, path: str, array: ArrayMetadata) -> None:
        self._path = path
        self._store = store
        self._array = array
        self._metadata = metadata = zarr_format.to_zarr(array)
        self.shape = zarr_format.stored_chunk_shape(array)
        self._fill = np.frombuffer(array.fill, array.dtype)[0]
        self._codecs = ChunkCodecs(metadata)
        self._is_plain = zarr_format.is_plain(metadata, array)
        self._slabs = self._codecs.slabs(array)
        # Items are decoded into those of the array by assignment, field by field.
        self._record = without_gaps(array.dtype) if array.dtype.names is not None else None

    def grow(self, array_shape: tuple[int, ...], /) -> None:
        pass

    def read_into(self, chunk: tuple[int, ...], out: AnyArray, /) -> None:
        name = self._name(chunk)
        data = self._get(name)
        if data is None:
            out[...] = self._fill
            return
        if not len(data):
            raise DamagedError(f"chunk {name} is empty: restore it from a backup")
        with damage_told(name):
            out.reshape(self.shape)[...] = self._codecs.decode(data).as_numpy_array()

    @property
    def part_nbytes(self) -> int:
        if self._slabs is None:
            return 1 if self._is_plain else 0
        return -(-self._least_of_shard // self._slabs.part_nbytes) * self._slabs.part_nbytes

    def read_parts_into(self, chunk: tuple[int, ...], parts: Parts, /) -> None:
        if self._slabs is not None:
            self._read_slabs(chunk, self._slabs, parts)
            return
        name = self._name(chunk)
        found = self._get_parts(name, [(start, start + out.nbytes) for start, out in parts])
        for (_, out), data in zip(parts, found, strict=True):
            if data is None:
                self._put_fill(out)
            elif len(data) != out.nbytes:
                raise DamagedError(
                    f"chunk {name} is too short or too long: restore it from a backup"
                )
            else:
                out[...] = np.frombuffer(data, np.uint8)

    def read_parts_at_hand(self, chunk: tuple[int, ...], parts: Parts, /) -> bool:
        return False

    def _read_slabs(self, chunk: tuple[int, ...], slabs: Slabs, parts: Parts) -> None:
        """Read parts of a shard, all of one that stood there at one time."""
        name = self._name(chunk)
        for _ in range(_TRIES):
            shard = StoredObject(self._store, name)
            try:
                self._take(slabs, shard, name, parts)
            except DamagedError:
                break  # or another one stood there for a moment
            if sync(shard.is_as_it_was()):
                return
        # All of it in one request says what it is.
        whole = np.empty(self.shape, self._array.dtype, "F" if self._array.order == "col" else "C")
        self.read_into(chunk, whole)
        for start, out in parts:
            out[...] = whole.reshape(-1, order="A").view(np.uint8)[start : start + out.nbytes]

    def _take(
        self, slabs: Slabs, shard: WholeFile | StoredObject | None, name: str, parts: Parts
    ) -> None:
        for start, out in parts:
            with damage_told(name):
                data = None if shard is None else slabs.read(shard, start, start + out.nbytes)
            if data is None:
                self._put_fill(out)
            else:
                out[...] = data

    def _put_fill(self, out: NDArray[np.uint8]) -> None:
        out.view(self._fill.dtype)[...] = self._fill

    def _get_parts(
        self, name: str, bounds: Sequence[tuple[int, int]]
    ) -> Sequence[bytes | memoryview | None]:
        """Return parts of an object, from one byte to before another; None where there is none."""
        prototype = default_buffer_prototype()

        async def get() -> list[Buffer | None]:
            gets = [
                self._store.get(name, prototype, RangeByteRequest(start, stop))
                for start, stop in bounds
            ]
            return list(await asyncio.gather(*gets))

        return [None if one is None else one.to_bytes() for one in sync(get())]

    def write(self, chunk: tuple[int, ...], values: AnyArray, /) -> None:
        if self._record is not None:
            values = values.astype(self._record, copy=False)
        data = self._codecs.encode(NDBuffer.from_numpy_array(values.reshape(self.shape)))
        if data is None:
            self.delete(chunk)
        else:
            self._set(self._name(chunk), data)

    def delete(self, chunk: tuple[int, ...], /) -> None:
        self._delete(self._name(chunk))

    def key(self, chunk: tuple[int, ...], /) -> bytes:
        return self._name(chunk).encode()

    def before_image(self, chunk: tuple[int, ...], /) -> tuple[int, bytes] | None:
        return None

    def read_image_into(self, offset: int, chunk: tuple[int, ...], out: AnyArray, /) -> None:
        raise NotImplementedError("only a local directory keeps before-images")

    def _get(self, name: str) -> Buffer | None:
        return sync(self._store.get(name, default_buffer_prototype()))

    def _set(self, name: str, data: Buffer) -> None:
        # A copy: a store in memory keeps what it is given, and this may be the cache's own buffer.
        sync(self._store.set(name, type(data).from_bytes(data.to_bytes())))

    def _delete(self, name: str) -> None:
        sync(self._store.delete(name))

    def _name(self, chunk: tuple[int, ...]) -> str:
        name = self._metadata.encode_chunk_key(chunk[: len(self.shape)])
        return f"{self._path}/{name}" if self._path else name

"""Codecs of a Zarr array that decode no more than a chunk can hold.

A chunk of 32 KiB whose compressed bytes say that they are a gigabyte would take a gigabyte,
whatever memory the cache was given. So what a compressor is about to make is known before it makes
it: from the header of what it made (zstd, Blosc, LZ4), or because it stops when it has made enough
(gzip, zlib, bz2, LZMA). Filters may change the type of the items, and with it their size: to none
that is larger than those that NumPy computes with.

Codecs that are written by others, and registered with zarr-python, answer for themselves.
"""

from __future__ import annotations

import bz2
import lzma
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numcodecs
import numpy as np
from zarr.abc.codec import ArrayArrayCodec, BytesBytesCodec, Codec
from zarr.codecs import BloscCodec, GzipCodec, ShardingCodec, ZstdCodec
from zarr.codecs._v2 import V2Codec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer
from zarr.core.metadata import ArrayV2Metadata, ArrayV3Metadata

from pmarray.errors import DamagedError, ForeignDataError

__all__ = ["bounded_codecs", "decompress", "is_direct"]

# What a compressor adds to what it cannot compress, once for each of those that follow another.
_MIN_OVERHEAD_BYTES = 64 << 10
_MAX_ITEM_BYTES = 32
_STEP_BYTES = 1 << 20
_LZMA_MEMORY_BYTES = 256 << 20
_TYPES = ("dtype", "astype", "encode_dtype", "decode_dtype")
_ZSTD_MAGIC = 0xFD2FB528
_CHECKSUMS = frozenset({"adler32", "crc32", "crc32c", "fletcher32", "jenkins_lookup3"})
# Of format 2, where a name can be that of anything that numcodecs knows: pickles are among it.
_V2_CODECS = frozenset(
    {
        "adler32", "astype", "bitround", "blosc", "bz2", "crc32", "crc32c", "delta",
        "fixedscaleoffset", "fletcher32", "gzip", "jenkins_lookup3", "lz4", "lzma", "packbits",
        "quantize", "shuffle", "zlib", "zstd",
    }
)  # fmt: skip


def bounded_codecs(metadata: ArrayV2Metadata | ArrayV3Metadata) -> list[Codec]:
    """Return what decodes and encodes the chunks of an array.

    Raises
    ------
    ForeignDataError
        A codec of format 2 that is not known here, or one that would make items of another kind.
    """
    if isinstance(metadata, ArrayV3Metadata):
        return [_bounded(codec) for codec in metadata.codecs]
    items = math.prod(metadata.chunks)
    nbytes = items * metadata.dtype.to_native_dtype().itemsize
    filters = []
    for one in metadata.filters or ():
        filters.append(_BoundedNumcodec(_checked(one), _Bound.of(nbytes)))
        nbytes = _filtered(one, items, nbytes)
    compressor = metadata.compressor and _checked(metadata.compressor)
    return [
        V2Codec(
            filters=tuple(filters) or None,
            compressor=compressor and _BoundedNumcodec(compressor, _Bound.of(nbytes)),
        )
    ]


def _filtered(codec: Any, items: int, nbytes: int) -> int:
    """Return how many bytes a filter of format 2 makes of so many."""
    configuration = codec.get_config()
    if codec.codec_id == "packbits":
        return -(-items // 8) + 1
    if codec.codec_id in _CHECKSUMS:
        return nbytes + 4
    stored = configuration.get("encode_dtype") or configuration.get("astype")
    return nbytes if stored is None else items * np.dtype(stored).itemsize


def _checked(codec: Any) -> Any:
    if codec.codec_id not in _V2_CODECS:
        raise ForeignDataError(
            f"codec {codec.codec_id!r} is not decoded here: it could run a stranger's program, or "
            "is not known; convert the array with zarr-python if you trust it"
        )
    _check_types(codec.get_config())
    return codec


def _check_types(configuration: Mapping[str, Any]) -> None:
    for name in _TYPES:
        value = configuration.get(name)
        if value is not None:
            dtype = np.dtype(value)
            if dtype.hasobject or dtype.itemsize > _MAX_ITEM_BYTES:
                raise ForeignDataError(f"a filter makes items of type {value!r}")


def _bounded(codec: Codec) -> Codec:
    if isinstance(codec, ShardingCodec):
        return replace(codec, codecs=tuple(_bounded(one) for one in codec.codecs))
    if isinstance(codec, ArrayArrayCodec):
        _check_types(getattr(codec, "codec_config", {}))
    if isinstance(codec, BytesBytesCodec) and _name(codec) in _LIMITS:
        return (_DirectBoundedCodec if is_direct(codec) else _BoundedCodec)(codec)
    return codec


def is_direct(codec: Codec) -> bool:
    """Whether a codec can be called without an event loop, as many of zarr-python's can."""
    return hasattr(codec, "_decode_sync") and hasattr(codec, "_encode_sync")


@dataclass(frozen=True, slots=True)
class _Bound:
    exact: int
    """Bytes of a chunk that is neither compressed nor has a checksum."""
    most: int
    """What a step on the way to that may have."""

    @classmethod
    def of(cls, exact: int) -> _Bound:
        return cls(exact, exact + exact // 4 + _MIN_OVERHEAD_BYTES)


def _bound_of(spec: ArraySpec) -> _Bound:
    return _Bound.of(math.prod(spec.shape) * spec.dtype.to_native_dtype().itemsize)


@dataclass(frozen=True)
class _BoundedCodec(BytesBytesCodec):
    """A codec of format 3, to which what is too much is damage."""

    codec: BytesBytesCodec
    is_fixed_size = False

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> _BoundedCodec:
        return type(self)(self.codec.evolve_from_array_spec(array_spec))

    def to_dict(self) -> dict[str, Any]:
        return self.codec.to_dict()

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        made = decompress(_name(self.codec), chunk_data.to_bytes(), _bound_of(chunk_spec))
        if made is not None:
            return chunk_spec.prototype.buffer.from_bytes(made)
        return await self.codec._decode_single(chunk_data, chunk_spec)

    async def _encode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer | None:
        return await self.codec._encode_single(chunk_data, chunk_spec)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        return self.codec.compute_encoded_size(input_byte_length, chunk_spec)


class _DirectBoundedCodec(_BoundedCodec):
    """The same for one that can be called without an event loop."""

    def _decode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        made = decompress(_name(self.codec), chunk_data.to_bytes(), _bound_of(chunk_spec))
        if made is not None:
            return chunk_spec.prototype.buffer.from_bytes(made)
        codec: Any = self.codec
        result: Buffer = codec._decode_sync(chunk_data, chunk_spec)
        return result

    def _encode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer | None:
        codec: Any = self.codec
        result: Buffer | None = codec._encode_sync(chunk_data, chunk_spec)
        return result


class _BoundedNumcodec(numcodecs.abc.Codec):  # type: ignore[misc]  # numcodecs has no types
    """The same for a codec of format 2."""

    def __init__(self, codec: Any, bound: _Bound) -> None:
        self._codec = codec
        self._bound = bound

    def encode(self, buf: Any) -> Any:
        return self._codec.encode(buf)

    def decode(self, buf: Any, out: Any = None) -> Any:
        name = self._codec.codec_id
        if name in _LIMITS:
            data = numcodecs.compat.ensure_bytes(buf)
            made = decompress(name, data, self._bound)
            if made is not None:
                return made
        return self._codec.decode(buf, out)


def _name(codec: BytesBytesCodec) -> str:
    for kind, name in ((ZstdCodec, "zstd"), (BloscCodec, "blosc"), (GzipCodec, "gzip")):
        if isinstance(codec, kind):
            return name
    return str(getattr(codec, "codec_name", "")).removeprefix("numcodecs.")


def decompress(name: str, data: bytes, bound: _Bound) -> bytes | None:
    """Decompress where that is how it is bounded; return None where the codec may go on itself.

    Raises
    ------
    DamagedError
        It would be more than the bound.
    """
    return _LIMITS[name](data, bound)


def _refuse(nbytes: int, bound: _Bound) -> None:
    if nbytes > bound.most:
        raise DamagedError(
            f"it says that it decompresses to {nbytes} bytes, and should to {bound.exact}"
        )


def _zstd(data: bytes, bound: _Bound) -> bytes | None:
    nbytes = _zstd_nbytes(data)
    if nbytes is None:
        # Written as a stream. A destination of the right size takes that and nothing else.
        out = np.empty(bound.exact, np.uint8)
        return bytes(numcodecs.zstd.decompress(data, out))
    _refuse(nbytes, bound)
    return None


def _zstd_nbytes(data: bytes) -> int | None:
    """Return what the header of a frame says (RFC 8878, 3.1.1.1); None if it does not."""
    if len(data) < 5 or int.from_bytes(data[:4], "little") != _ZSTD_MAGIC:
        return None
    descriptor = data[4]
    single_segment = descriptor >> 5 & 1
    width = (single_segment, 2, 4, 8)[descriptor >> 6]
    if not width:
        return None
    start = 5 + (not single_segment) + (0, 1, 2, 4)[descriptor & 3]
    value = int.from_bytes(data[start : start + width], "little")
    return value + 256 if width == 2 else value


def _blosc(data: bytes, bound: _Bound) -> None:
    # numcodecs does not tell Blosc how many bytes there are: it believes its header, and reads on
    # behind the end (version, version of the compressor, flags, size of items; three numbers).
    if len(data) < 16 or int.from_bytes(data[12:16], "little") != len(data):
        raise DamagedError("the header of a Blosc chunk states another length than it has")
    _refuse(int.from_bytes(data[4:8], "little"), bound)


def _header(start: int) -> Callable[[bytes, _Bound], None]:
    """Of a compressor that says at this byte, in four, how much it will make."""

    def check(data: bytes, bound: _Bound) -> None:
        _refuse(int.from_bytes(data[start : start + 4], "little"), bound)

    return check


class _Decompressor(Protocol):
    """What `bz2`, `lzma` and, all but, `zlib` have."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _stream(new: Callable[[], _Decompressor]) -> Callable[[bytes, _Bound], bytes]:
    """Of a compressor that says nothing: it is stopped."""

    def decode(data: bytes, bound: _Bound) -> bytes:
        made: list[bytes] = []
        nbytes = 0
        while data:  # a file may have several streams, one behind the other
            one = new()
            piece = one.decompress(data, _STEP_BYTES)
            while True:
                made.append(piece)
                nbytes += len(piece)
                _refuse(nbytes, bound)
                rest = getattr(one, "unconsumed_tail", b"")
                if one.eof or not (piece or rest):
                    break
                piece = one.decompress(rest, _STEP_BYTES)
            if not one.eof:
                raise DamagedError("the compressed bytes are cut short")
            data = one.unused_data
        return b"".join(made)

    return decode


def _lzma() -> _Decompressor:
    return lzma.LZMADecompressor(memlimit=_LZMA_MEMORY_BYTES)


_LIMITS: Mapping[str, Callable[[bytes, _Bound], bytes | None]] = {
    "zstd": _zstd,
    "blosc": _blosc,
    "lz4": _header(0),
    "gzip": _stream(lambda: zlib.decompressobj(wbits=31)),
    "zlib": _stream(lambda: zlib.decompressobj()),
    "bz2": _stream(lambda: bz2.BZ2Decompressor()),
    "lzma": _stream(_lzma),
}

"""A new array in a store of Zarr's: its metadata, from what a user asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numcodecs.abc
import numpy as np
import zarr
from zarr.abc.codec import (
    ArrayArrayCodec,
    ArrayBytesCodec,
    BytesBytesCodec,
    Codec,
)
from zarr.codecs import TransposeCodec
from zarr.errors import UnknownCodecError
from zarr.registry import get_codec_class
from zarr.storage import MemoryStore

from pmarray._dtypes import DType, by_its_name, encode_dtype, without_gaps
from pmarray._formats.metadata import ArrayMetadata
from pmarray._geometry.chunking import TARGET_CHUNK_BYTES, refuse_large_chunk
from pmarray._geometry.layout import Layout, parse_chunks
from pmarray.backends.zarr import translation as zarr_format
from pmarray.errors import LayoutError

__all__ = ["plan"]

# A chunk of a small array that may grow; each is a file, or an object far away.
_MIN_CHUNK_BYTES = 64 << 10


def plan(
    array: ArrayMetadata,
    chunks: str | int | tuple[int, ...],
    max_nbytes: int,
    *,
    name: str = "array",
    codecs: Sequence[Any] | None = None,
    shards: tuple[int, ...] | None = None,
    dimension_names: Sequence[str] | None = None,
) -> ArrayMetadata:
    """Complete the metadata of a new array by those that Zarr has.

    Parameters
    ----------
    array
        Shape, dtype, order and fill value.
    chunks
        "auto", a number of lines, or any shape.
    max_nbytes
        What the cache has room for.
    name
        Of the array, for the names of its axes.
    codecs
        Names, ``{"name": ..., "configuration": ...}``, or codecs of zarr-python or numcodecs, in
        the order in which they encode. None stores the items as they are.
    shards
        Shape of the objects in the store, a multiple of the chunk shape, where several chunks
        share one.
    dimension_names
        One name an axis, for xarray; names of their own unless told, since xarray wants one
        extent for a name.

    Raises
    ------
    LayoutError
        Zarr has no such array.
    """
    layout = zarr_format.unpadded(array.shape, array.dtype, array.order)
    # A chunk has a line of every axis, also where the array has none yet.
    solid = zarr_format.unpadded(tuple(max(1, n) for n in array.shape), array.dtype, array.order)
    given = "auto" if array.shape == () else chunks
    shape = _chunk_shape(solid, given, max_nbytes)[: len(array.shape)]
    if shards is not None and not all(isinstance(n, int) and n > 0 for n in shards):
        raise LayoutError(f"shards={shards!r}: give one extent an axis, a multiple of the chunk's")
    if shards is not None and array.dtype.type is np.void:
        raise LayoutError(
            "zarr-python cannot store records, or raw bytes, in shards: leave out shards="
        )
    if dimension_names is None:
        dimension_names = [f"{name}_axis{i}" for i in range(len(array.shape))]
    filters, serializer, compressors = _sorted_codecs(codecs or ())
    if array.order == "col" and len(array.shape) > 1:
        filters.insert(0, TransposeCodec(order=tuple(reversed(range(len(array.shape))))))
    ours = {"layout": array.order, "id": array.file_id, "dtype": encode_dtype(array.dtype)}
    fill = np.frombuffer(array.fill, by_its_name(array.dtype))
    if array.dtype.names is not None:
        fill = fill.astype(without_gaps(array.dtype))  # as Zarr has records
    try:
        with zarr_format.quiet():
            example = zarr.create_array(
                MemoryStore(),
                shape=array.shape,
                dtype=fill.dtype,
                chunks=shape,
                shards=shards,
                filters=filters,
                serializer=serializer,
                compressors=compressors,
                fill_value=fill[0],
                dimension_names=dimension_names,
                attributes={zarr_format.OURS: ours},
            )
        result = array._replace(
            line_stride=layout.line_stride, document=zarr_format.document_of(example.metadata)
        )
        # It is read again: of dates without a unit zarr-python writes what it does not take.
        stored = zarr_format.to_zarr(result).dtype.to_native_dtype()
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise LayoutError(
            f"Zarr cannot store shape {array.shape}, dtype {array.dtype}, chunks {shape}"
            f"{f', shards {shards}' if shards else ''}: {error}"
        ) from error
    _refuse_other_items(array.dtype, stored)
    unit = zarr_format.stored_chunk_shape(result)
    refuse_large_chunk(unit, math.prod(unit) * array.dtype.itemsize, max_nbytes)
    return result


def _refuse_other_items(dtype: DType, stored: DType) -> None:
    """Refuse records that would come back as others: whose fields are arrays."""
    if dtype.names is not None and without_gaps(dtype) != stored:
        raise LayoutError(
            f"dtype {dtype} would be stored as {stored}: the fields of Zarr's records are no arrays"
        )


def _chunk_shape(
    layout: Layout, chunks: str | int | tuple[int, ...], max_nbytes: int
) -> tuple[int, ...]:
    slow = layout.slow_axis
    chunks = parse_chunks(chunks)
    if chunks == "auto":
        target = min(TARGET_CHUNK_BYTES, max_nbytes)
        result = list(layout.chunk_shape(target, max_nbytes, on_blocks=False))
        # A file of a region backend ends where the array ends; a chunk is stored whole.
        enough = -(-_MIN_CHUNK_BYTES // max(1, layout.line_nbytes))
        result[slow] = min(result[slow], max(layout.lines, enough))
        return tuple(result)
    if isinstance(chunks, int):
        result = [max(1, n) for n in layout.shape]
        result[slow] = chunks
        return tuple(result)
    if len(chunks) != len(layout.shape):
        raise LayoutError(
            f"chunks={chunks!r}: give 'auto', a number of lines, or one extent an axis"
        )
    return chunks


def _sorted_codecs(
    codecs: Sequence[Any],
) -> tuple[list[ArrayArrayCodec], Any, list[BytesBytesCodec]]:
    filters: list[ArrayArrayCodec] = []
    serializer: Any = "auto"
    compressors: list[BytesBytesCodec] = []
    if isinstance(codecs, str) or not isinstance(codecs, Sequence):
        raise LayoutError(f"codecs={codecs!r}: give a list, such as [{codecs!r}]")
    for one in codecs:
        codec = _codec(one)
        if isinstance(codec, ArrayArrayCodec):
            filters.append(codec)
        elif isinstance(codec, ArrayBytesCodec):
            serializer = codec
        elif isinstance(codec, BytesBytesCodec):
            compressors.append(codec)
    return filters, serializer, compressors


def _codec(one: Any) -> Codec:
    if isinstance(one, Codec):
        return one
    if isinstance(one, numcodecs.abc.Codec):
        given = one.get_config()
        name = given.pop("id")
        if name not in ("zstd", "gzip"):  # which are in the specification, and called the same
            name = f"numcodecs.{name}"
        return _codec({"name": name, "configuration": given})
    name, configuration = (one, {}) if isinstance(one, str) else (None, {})
    if isinstance(one, Mapping):
        name, configuration = one.get("name"), dict(one.get("configuration", {}))
    if not isinstance(name, str):
        raise LayoutError(f"not a codec: {one!r}; give a name, or a mapping with 'name'")
    for spelling in (name, f"numcodecs.{name}"):
        try:
            found = get_codec_class(spelling)
        except (KeyError, UnknownCodecError):
            continue
        try:
            with zarr_format.quiet():
                return found.from_dict(
                    {"name": spelling, "configuration": cast(Any, configuration)}
                )
        except (TypeError, ValueError, KeyError) as error:
            raise LayoutError(f"codec {name!r} with {configuration}: {error}") from error
    raise LayoutError(f"no codec {name!r}; for example 'zstd', 'blosc', 'bitround', 'crc32c'")

"""Between Zarr's metadata of an array and ours: pure translation, no input or output."""

from __future__ import annotations

import functools
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal, cast
from uuid import NAMESPACE_URL, uuid5

import google_crc32c
import numcodecs.abc
import numpy as np
import zarr
from zarr.abc.codec import (
    ArrayArrayCodec,
    ArrayBytesCodec,
    BytesBytesCodec,
    Codec,
)
from zarr.codecs import ShardingCodec, TransposeCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.metadata import ArrayV2Metadata, ArrayV3Metadata
from zarr.errors import UnstableSpecificationWarning
from zarr.registry import get_codec_class
from zarr.storage import MemoryStore

from pmarray._dtypes import (
    DType,
    by_its_name,
    decode_dtype,
    encode_dtype,
    parse_dtype,
    without_gaps,
)
from pmarray._formats.metadata import FOREIGN_IDS, ArrayMetadata, check_extents, check_integer
from pmarray._geometry.chunking import TARGET_CHUNK_BYTES, refuse_large_chunk
from pmarray._geometry.layout import Layout, Order, parse_chunks
from pmarray.backends.zarr import dtypes as zarr_dtypes
from pmarray.backends.zarr.bounds import bounded_codecs
from pmarray.errors import DamagedError, ForeignDataError, LayoutError

zarr_dtypes.register()

__all__ = [
    "OURS",
    "attributes_with",
    "check",
    "documents",
    "foreign_id",
    "from_zarr",
    "identity",
    "our_attribute",
    "plan",
    "quiet",
    "refuse_items_without_chunks",
    "stored_chunk_shape",
    "to_zarr",
    "unsupported",
    "user_attributes",
]

ZarrMetadata = ArrayV2Metadata | ArrayV3Metadata

OURS = "pmarray"
"""The attribute of groups and arrays that holds what Zarr has no word for."""
_THEIRS = "attribute"
"""Within ours, a user's attribute of that name."""
_MAX_ITEM_BYTES = 1 << 20
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
    layout = _unpadded(array.shape, array.dtype, array.order)
    # A chunk has a line of every axis, also where the array has none yet.
    solid = _unpadded(tuple(max(1, n) for n in array.shape), array.dtype, array.order)
    given = "auto" if array.shape == () else chunks
    shape = _chunk_shape(solid, given, max_nbytes)[: len(array.shape)]
    if shards is not None and not all(isinstance(n, int) and n > 0 for n in shards):
        raise LayoutError(f"shards={shards!r}: give one extent an axis, a multiple of the chunk's")
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
        with quiet():
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
                attributes={OURS: ours},
            )
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise LayoutError(
            f"Zarr cannot store shape {array.shape}, dtype {array.dtype}, chunks {shape}"
            f"{f', shards {shards}' if shards else ''}: {error}"
        ) from error
    result = replace(array, line_stride=layout.line_stride, document=_document(example.metadata))
    _refuse_other_items(array.dtype, to_zarr(result).dtype.to_native_dtype())
    unit = _stored_chunk_shape(example.metadata)
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
        result = list(layout.chunk_shape(target, max_nbytes))
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
    if isinstance(codecs, str):
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
        except KeyError:
            continue
        try:
            with quiet():
                return found.from_dict(
                    {"name": spelling, "configuration": cast(Any, configuration)}
                )
        except (TypeError, ValueError, KeyError) as error:
            raise LayoutError(f"codec {name!r} with {configuration}: {error}") from error
    raise LayoutError(f"no codec {name!r}; for example 'zstd', 'blosc', 'bitround', 'crc32c'")


def from_zarr(metadata: ZarrMetadata, name: str) -> ArrayMetadata:
    """Return what an array is to us; its extents are those of the metadata.

    Raises
    ------
    ForeignDataError
        It has what no array of ours can have.
    DamagedError
        It says that it is ours, and cannot be.
    """
    try:
        return _from_zarr(metadata, name)
    except Exception as error:  # whatever arbitrary metadata lead to
        if _ours(metadata):
            raise DamagedError(f"the metadata of the array {name!r} make no sense: {error}") from (
                error
            )
        raise ForeignDataError(f"the Zarr array {name!r} cannot be opened: {error}") from error


def _from_zarr(metadata: ZarrMetadata, name: str) -> ArrayMetadata:
    dtype = _dtype(metadata)
    if dtype.itemsize > _MAX_ITEM_BYTES:
        raise ValueError(f"items of {dtype.itemsize} bytes")
    check_extents(metadata.shape, dtype.itemsize)
    chunk = check_extents(_stored_chunk_shape(metadata), dtype.itemsize)
    if 0 in _inner_chunk_shape(metadata) or (0 in chunk and 0 not in metadata.shape):
        raise ValueError(f"its chunks have the shape {chunk}, so that there is nothing in one")
    bounded_codecs(metadata)
    order = _order(metadata)
    fill = np.zeros((), dtype)
    # Format 2 may name none: zarr-python reads its type's own then, NaT for a date.
    none = metadata.fill_value is None
    fill[()] = metadata.dtype.default_scalar() if none else metadata.fill_value
    layout = _unpadded(metadata.shape, dtype, order)
    return ArrayMetadata(
        _file_id(metadata, name),
        tuple(metadata.shape),
        dtype,
        order,
        layout.line_stride,
        fill.tobytes(),
        _document(metadata),
        user_attributes(metadata.attributes or {}),
    )


def unsupported(document: bytes | None) -> str | None:
    """The type of an array's items, if it is one that Zarr knows and nothing here reads."""
    try:
        value = json.loads(document or b"{}")["data_type"]
        name = value["name"] if isinstance(value, Mapping) else value
    except (ValueError, KeyError, TypeError):
        return None
    return name if name in zarr_dtypes.UNSUPPORTED else None


def _inner_chunk_shape(metadata: ZarrMetadata) -> tuple[int, ...]:
    codecs: Sequence[Any] = () if isinstance(metadata, ArrayV2Metadata) else metadata.codecs
    return tuple(n for one in codecs if isinstance(one, ShardingCodec) for n in one.chunk_shape)


def check(array: ArrayMetadata, name: str) -> None:
    """Raise `DamagedError` where what the metadata say in our words and in Zarr's is not one."""
    try:
        told = from_zarr(to_zarr(array), name)
        mine = array.shape, array.dtype, array.order, array.line_stride
        theirs = told.shape, told.dtype, told.order, told.line_stride
        if mine != theirs:
            raise ValueError(f"{mine} is not {theirs}")
    except Exception as error:  # whatever arbitrary metadata lead to
        raise DamagedError(f"the metadata of the array {name!r} make no sense: {error}") from error


def identity(attributes: Mapping[str, Any], where: str) -> tuple[str, int, int]:
    """Return uuid, next number and last transaction of a group; others get a uuid by place.

    Raises
    ------
    DamagedError
        It says that it is ours, and cannot be.
    """
    ours = attributes.get(OURS)
    if not isinstance(ours, Mapping):
        ours = {}
    try:
        uuid = ours.get("uuid") or str(uuid5(NAMESPACE_URL, where))
        if not isinstance(uuid, str):
            raise ValueError(f"a uuid is text, not {uuid!r:.40}")
        return (
            uuid, check_integer(ours.get("next", 1), 1), check_integer(ours.get("transaction", 0)),
        )  # fmt: skip
    except ValueError as error:
        raise DamagedError(f"the attributes of {where} make no sense: {error}") from error


def to_zarr(array: ArrayMetadata) -> ZarrMetadata:
    """Return the metadata of an array as Zarr has them."""
    assert array.document is not None
    if array.attrs:
        return _parse(array.document, array.shape, array.attrs)
    return _parse_without_attrs(array.document, array.shape)


@lru_cache(maxsize=64)
def _parse_without_attrs(document: str, shape: tuple[int, ...]) -> ZarrMetadata:
    """Keep what is asked for several times whenever a group is opened."""
    return _parse(document, shape, {})


def _parse(document: str, shape: tuple[int, ...], attrs: dict[str, Any]) -> ZarrMetadata:
    value = json.loads(document)
    ours = our_attribute(value.get("attributes", {}))
    value["attributes"] = attributes_with(attrs, ours)
    with quiet():
        if value["zarr_format"] == 2:
            metadata: ZarrMetadata = ArrayV2Metadata.from_dict(value)
        else:
            metadata = ArrayV3Metadata.from_dict(value)
        return metadata.update_shape(shape)


def documents(metadata: ZarrMetadata) -> dict[str, bytes]:
    """Return the documents of an array by their keys, as zarr-python writes them."""
    with quiet():
        buffers = metadata.to_buffer_dict(default_buffer_prototype())
    return {key: buffer.to_bytes() for key, buffer in buffers.items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Do without warnings that zarr-python gives whenever it reads metadata.

    That a codec or a dtype is not in the specification: the documentation of `Group.create` says
    it once. And that there is something beside the
    arrays: while a writer is at work there is.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Numcodecs codecs are not in the Zarr version 3")
        warnings.filterwarnings("ignore", "Object at .* is not recognized as a component")
        warnings.simplefilter("ignore", UnstableSpecificationWarning)
        yield


def _file_id(metadata: ZarrMetadata, name: str) -> int:
    """The number of an array: ours carry one, others get one that their name determines."""
    number = _ours(metadata).get("id")
    return foreign_id(name) if number is None else check_integer(number, 1)


def foreign_id(name: str) -> int:
    """A number that is none of ours, and always the same for a name."""
    return FOREIGN_IDS + int(google_crc32c.value(name.encode()))


def attributes_with(attributes: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of a user, and ours; one of the same name is kept within ours."""
    if not ours:
        return dict(attributes)
    result = {key: value for key, value in ours.items() if key != _THEIRS}
    if OURS in attributes:
        result[_THEIRS] = attributes[OURS]
    return {**attributes, OURS: result}


def user_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes without ours."""
    result = {key: value for key, value in attributes.items() if key != OURS}
    ours = our_attribute(attributes)
    if not ours and OURS in attributes:
        result[OURS] = attributes[OURS]  # somebody else's
    elif _THEIRS in ours:
        result[OURS] = ours[_THEIRS]
    return result


def our_attribute(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """What we have noted of a group, or of an array; nothing if that is not ours."""
    found = attributes.get(OURS)
    if not isinstance(found, Mapping):
        return {}
    # By its keys, whatever they hold: ours that makes no sense is damage, and not a user's. That of
    # a group in Icechunk has a uuid only: a number would be in conflict after every commit.
    known = "uuid" in found or {"layout", "id"} <= found.keys()
    return found if known else {}


def _ours(metadata: ZarrMetadata) -> Mapping[str, Any]:
    attributes: Any = metadata.attributes
    return our_attribute(attributes) if isinstance(attributes, Mapping) else {}


def _dtype(metadata: ZarrMetadata) -> DType:
    native = parse_dtype(metadata.dtype.to_native_dtype())
    said = _ours(metadata).get("dtype")
    if said is not None:
        dtype = decode_dtype(said)
        if without_gaps(dtype) == without_gaps(native):
            return dtype  # Zarr keeps the order of bytes to itself, and has no gaps
    return native


def _order(metadata: ZarrMetadata) -> Order:
    said = _ours(metadata).get("layout")
    if said in ("row", "col"):
        return cast(Order, said)
    if isinstance(metadata, ArrayV2Metadata):
        return "col" if metadata.order == "F" and len(metadata.shape) > 1 else "row"
    codecs: Sequence[Any] = metadata.codecs
    if len(codecs) == 1 and isinstance(codecs[0], ShardingCodec):
        codecs = codecs[0].codecs
    backwards = tuple(reversed(range(len(metadata.shape))))
    for codec in codecs:
        if isinstance(codec, TransposeCodec) and codec.order == backwards and len(backwards) > 1:
            return "col"
    return "row"


def stored_chunk_shape(array: ArrayMetadata) -> tuple[int, ...]:
    """The shape of what is one object in the store: a chunk, or a shard of several."""
    # zarr-python makes chunks of no extent for arrays of none, of which none is ever stored.
    return tuple(max(1, n) for n in _stored_chunk_shape(to_zarr(array)))


def refuse_items_without_chunks(array: ArrayMetadata) -> None:
    """Raise `LayoutError` for an array that would have items, and has chunks of no extent."""
    assert array.document is not None
    if _has_empty_chunks(array.document) and 0 not in array.shape:
        raise LayoutError(
            "its chunks have no extent, so that nothing can be stored in one, and it cannot grow: "
            "copy it, with pmarray.copy, and let the copy grow"
        )


@functools.lru_cache(maxsize=64)  # an append asks
def _has_empty_chunks(document: str) -> bool:
    grid = json.loads(document).get("chunk_grid", {})  # what may grow is of format 3
    return 0 in grid.get("configuration", {}).get("chunk_shape", ())


def _stored_chunk_shape(metadata: ZarrMetadata) -> tuple[int, ...]:
    grid = metadata.chunk_grid
    shape = getattr(grid, "chunk_shape", None)
    if shape is None:
        raise NotImplementedError(f"its chunk grid is a {type(grid).__name__}, not a regular one")
    return tuple(shape)


def _document(metadata: ZarrMetadata) -> str:
    if isinstance(metadata, ArrayV2Metadata):
        value = _jsonable(metadata.to_dict())
    else:
        value = json.loads(documents(metadata)["zarr.json"])
    ours = value.get("attributes", {}).get(OURS)
    value["attributes"] = {} if ours is None else {OURS: ours}
    return json.dumps(value, sort_keys=True)


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda item: item.tolist()))


def _unpadded(shape: tuple[int, ...], dtype: DType, order: Literal["row", "col"]) -> Layout:
    """A layout without padding: chunks are stored one by one, and never whole lines of a file."""
    shape = shape or (1,)
    stride = Layout(shape, dtype.itemsize, order, 0).line_nbytes
    return Layout(shape, dtype.itemsize, order, stride)

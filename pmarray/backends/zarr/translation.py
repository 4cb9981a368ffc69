"""Between Zarr's metadata of an array and ours: pure translation, no input or output."""

from __future__ import annotations

import functools
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal, cast
from uuid import NAMESPACE_URL, uuid5

import google_crc32c
import numpy as np
from zarr.codecs import BytesCodec, ShardingCodec, TransposeCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.metadata import ArrayV2Metadata, ArrayV3Metadata
from zarr.errors import UnstableSpecificationWarning

from pmarray._dtypes import (
    DType,
    decode_dtype,
    parse_dtype,
    without_gaps,
)
from pmarray._formats.metadata import (
    FOREIGN_IDS,
    ArrayMetadata,
    check_extents,
    check_integer,
    parse_json,
)
from pmarray._geometry.layout import Layout, Order
from pmarray.backends.zarr import dtypes as zarr_dtypes
from pmarray.backends.zarr.bounds import bounded_codecs
from pmarray.errors import DamagedError, ForeignDataError, LayoutError

zarr_dtypes.register()

__all__ = [
    "OURS",
    "ZarrMetadata",
    "attributes_with",
    "check",
    "chunk_shape_of",
    "document_of",
    "documents",
    "foreign_id",
    "from_zarr",
    "identity",
    "our_attribute",
    "quiet",
    "refuse_items_without_chunks",
    "stored_chunk_shape",
    "to_zarr",
    "unpadded",
    "unsupported",
    "user_attributes",
]

ZarrMetadata = ArrayV2Metadata | ArrayV3Metadata

OURS = "pmarray"
"""The attribute of groups and arrays that holds what Zarr has no word for."""
_THEIRS = "attribute"
"""Within ours, a user's attribute of that name."""
_MAX_ITEM_BYTES = 1 << 20


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
    chunk = check_extents(chunk_shape_of(metadata), dtype.itemsize)
    if 0 in _inner_chunk_shape(metadata) or (0 in chunk and 0 not in metadata.shape):
        raise ValueError(f"its chunks have the shape {chunk}, so that there is nothing in one")
    bounded_codecs(metadata)
    _refuse_byte_order(metadata, dtype)
    order = _order(metadata)
    fill = np.zeros((), dtype)
    # Format 2 may name none: zarr-python reads its type's own then, NaT for a date.
    none = metadata.fill_value is None
    fill[()] = metadata.dtype.default_scalar() if none else metadata.fill_value
    layout = unpadded(metadata.shape, dtype, order)
    return ArrayMetadata(
        _file_id(metadata, name),
        tuple(metadata.shape),
        dtype,
        order,
        layout.line_stride,
        fill.tobytes(),
        document_of(metadata),
        user_attributes(metadata.attributes or {}),
    )


def _refuse_byte_order(metadata: ZarrMetadata, dtype: DType) -> None:
    """NumPy has types for both orders of bytes, but of bfloat16 for the machine's alone."""
    if isinstance(metadata, ArrayV2Metadata) or dtype.name != "bfloat16":
        return
    inner = [c for one in metadata.codecs if isinstance(one, ShardingCodec) for c in one.codecs]
    for one in (*metadata.codecs, *inner):
        if isinstance(one, BytesCodec) and _byte_order(one) == "big":
            raise ValueError("bfloat16 in big-endian bytes, which is not read here")


def _byte_order(codec: BytesCodec) -> str | None:
    """The order of bytes that is stored: "little", "big", or None for items of one byte."""
    # As it is written: zarr-python keeps it as an enumeration, and since 3.3 as text.
    written = cast(Mapping[str, str], codec.to_dict().get("configuration", {}))
    return written.get("endian")


def is_plain(metadata: ZarrMetadata, array: ArrayMetadata) -> bool:
    """Whether chunks are stored byte for byte as they lie in memory, in the order of the array."""
    if isinstance(metadata, ArrayV2Metadata) or array.dtype.kind not in "biufcmM":
        return False
    *before, last = metadata.codecs
    if not isinstance(last, BytesCodec) or not array.dtype.isnative:
        return False
    if _byte_order(last) not in (None, sys.byteorder):
        return False
    ndim = len(metadata.shape)
    if ndim < 2:
        return ndim == 1 and not before
    if array.order == "row":
        return not before
    return (
        len(before) == 1
        and isinstance(before[0], TransposeCodec)
        and before[0].order == tuple(reversed(range(ndim)))
    )


def unsupported(document: bytes | None) -> str | None:
    """The type of an array's items, if it is one that Zarr knows and nothing here reads."""
    try:
        value = parse_json(document or b"{}")["data_type"]
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


def _parse(document: str, shape: tuple[int, ...], attrs: Mapping[str, Any]) -> ZarrMetadata:
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
    return tuple(max(1, n) for n in chunk_shape_of(to_zarr(array)))


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


def chunk_shape_of(metadata: ZarrMetadata) -> tuple[int, ...]:
    """The shape of what is one object in the store, as the metadata say it: 0 may be in it."""
    if isinstance(metadata, ArrayV2Metadata):
        return tuple(metadata.chunks)
    grid = metadata.chunk_grid
    shape = getattr(grid, "chunk_shape", None)
    if shape is None:
        raise NotImplementedError(f"its chunk grid is a {type(grid).__name__}, not a regular one")
    return tuple(shape)


def document_of(metadata: ZarrMetadata) -> str:
    """Return what our metadata keep of Zarr's: all but a user's attributes."""
    if isinstance(metadata, ArrayV2Metadata):
        value = _jsonable(metadata.to_dict())
    else:
        value = json.loads(documents(metadata)["zarr.json"])
    ours = value.get("attributes", {}).get(OURS)
    value["attributes"] = {} if ours is None else {OURS: ours}
    return json.dumps(value, sort_keys=True)


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda item: item.tolist()))


def unpadded(shape: tuple[int, ...], dtype: DType, order: Literal["row", "col"]) -> Layout:
    """A layout without padding: chunks are stored one by one, and never whole lines of a file."""
    shape = shape or (1,)
    stride = Layout(shape, dtype.itemsize, order, 0).line_nbytes
    return Layout(shape, dtype.itemsize, order, stride)

"""What a group knows about itself, and its spelling in ``pmarray.json``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import google_crc32c

from pmarray._dtypes import DType, decode_dtype, encode_dtype
from pmarray._formats.names import is_name
from pmarray._geometry.layout import BLOCK_BYTES, Layout, Order
from pmarray._geometry.spans import SpanSet
from pmarray.errors import DamagedError, ForeignDataError

__all__ = [
    "DEAD",
    "FOREIGN_IDS",
    "FORMAT_VERSION",
    "ArrayMetadata",
    "Checkpoint",
    "GroupMetadata",
    "check_depth",
    "check_extents",
    "check_integer",
    "parse_json",
]

FORMAT_VERSION = 1
DEAD = "dead"
"""The key of an array's dead bytes."""
FOREIGN_IDS = 1 << 32
"""From here on, arrays of other programs in a chunk store have their numbers."""
_MAX_BYTES = (1 << 63) - 1
_MAX_AXES = 64
"""As NumPy has it."""
_MAX_DEPTH = 100


def check_integer(value: Any, low: int = 0, high: int = _MAX_BYTES) -> int:
    """Return a number that was read, or raise ValueError where it is none or out of range."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{value!r:.40} is no integer from {low} to {high}")
    return value


def _check_nonce(value: Any) -> int:
    if type(value) is not str or not re.fullmatch("[0-9a-f]{16}", value):
        raise ValueError(f"{value!r:.40} is no nonce")
    return int(value, 16)


def check_extents(shape: Any, itemsize: int) -> tuple[int, ...]:
    """Return a shape that was read, or raise ValueError where no array can have it.

    NumPy counts bytes in 63 bits, and for that takes extents of 0 for 1.

    >>> check_extents([3, 0, 2], 8)
    (3, 0, 2)
    >>> check_extents([1 << 40, 1 << 40], 8)
    Traceback (most recent call last):
        ...
    ValueError: an array of shape (1099511627776, 1099511627776) is too large
    """
    if not isinstance(shape, list | tuple) or len(shape) > _MAX_AXES:
        raise ValueError(f"{shape!r:.40} is no shape")
    result = tuple(check_integer(n) for n in shape)
    if math.prod(max(1, n) for n in result) * itemsize > _MAX_BYTES:
        raise ValueError(f"an array of shape {result} is too large")
    return result


def check_depth(value: Any) -> None:
    """Raise ValueError where a JSON value is nested so deeply that writing it might fail.

    >>> check_depth({"a": [1, {"b": []}]})
    """
    level, depth = [value], 0
    while level:
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
        inside = (one.values() if isinstance(one, dict) else one for one in level
                  if isinstance(one, dict | list | tuple))  # fmt: skip
        level, depth = [part for parts in inside for part in parts], depth + 1


def parse_json(data: bytes | str) -> Any:
    """Parse what a stranger may have written, or raise ValueError.

    >>> parse_json("[1, 2]")
    [1, 2]
    >>> parse_json("[" * 100_000)
    Traceback (most recent call last):
        ...
    ValueError: it is nested too deeply
    """
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    check_depth(value)
    return value


class ArrayMetadata(NamedTuple):
    """One array: where its bytes are and what they mean."""

    file_id: int
    """The number of its data file, never used again in this group."""
    shape: tuple[int, ...]
    dtype: DType
    order: Order
    line_stride: int
    fill: bytes
    """One item, as new items are."""
    document: str | None = None
    """In a chunk store: the metadata of the array there, as JSON; shape and attributes are ours."""
    attrs: Mapping[str, Any] = MappingProxyType({})
    """The user's attributes of this array."""
    dead: tuple[tuple[int, int], ...] = ()
    """Where bytes begin and end that hold nothing: whole blocks, in ascending order."""

    @property
    def layout(self) -> Layout:
        """The layout; zero-dimensional arrays are laid out as ``(1,)``."""
        return Layout(self.shape or (1,), self.dtype.itemsize, self.order, self.line_stride)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value."""
        value = {
            "file": self.file_id,
            "shape": list(self.shape),
            "dtype": encode_dtype(self.dtype),
            "layout": self.order,
            "line_stride": self.line_stride,
            "fill": self.fill.hex(),
        }
        if self.document is not None:
            value["document"] = self.document
        if self.attrs:
            value["attrs"] = dict(self.attrs)
        if self.dead:
            value[DEAD] = [list(span) for span in self.dead]
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ArrayMetadata:
        """Read what `to_json` wrote; any exception says that it cannot be read."""
        order: Order = "col" if value["layout"] == "col" else "row"
        if value["layout"] not in ("row", "col"):
            raise ValueError(f"layout {value['layout']!r}")
        dtype = decode_dtype(value["dtype"])
        document = value.get("document")
        if not isinstance(document, str | None):
            raise ValueError(f"document {document!r:.40}")
        result = cls(
            check_integer(value["file"], 1),
            check_extents(value["shape"], dtype.itemsize),
            dtype,
            order,
            check_integer(value["line_stride"]),
            bytes.fromhex(value["fill"]),
            document,
            _check_attrs(value.get("attrs", {})),
            _check_dead(value.get(DEAD, [])),
        )
        if len(result.fill) != dtype.itemsize:
            raise ValueError(f"a fill value of {len(result.fill)} bytes for {dtype}")
        result._check_lines()
        return result

    def _check_lines(self) -> None:
        """Raise ValueError where lines would overlap, or their padding fits no header."""
        layout = self.layout
        used, stride = layout.line_nbytes, layout.line_stride
        unit = layout.strides[layout.slow_to_fast[1]] if len(layout.shape) > 1 else 0
        if (
            (used != stride and (not unit or stride % unit))
            or stride < used
            or layout.nbytes > _MAX_BYTES
        ):
            raise ValueError(f"shape {self.shape}, line stride {stride}")


def _check_attrs(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"attributes {value!r:.40}")
    return value


def _check_dead(value: Any) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, list) or any(not isinstance(n, list) or len(n) != 2 for n in value):
        raise ValueError(f"dead bytes {value!r:.40}")
    bounds = [check_integer(n) for span in value for n in span]
    if any(n % BLOCK_BYTES for n in bounds) or sorted(set(bounds)) != bounds:
        raise ValueError(f"dead bytes {value!r:.40}")
    return tuple(zip(bounds[::2], bounds[1::2], strict=True))


class GroupMetadata(NamedTuple):
    """A group as of one moment: immutable, replaced as a whole."""

    uuid: str
    next_file_id: int = 1
    arrays: Mapping[str, ArrayMetadata] = MappingProxyType({})
    attrs: Mapping[str, Any] = MappingProxyType({})

    def dead_in(self, file_id: int) -> SpanSet:
        """The bytes of a file that hold nothing."""
        dead = (array.dead for array in self.arrays.values() if array.file_id == file_id)
        return SpanSet.of(next(dead, ()))

    @property
    def file_ids(self) -> set[int]:
        """The numbers of all files that the arrays have."""
        return {array.file_id for array in self.arrays.values()}

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value."""
        return {
            "uuid": self.uuid,
            "next_file": self.next_file_id,
            "arrays": {name: array.to_json() for name, array in self.arrays.items()},
            "attrs": dict(self.attrs),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> GroupMetadata:
        """Read what `to_json` wrote; any exception says that it cannot be read."""
        arrays = {name: ArrayMetadata.from_json(array) for name, array in value["arrays"].items()}
        uuid, attrs, next_id = value["uuid"], value["attrs"], check_integer(value["next_file"], 1)
        for name in arrays:
            if not is_name(name):
                raise ValueError(f"an array is called {name!r}")
        ids = [array.file_id for array in arrays.values()]
        if len(set(ids)) < len(ids) or any(next_id <= one < FOREIGN_IDS for one in ids):
            raise ValueError(f"the numbers of the arrays are {ids}, and the next is {next_id}")
        if not isinstance(uuid, str) or not isinstance(attrs, dict):
            raise ValueError(f"uuid {uuid!r:.40}, attributes {attrs!r:.40}")
        return cls(uuid, next_id, arrays, attrs)


class Checkpoint(NamedTuple):
    """The metadata of a group with their place in the order of its transactions."""

    metadata: GroupMetadata
    transaction: int = 0
    """The number of the last transaction that the metadata include."""
    generation: int = 0
    """Counts the checkpoints since there is a journal; 0 before."""
    nonce: int = 0
    """Drawn at random: journal records with another one are stale."""

    def to_bytes(self, notes: Mapping[str, Any] = MappingProxyType({})) -> bytes:
        """Return the contents of ``pmarray.json``: one JSON object with a CRC-32C of the rest.

        `notes` are a backend's own, for itself to read.
        """
        return json.dumps(self._spelled(notes), indent=1).encode()

    def to_record(self) -> bytes:
        """The same in one line, for a record of the journal, which nobody reads with his eyes.

        Indented, it would be spelled by Python instead of C, in four times the time; and each
        commit has one.
        """
        return json.dumps(self._spelled({}), separators=(",", ":")).encode()

    def _spelled(self, notes: Mapping[str, Any]) -> dict[str, Any]:
        body = {
            "format": "pmarray",
            "version": FORMAT_VERSION,
            "generation": self.generation,
            "nonce": f"{self.nonce:016x}",
            "transaction": self.transaction,
            **self.metadata.to_json(),
            **notes,
        }
        return {**body, "crc32c": _checksum(body)}

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Checkpoint:
        """Read what `to_bytes` or `to_record` wrote.

        Raises
        ------
        ForeignDataError
            Another program's file, or one of a newer format.
        DamagedError
            Ours, but changed or cut since it was written.
        """
        try:
            body = parse_json(data)
            if body.get("format") != "pmarray":
                raise ForeignDataError(f"{where} was not written by pmarray")
            if check_integer(body["version"], 1) > FORMAT_VERSION:
                raise ForeignDataError(
                    f"{where} has format {body['version']}; this pmarray reads up to "
                    f"{FORMAT_VERSION}: install a newer one"
                )
            stored = body.pop("crc32c", None)
            if stored != _checksum(body):
                raise DamagedError(
                    f"{where} is damaged: its checksum is {stored}, its contents have "
                    f"{_checksum(body)}; restore it from a backup"
                )
            return cls(
                GroupMetadata.from_json(body),
                check_integer(body["transaction"]),
                check_integer(body["generation"]),
                _check_nonce(body["nonce"]),
            )
        except (ForeignDataError, DamagedError):
            raise
        except Exception as error:
            # Whatever JSON, NumPy and our own code make of arbitrary values.
            raise DamagedError(f"{where} is damaged: {_said(error)}") from error


def _said(error: Exception) -> str:
    return f"there is no {error}" if isinstance(error, KeyError) else str(error)


def _checksum(body: dict[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return f"{google_crc32c.value(canonical.encode()):08x}"

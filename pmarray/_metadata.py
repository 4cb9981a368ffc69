"""What a group knows about itself, and its spelling in ``pmarray.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import google_crc32c

from pmarray._dtypes import DType, decode_dtype, encode_dtype
from pmarray.errors import DamagedError, ForeignDataError, LayoutError
from pmarray.layout import Layout, Order

__all__ = ["FORMAT_VERSION", "ArrayMetadata", "Checkpoint", "GroupMetadata"]

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class ArrayMetadata:
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
    attrs: dict[str, Any] = field(default_factory=dict)
    """The user's attributes of this array; replaced as a whole, never changed."""

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
            value["attrs"] = self.attrs
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ArrayMetadata:
        """Read what `to_json` wrote."""
        order: Order = "col" if value["layout"] == "col" else "row"
        if value["layout"] not in ("row", "col"):
            raise ValueError(f"layout {value['layout']!r}")
        result = cls(
            int(value["file"]),
            tuple(int(n) for n in value["shape"]),
            decode_dtype(value["dtype"]),
            order,
            int(value["line_stride"]),
            bytes.fromhex(value["fill"]),
            value.get("document"),
            dict(value.get("attrs", {})),
        )
        layout = result.layout
        if min(layout.shape) < 0 or layout.line_stride < layout.line_nbytes:
            raise ValueError(f"shape {result.shape}, line stride {result.line_stride}")
        return result


@dataclass(frozen=True, slots=True)
class GroupMetadata:
    """A group as of one moment: immutable, replaced as a whole."""

    uuid: str
    next_file_id: int = 1
    arrays: dict[str, ArrayMetadata] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value."""
        return {
            "uuid": self.uuid,
            "next_file": self.next_file_id,
            "arrays": {name: array.to_json() for name, array in self.arrays.items()},
            "attrs": self.attrs,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> GroupMetadata:
        """Read what `to_json` wrote."""
        return cls(
            value["uuid"],
            int(value["next_file"]),
            {name: ArrayMetadata.from_json(array) for name, array in value["arrays"].items()},
            value["attrs"],
        )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The metadata of a group with their place in the order of its transactions."""

    metadata: GroupMetadata
    transaction: int = 0
    """The number of the last transaction that the metadata include."""
    generation: int = 0
    """Journal records of any other generation are stale; 0 before there is a journal."""

    def to_bytes(self) -> bytes:
        """Return the contents of ``pmarray.json``: one JSON object with a CRC-32C of the rest."""
        body = {
            "format": "pmarray",
            "version": FORMAT_VERSION,
            "generation": self.generation,
            "transaction": self.transaction,
            **self.metadata.to_json(),
        }
        return json.dumps({**body, "crc32c": _checksum(body)}, indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Checkpoint:
        """Read what `to_bytes` wrote.

        Raises
        ------
        ForeignDataError
            Another program's file, or one of a newer format.
        DamagedError
            Ours, but changed or cut since it was written.
        """
        try:
            body = json.loads(data)
            if body.get("format") != "pmarray":
                raise ForeignDataError(f"{where} was not written by pmarray")
            if body["version"] > FORMAT_VERSION:
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
                GroupMetadata.from_json(body), int(body["transaction"]), int(body["generation"])
            )
        except (ForeignDataError, DamagedError):
            raise
        except (
            ValueError, KeyError, TypeError, AttributeError, LayoutError, OverflowError,
            RecursionError,
        ) as error:  # fmt: skip
            raise DamagedError(f"{where} is damaged: {error}") from error


def _checksum(body: dict[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return f"{google_crc32c.value(canonical.encode()):08x}"

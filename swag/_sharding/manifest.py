"""What says which parts are one posterior; kept beside them, in a group of its own.

A posterior at ``memmap:./posterior`` is in the groups ``memmap:./posterior/manifest``, which has
nothing but the attribute ``swag.parts``, and ``memmap:./posterior/part-00000`` and so on, one for
each process, each with what `swag._store` describes and the attribute ``swag.part``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pmarray
from pmarray.errors import GroupNotFoundError
from swag._boxes import Box
from swag._parameters import ParameterTable
from swag._records import refuse_other_format
from swag._sharding.layout import Layout
from swag.errors import StoreError

__all__ = [
    "PART",
    "Manifest",
    "Place",
    "manifest_place",
    "part_place",
    "read_manifest",
    "write_manifest",
]

Place = str | os.PathLike[str]
"""URL or path under which the parts are."""

PART = "swag.part"
"""The attribute of a part that says whose it is."""
_PARTS = "swag.parts"
_FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """Which parts are one posterior."""

    run: str
    """A number that no other posterior has; the parts have it, too."""
    layout: Layout
    """Parameters, and who holds what of them."""
    placements: tuple[str, ...]
    """How each parameter was laid out over the mesh of processes, for the reader."""

    def to_json(self) -> dict[str, Any]:
        """As the attribute holds it."""
        return {
            "format": _FORMAT,
            "run": self.run,
            "parameters": self.layout.table.to_json(),
            "placements": list(self.placements),
            "parts": [[box.to_json() for box in boxes] for boxes in self.layout.boxes],
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read the attribute back.

        Raises
        ------
        StoreError
            It is of a format that is not known here, or damaged.
        """
        if not isinstance(value, dict) or "format" not in value:
            raise StoreError("the manifest of the parts is damaged")
        refuse_other_format(value["format"], _FORMAT)
        try:
            table = ParameterTable.from_json(value["parameters"])
            boxes = tuple(tuple(map(Box.from_json, part)) for part in value["parts"])
            if not boxes or any(len(part) != len(table.entries) for part in boxes):
                raise ValueError("a part lacks a parameter")
            manifest = cls(
                str(value["run"]), Layout(table, boxes), tuple(map(str, value["placements"]))
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"the manifest of the parts is damaged: {error!r}") from error
        if faults := manifest.layout.faults():
            raise StoreError(f"the manifest of the parts is damaged: {faults[0]}")
        return manifest


def part_place(location: Place, part: int) -> Place:
    """Where a part is."""
    return _below(location, f"part-{part:05d}")


def manifest_place(location: Place) -> Place:
    """Where the manifest is."""
    return _below(location, "manifest")


def read_manifest(location: Place) -> Manifest | None:
    """The manifest of the parts at a place; None if there is none.

    Raises
    ------
    StoreError
        It is damaged.
    """
    try:
        with pmarray.open_group(manifest_place(location), mode="r") as group:
            value = group.attrs.get(_PARTS)
    except GroupNotFoundError:
        return None
    return None if value is None else Manifest.from_json(value)


def write_manifest(location: Place, manifest: Manifest | None) -> None:
    """Announce a posterior, durably; None takes it back."""
    with pmarray.open_group(manifest_place(location)) as group, group.transaction():
        group.attrs[_PARTS] = None if manifest is None else manifest.to_json()


def _below(location: Place, name: str) -> Place:
    if not isinstance(location, str):
        return Path(location) / name
    path, *rest = re.split("([?#].*)", location, maxsplit=1)  # in a path, both are escaped
    return f"{path.rstrip('/')}/{name}{''.join(rest)}"

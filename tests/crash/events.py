"""What can happen to a disk, as the recorder notes it.

Every event has two stamps of one clock, taken before and after the real call. Events are kept in
the order of their `end`. Files and directories go by numbers of the rig's own, which are never
used again, so that a name that is deleted and made again is another file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = [
    "Barrier",
    "DirectoryBarrier",
    "Entries",
    "Entry",
    "Event",
    "Mark",
    "Persist",
    "Resize",
    "RigError",
    "Store",
    "Write",
]

Entry: TypeAlias = int | str | None
"""What a name stands for: a file or directory by its number, the target of a symbolic link, or
nothing."""


class RigError(AssertionError):
    """The rig cannot say what happened; a defect of the rig or of what it watches."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that began at `start` and was over at `end`."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Write(Event):
    """Bytes written to a file by a system call."""

    inode: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Store(Write):
    """Bytes stored to a file through a shared mapping; such stores never change its length."""


@dataclass(frozen=True, slots=True)
class Resize(Event):
    """A truncation or, with `grow_only`, an allocation that never makes a file shorter."""

    inode: int
    nbytes: int
    grow_only: bool


@dataclass(frozen=True, slots=True)
class Barrier(Event):
    """fsync or fdatasync of a file; what was pending is lost for good where it `failed`."""

    inode: int
    failed: bool


@dataclass(frozen=True, slots=True)
class Persist(Event):
    """The processor's cache lines that hold this range of a mapped file were written back."""

    inode: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Entries(Event):
    """Names of one directory changed in one step; a rename is two changes."""

    parent: int
    changes: tuple[tuple[str, Entry], ...]
    new_file: int | None = None
    new_directory: int | None = None


@dataclass(frozen=True, slots=True)
class DirectoryBarrier(Event):
    """fsync of a directory."""

    inode: int
    failed: bool


@dataclass(frozen=True, slots=True)
class Mark(Event):
    """What the program under test has been told, or is about to do."""

    label: str
    value: Any

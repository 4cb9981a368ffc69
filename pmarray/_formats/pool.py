"""The format of a pool: one group on the whole of a DAX device.

The device is divided into units of its alignment, 2 MiB at least.

::

    unit 0      block 0   superblock, slot 0; its copy in the middle of the block
                block 1   superblock, slot 1; the same
                block 2   the process id of the writer, as text; no part of the state
    unit 1 ...            directories, the journal, and the items of arrays

A *superblock* is one cache line: magic, CRC-32C, format version, generation, bytes of a unit, of
the device, and place, length and CRC-32C of the directory. A *directory* is one JSON object: the
checkpoint of the group (what ``pmarray.json`` is elsewhere), and the units of every file, in runs.
A *file* is the journal or the items of one array, under its number; it has no header.

Replacing the directory
-----------------------
1. The new directory is stored to free units; not to those of the current one.
2. It is made durable.
3. The superblock of the next generation, which refers to it, is stored to the slot that the
   current one does not have, and made durable. This is the commit point. If what is in the slot is
   torn, the slot is cleared first, and that made durable.
4. The same superblock is stored to the copy of that slot, and made durable.

The superblock with the highest generation among those whose checksum is right is the current one,
copies among them. A torn store to a slot leaves the other one. It is cleared before the next one
because a line reaches the medium in words: those of two torn stores could together be the first of
the two superblocks, and units of its directory have been stored to since. Step 4 is for damage: a
bit that flips in the line of the current superblock would else pass for a torn store, and take the
last change back. A writer stores anew what it finds only once. Units that the old directory had and
the new one has not are free after step 3. A unit that is given to a new file, or to the journal, is
filled with zeros before step 1. One that is given to an array that grows is left as it is: nothing
reads it before lines have been stored there, the array's own or those of its fill value.

Formatting
----------
A device that holds a pool gets an empty directory, in the way above. Any other device:

1. The copies are cleared, for they would be taken for later ones.
2. Slot 0 gets a superblock of generation 0, which has no directory. Found alone, it says that
   formatting was interrupted.
3. Slot 1 is cleared, and gets the superblock of generation 1 as above.
"""

from __future__ import annotations

import errno
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pmarray._formats.metadata import check_integer, parse_json
from pmarray._geometry.layout import BLOCK_BYTES
from pmarray._geometry.spans import SpanSet
from pmarray.errors import DamagedError, ForeignDataError, StorageError

__all__ = [
    "COPY_OFFSET",
    "JOURNAL",
    "MIN_UNIT_BYTES",
    "SUPERBLOCK_BYTES",
    "Directory",
    "Runs",
    "Slot",
    "Superblock",
    "allocate",
    "begins_with",
    "current",
    "describe_foreign",
    "describe_slots",
    "free_units",
    "joined",
    "no_space",
]

MIN_UNIT_BYTES = 2 << 20
_MAGIC = b"pmarrayP"
_VERSION = 1
_SUPERBLOCK = struct.Struct("<8sIIQQQQQII")
SUPERBLOCK_BYTES = _SUPERBLOCK.size
COPY_OFFSET = BLOCK_BYTES // 2
"""Of the copy of a superblock, from the start of its block: far from the line itself."""

JOURNAL = 0
"""The number of the journal among the files; arrays count from 1."""

Runs = tuple[tuple[int, int], ...]
"""First unit and number of units, of each run."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """Where the directory is."""

    generation: int
    unit_bytes: int
    device_nbytes: int
    """Of the device when it was written."""
    offset: int = 0
    """Of the directory, in bytes from the start of the device."""
    nbytes: int = 0
    """Of the directory; 0 while the device is being formatted."""
    crc: int = 0

    def to_bytes(self) -> bytes:
        """Return one cache line."""
        data = _SUPERBLOCK.pack(
            _MAGIC, 0, _VERSION, self.generation, self.unit_bytes, self.device_nbytes,
            self.offset, self.nbytes, self.crc, 0,
        )  # fmt: skip
        return data[:8] + struct.pack("<I", google_crc32c.value(data)) + data[12:]

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Superblock | None:
        """Read a slot; None where there is none, or a torn one.

        Raises
        ------
        ForeignDataError
            It is of a newer format.
        """
        magic, crc, version, *rest = _SUPERBLOCK.unpack_from(data)
        if magic != _MAGIC:
            return None
        line = data[:8] + bytes(4) + struct.pack("<I", _VERSION) + data[16:SUPERBLOCK_BYTES]
        is_whole = crc == google_crc32c.value(line)
        if is_whole and version != _VERSION:
            return None  # what is damaged is the version: that of a newer one would be counted in
        if version > _VERSION:
            raise ForeignDataError(
                f"{where} holds a pool of format {version}; this pmarray reads up to {_VERSION}: "
                "install a newer one"
            )
        return cls(*rest[:6]) if is_whole else None


@dataclass(frozen=True, slots=True)
class Slot:
    """What a slot holds: a cache line, and its copy."""

    line: bytes
    copy: bytes = b""

    @classmethod
    def from_block(cls, block: NDArray[np.uint8]) -> Slot:
        """Read the block that a slot has."""
        ends = SUPERBLOCK_BYTES, COPY_OFFSET + SUPERBLOCK_BYTES
        return cls(block[: ends[0]].tobytes(), block[COPY_OFFSET : ends[1]].tobytes())

    def _halves(self, where: str) -> list[Superblock | None]:
        return [
            Superblock.from_bytes(half, where) if half else None for half in (self.line, self.copy)
        ]

    def superblock(self, where: str) -> Superblock | None:
        """Return the later one of the two; None where neither is whole."""
        whole = [half for half in self._halves(where) if half is not None]
        return max(whole, key=lambda half: half.generation, default=None)

    def is_torn(self, where: str) -> bool:
        """Whether the line holds something, and no superblock."""
        return any(self.line) and Superblock.from_bytes(self.line, where) is None

    @property
    def has_magic(self) -> bool:
        """Whether there was a superblock, in whatever state it is now."""
        return self.line.startswith(_MAGIC) or self.copy.startswith(_MAGIC)

    def describe(self, in_force: int, where: str) -> tuple[str, bool] | None:
        """Say what is the matter with it, and whether that is damage; None if nothing is.

        Parameters
        ----------
        in_force
            The generation in force.
        where
            For messages.
        """
        line, copy = self._halves(where)
        if line is None and copy is not None and copy.generation == in_force:
            return "it is damaged, and its copy serves: nothing is lost", True
        if self.is_torn(where):
            return "it is not whole: a crash may have left it so, or it is damaged", False
        if line is not None and copy is None and any(self.copy):
            return "its copy is not whole: a crash may have left it so, or it is damaged", False
        return None


def current(slots: Sequence[Slot], where: str) -> tuple[int, Superblock] | None:
    """Return number and contents of the slot in force; None where there is no pool.

    Raises
    ------
    ForeignDataError
        A pool of a newer format; or one that is half formatted.
    DamagedError
        There was a pool, and no slot of it is whole.
    """
    found = [
        (number, superblock)
        for number, slot in enumerate(slots)
        if (superblock := slot.superblock(where)) is not None
    ]
    if not found:
        if any(slot.has_magic for slot in slots):
            raise DamagedError(
                f"both superblocks of {where} are damaged: restore it from a backup, or make it "
                "new with `pmarray format`"
            )
        return None
    number, superblock = max(found, key=lambda pair: pair[1].generation)
    if not superblock.nbytes:
        raise ForeignDataError(
            f"{where} is half formatted, and holds nothing yet: use `pmarray format {where}`, or, "
            "if that was what was interrupted, run it again"
        )
    return number, superblock


def describe_slots(slots: Sequence[Slot], where: str) -> list[tuple[str, str, bool]]:
    """Say what is the matter with the slots of a pool that can be opened.

    Returns
    -------
    list of (slot, message, damaged)
        Empty where all is well.
    """
    found = current(slots, where)
    if found is None:
        return []
    described = [slot.describe(found[1].generation, where) for slot in slots]
    return [(f"superblock {i}", *one) for i, one in enumerate(described) if one is not None]


@dataclass(frozen=True, slots=True)
class Directory:
    """What is on the device."""

    checkpoint: str | None = None
    """The metadata of the group, as text; None before there are any."""
    files: Mapping[int, Runs] = field(default_factory=dict)
    """Units of each file."""
    freed: int = 0
    """Generation of the directory in which a file last lost units, which others may have now."""

    def to_bytes(self) -> bytes:
        """Return the JSON object."""
        files = {str(number): runs for number, runs in self.files.items()}
        value = {"checkpoint": self.checkpoint, "files": files, "freed": self.freed}
        return json.dumps(value).encode()

    @classmethod
    def from_bytes(cls, data: bytes, crc: int, where: str) -> Directory:
        """Read what `to_bytes` wrote, or raise `DamagedError`."""
        if google_crc32c.value(data) != crc:
            raise DamagedError(f"the directory of {where} is damaged: restore it from a backup")
        try:
            value = parse_json(data)
            files = {
                check_integer(int(number)): tuple(
                    (check_integer(first), check_integer(count)) for first, count in runs
                )
                for number, runs in value["files"].items()
            }
            checkpoint = value["checkpoint"]
            if not isinstance(checkpoint, str | None):
                raise ValueError("its checkpoint is no text")
            (checkpoint or "").encode()  # half of a surrogate pair cannot be
            return cls(checkpoint, files, check_integer(value["freed"]))
        except Exception as error:  # whatever arbitrary values lead to
            raise DamagedError(f"the directory of {where} cannot be read: {error}") from error

    def check_units(self, own: tuple[int, int], total: int, where: str) -> None:
        """Raise `DamagedError` where a unit has two owners, or is not there.

        Parameters
        ----------
        own
            The units of the directory itself.
        total
            How many there are.
        where
            For the message.
        """
        end = 1
        for first, count in sorted([own, *(run for runs in self.files.values() for run in runs)]):
            if first < end or not count or first + count > total:
                raise DamagedError(
                    f"the directory of {where} gives units away that it has not, or twice: "
                    f"{count} from {first} on"
                )
            end = first + count

    def frees_units_of(self, before: Directory) -> bool:
        """Whether a file of `before` has not all of its units any more.

        >>> before = Directory(files={1: ((1, 2),), 2: ((3, 1),)})
        >>> before.with_file(2, ((3, 4), (9, 1))).frees_units_of(before)
        False
        >>> before.with_file(1, ((1, 1),)).frees_units_of(before)
        True
        """
        return any(
            not begins_with(self.files.get(number, ()), runs)
            for number, runs in before.files.items()
        )

    def with_file(self, number: int, runs: Runs | None) -> Directory:
        """Return the same with other units for a file; None deletes it."""
        files = dict(self.files)
        files.pop(number, None)
        if runs is not None:
            files[number] = runs
        return replace(self, files=files)


def free_units(total: int, used: Sequence[Runs]) -> SpanSet:
    """Return the units that nobody has; unit 0 is nobody's to give.

    >>> free_units(10, [((1, 2),), ((5, 1), (8, 1))])
    SpanSet([(3, 5), (6, 8), (9, 10)])
    """
    free = SpanSet()
    free.add(1, total)
    for runs in used:
        for first, count in runs:
            free.remove(first, first + count)
    return free


def allocate(free: SpanSet, count: int, after: int | None = None) -> Runs | None:
    """Choose units, in few runs; None if there are not so many.

    Parameters
    ----------
    free
        What there is.
    count
        How many.
    after
        The unit that would go on from what the file has.

    Examples
    --------
    >>> free = free_units(20, [((4, 4),), ((10, 2),)])
    >>> allocate(free, 2), allocate(free, 2, after=8), allocate(free, 10)
    (((8, 2),), ((8, 2),), ((12, 8), (8, 2)))
    """
    spans = list(free)
    if sum(stop - start for start, stop in spans) < count:
        return None
    chosen: list[tuple[int, int]] = []

    def take(start: int, stop: int) -> None:
        nonlocal count
        taken = min(count, stop - start)
        chosen.append((start, taken))
        count -= taken

    for span in [one for one in spans if one[0] == after and count]:
        take(*span)
        spans.remove(span)
    while count:
        # The smallest run that is large enough, else the largest: few pieces, and large ones left.
        enough = [span for span in spans if span[1] - span[0] >= count]
        size = (min if enough else max)(stop - start for start, stop in enough or spans)
        span = next(one for one in enough or spans if one[1] - one[0] == size)
        take(*span)
        spans.remove(span)
    return tuple(chosen)


def begins_with(runs: Runs, start: Runs) -> bool:
    """Whether the units of `start` are the first of those of `runs`; both are `joined`.

    >>> begins_with(((1, 2), (7, 3), (4, 1)), ((1, 2), (7, 1)))
    True
    >>> begins_with(((1, 2), (7, 3)), ((1, 2), (8, 1)))
    False
    """
    if not start:
        return True
    if len(start) > len(runs):
        return False
    last = len(start) - 1
    (first, count), (now_first, now_count) = start[last], runs[last]
    return runs[:last] == start[:last] and now_first == first and now_count >= count


def joined(runs: Runs) -> Runs:
    """Make one run of those that touch.

    >>> joined(((1, 2), (3, 1), (7, 1)))
    ((1, 3), (7, 1))
    """
    result: list[tuple[int, int]] = []
    for first, count in runs:
        if result and sum(result[-1]) == first:
            result[-1] = (result[-1][0], result[-1][1] + count)
        else:
            result.append((first, count))
    return tuple(result)


def no_space(where: str, wanted: int, free: int, unit_bytes: int) -> StorageError:
    """Say that the device is full."""
    return StorageError(
        errno.ENOSPC,
        f"cannot reserve {wanted * unit_bytes >> 20} MiB more: {free * unit_bytes >> 20} MiB are "
        "free; nothing was changed: delete arrays and flush, or use a larger device",
        where,
    )


_SIGNATURES = (
    (0, _MAGIC, "a pool of pmarray that cannot be opened as it is"),
    (BLOCK_BYTES, _MAGIC, "a pool of pmarray that cannot be opened as it is"),
    (0, b"PMEMPOOL", "a PMDK pool"),
    (0, b"PMEMOBJ\0", "a PMDK pool"),
    (0, b"PMEMBLK\0", "a PMDK pool"),
    (0, b"PMEMLOG\0", "a PMDK pool"),
    (0, b"XFSB", "an XFS file system"),
    (0x438, b"\x53\xef", "an ext4 file system"),
    (512, b"EFI PART", "a partition table"),
    (510, b"\x55\xaa", "a partition table"),
    (512, b"LABELONE", "an LVM volume"),
)


def describe_foreign(first: NDArray[np.uint8], last: NDArray[np.uint8]) -> str | None:
    """Say what the first and the last unit of a device look like; None if they are empty.

    >>> import numpy as np
    >>> empty = np.zeros(4096, np.uint8)
    >>> describe_foreign(empty, empty) is None
    True
    >>> describe_foreign(np.frombuffer(b"XFSB".ljust(4096, b"?"), np.uint8), empty)
    'an XFS file system'
    """
    head = first[: 2 * BLOCK_BYTES].tobytes()
    for offset, signature, name in _SIGNATURES:
        if head[offset:].startswith(signature):
            return name
    if first.any() or last.any():
        return "data of another program"
    return None

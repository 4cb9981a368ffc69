"""The units of persistent memory, and whose they are; `_formats.pool` has the steps of changes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pmarray._formats import pool as _format
from pmarray._formats.pool import COPY_OFFSET, Directory, Runs, Slot, Superblock
from pmarray._geometry.layout import BLOCK_BYTES
from pmarray._geometry.spans import SpanSet
from pmarray._system import osops, pmem
from pmarray._system.lockfile import OWNER_BYTES, owner_note, read_owner
from pmarray._system.uninterrupted import uninterrupted
from pmarray.errors import DamagedError, ForeignDataError, PoisonedError, StorageError
from pmarray.locks import RLock

__all__ = ["Lock", "Medium", "Pool"]

_ZEROS = bytes(1 << 20)
_ATTEMPTS = 100
_MAX_DIRECTORY_BYTES = 256 << 20


class Lock(Protocol):
    """Keeps a second writer out."""

    @property
    def held(self) -> bool:
        """Whether this handle holds it."""

    def acquire(self, holder: str) -> None:
        """Take it, or raise `GroupLockedError`, which names the `holder`."""

    def release(self) -> None:
        """Give it up, if it is held."""

    def abandon(self) -> None:
        """In a forked child: forget it without unlocking, which would unlock the parent's."""


class Medium(Protocol):
    """Persistent memory that a pool has to itself."""

    @property
    def path(self) -> str:
        """For messages."""

    @property
    def nbytes(self) -> int:
        """All of it."""

    @property
    def alignment(self) -> int:
        """Of what can be mapped."""

    @property
    def is_ours(self) -> bool:
        """Whether nobody else can have stored anything there."""

    def map(self, pieces: Sequence[tuple[int, int]], *, write: bool) -> pmem.Mapping:
        """Map offsets and lengths one behind the other."""

    def check_writable(self) -> None:
        """Raise where stores could not be made durable."""

    def new_lock(self) -> Lock:
        """Return a lock on it that is not taken yet."""


class Pool:
    """The units of a medium, and the directory that says whose they are.

    Parameters
    ----------
    medium
        Where it is.
    writable
        Whether it may be stored to.
    """

    def __init__(self, medium: Medium, *, writable: bool) -> None:
        self.medium = medium
        self.writable = writable
        self.directory = Directory()
        self._slot, self._superblock = 0, Superblock(0, self._new_unit_bytes, medium.nbytes)
        self._lock = RLock()  # commits grow the journal on a thread of their own
        # What is mapped, for arrays of this process may show the units of deleted files.
        self._mappings: list[tuple[weakref.ref[pmem.Mapping], Runs]] = []
        if writable:
            medium.check_writable()
        head = self.map(((0, 1),)).memory
        self._slots = [head[i * BLOCK_BYTES :][:BLOCK_BYTES] for i in range(2)]
        self._note = head[2 * BLOCK_BYTES :][:BLOCK_BYTES]
        self.lock = medium.new_lock()

    @property
    def _new_unit_bytes(self) -> int:
        alignment = self.medium.alignment
        return -(-_format.MIN_UNIT_BYTES // alignment) * alignment

    @property
    def unit_bytes(self) -> int:
        """Bytes of a unit."""
        return self._superblock.unit_bytes

    @property
    def known_generation(self) -> int:
        """Of the superblock that `directory` belongs to."""
        return self._superblock.generation

    @property
    def generation(self) -> int:
        """Of the superblock in force, as it is now on the device."""
        found = self._current()
        return -1 if found is None else found[1].generation

    def stamp(self) -> tuple[int, str | None] | None:
        """Return what changes when metadata are replaced, or units go from one file to another."""
        with self._lock:
            generation = self.generation
            if generation != self.known_generation and not self.refresh():
                return None
            return self.directory.freed, self.directory.checkpoint

    def _current(self) -> tuple[int, Superblock] | None:
        return _format.current(self._read_slots(), self.medium.path)

    def _read_slots(self) -> list[Slot]:
        return [Slot.from_block(block) for block in self._slots]

    def describe_slots(self) -> list[tuple[str, str, bool]]:
        """Say what is the matter with the superblocks: which, what, whether it is damage."""
        return _format.describe_slots(self._read_slots(), self.medium.path)

    def map(self, runs: Runs) -> pmem.Mapping:
        """Map units one behind the other."""
        unit = self.unit_bytes
        try:
            pieces = [(first * unit, count * unit) for first, count in runs]
            return self.medium.map(pieces, write=self.writable)
        except OSError as error:
            raise StorageError(
                error.errno, f"cannot map: {error.strerror}", self.medium.path
            ) from error

    # -- the directory ----------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Read the directory in force; return whether there is one.

        Raises
        ------
        ForeignDataError
            The device holds something else.
        DamagedError
            The pool is not whole.
        """
        where = self.medium.path
        for _ in range(_ATTEMPTS):  # a writer may replace it twice while it is read
            found = self._current()
            if found is None:
                if not self.medium.is_ours:
                    self._refuse_foreign()
                return False
            self._slot, self._superblock = found
            self._check_device()
            with suppress(DamagedError):
                self.directory = uninterrupted(self._read)  # torn, it would call it damage
                return True
            if self._current() == found:
                self.directory = self._read()  # raises
        raise DamagedError(f"the directory of {where} changes faster than it can be read")

    def _read(self) -> Directory:
        superblock = self._superblock
        unit = superblock.unit_bytes
        count = -(-superblock.nbytes // unit)
        if (
            superblock.offset % unit
            or not 1 <= superblock.offset // unit <= self._total - count
            or superblock.nbytes > _MAX_DIRECTORY_BYTES
        ):
            raise DamagedError(
                f"the superblock of {self.medium.path} points to no directory: to "
                f"{superblock.nbytes} bytes at {superblock.offset}"
            )
        memory = self.map(((superblock.offset // unit, count),)).memory
        data = memory[: superblock.nbytes].tobytes()
        result = Directory.from_bytes(data, superblock.crc, self.medium.path)
        result.check_units((superblock.offset // unit, count), self._total, self.medium.path)
        return result

    def _check_device(self) -> None:
        medium, superblock = self.medium, self._superblock
        if superblock.unit_bytes < BLOCK_BYTES or superblock.generation >= 1 << 63:
            raise DamagedError(f"the superblock of {medium.path} makes no sense: {superblock}")
        if superblock.unit_bytes % medium.alignment:
            raise DamagedError(
                f"{medium.path} is aligned to {medium.alignment} bytes now, and its pool was made "
                f"for {superblock.unit_bytes}: set it back (daxctl reconfigure-device --align)"
            )
        if superblock.device_nbytes > medium.nbytes:
            raise DamagedError(
                f"{medium.path} has {medium.nbytes} bytes now, and its pool was made for "
                f"{superblock.device_nbytes}: give it back its size"
            )

    def _refuse_foreign(self) -> None:
        what = self.foreign()
        if what is not None:
            raise ForeignDataError(
                f"{self.medium.path} holds {what}, and nothing was changed: choose another "
                f"device, or overwrite it with mode='w' or `pmarray format {self.medium.path}`"
            )

    def foreign(self) -> str | None:
        """Say what is on the device that is no pool; None if it is empty, by all appearances."""
        last = self.medium.nbytes // self.unit_bytes - 1
        first, end = (self.map(((unit, 1),)).memory for unit in (0, last))
        return _format.describe_foreign(first, end)

    def format(self) -> None:
        """Make an empty pool, whatever is there; the caller has the lock.

        The steps are those at the head of `_formats.pool`.
        """
        try:
            is_pool = self._current() is not None
        except (ForeignDataError, DamagedError):
            is_pool = False
        if is_pool:
            with suppress(DamagedError):
                self.refresh()
                self.replace(Directory())
                return
        nothing = bytes(_format.SUPERBLOCK_BYTES)
        self._superblock = Superblock(0, self._new_unit_bytes, self.medium.nbytes)
        for block in self._slots:
            self._store(block[COPY_OFFSET:], nothing)  # 1
        self._store(self._slots[0], self._superblock.to_bytes())  # 2
        self._store(self._slots[1], nothing)  # 3
        self._slot = 0
        self.replace(Directory())

    def replace(self, directory: Directory) -> None:
        """Replace the directory, in the steps at the head of `_formats.pool`."""
        with self._lock:
            if directory.frees_units_of(self.directory):
                directory = replace(directory, freed=self._superblock.generation + 1)
            data = directory.to_bytes()
            count = -(-len(data) // self.unit_bytes)
            free = self._free(directory.files.values())
            runs = [(start, count) for start, stop in free if stop - start >= count]
            if not runs:
                raise _format.no_space(self.medium.path, count, free.nbytes, self.unit_bytes)
            memory = self.map((runs[0],)).memory
            self._store(memory[: len(data)], data)  # 1, 2
            superblock = replace(
                self._superblock,
                generation=self._superblock.generation + 1,
                device_nbytes=self.medium.nbytes,
                offset=runs[0][0] * self.unit_bytes,
                nbytes=len(data),
                crc=google_crc32c.value(data),
            )
            self._put_in_force(superblock)
            self.directory = directory
            self._vouch()

    def _put_in_force(self, superblock: Superblock) -> None:
        """Store a superblock to the slot that is not in force, step 3."""
        slot = 1 - self._slot
        if self._read_slots()[slot].is_torn(self.medium.path):
            self._store(self._slots[slot], bytes(_format.SUPERBLOCK_BYTES))
        self._store(self._slots[slot], superblock.to_bytes())
        self._slot, self._superblock = slot, superblock

    def _vouch(self) -> None:
        """Store the copy of the superblock in force, step 4."""
        self._store(self._slots[self._slot][COPY_OFFSET:], self._superblock.to_bytes())

    def _mend(self) -> None:
        """Store what of the superblock in force is not there twice: one of the two is."""
        data = self._superblock.to_bytes()
        slot = self._read_slots()[self._slot]
        if slot.line != data:
            self._store(self._slots[self._slot], data)
        if slot.copy != data:
            self._vouch()

    def _store(self, memory: NDArray[np.uint8], data: bytes) -> None:
        try:
            osops.store(memory[: len(data)], np.frombuffer(data, np.uint8))
        except OSError as error:
            raise PoisonedError(
                error.errno,
                f"the directory could not be replaced ({error.strerror}): close the group, repair "
                "the medium and open it again",
                self.medium.path,
            ) from error

    # -- units ------------------------------------------------------------------------------------

    @property
    def _total(self) -> int:
        return self.medium.nbytes // self.unit_bytes

    def _free(self, files: Iterable[Runs]) -> SpanSet:
        """Return the units that neither these files have, nor the directory, nor an old array."""
        self._mappings = [one for one in self._mappings if one[0]() is not None]
        mapped = [runs for _, runs in self._mappings]
        superblock = self._superblock
        first = superblock.offset // self.unit_bytes
        count = -(-superblock.nbytes // self.unit_bytes)
        own: Runs = ((first, count),)
        return _format.free_units(
            self._total,
            [*files, *self.directory.files.values(), own, *mapped],
        )

    @property
    def free_bytes(self) -> int:
        """What arrays may still take."""
        return max(0, self._spare(self._free(()))) * self.unit_bytes

    def _spare(self, free: SpanSet) -> int:
        # What is kept back is for the directory, without which nothing could be deleted.
        return free.nbytes - max(2, 2 * -(-self._superblock.nbytes // self.unit_bytes))

    def grow(self, number: int, nbytes: int, generous: int) -> Runs:
        """Give a file units for `nbytes` bytes, or for `generous` where there are as many.

        They are zeros. Returns all that the file has.

        Raises
        ------
        StorageError
            The device is full; nothing was changed.
        """
        return self._grow(number, nbytes, generous, self._clear)

    def grow_unfilled(self, number: int, nbytes: int, generous: int) -> Runs:
        """The same with units as somebody left them."""
        return self._grow(number, nbytes, generous, lambda new: None)

    def _grow(
        self, number: int, nbytes: int, generous: int, prepare: Callable[[Runs], object]
    ) -> Runs:
        with self._lock:
            runs = self.directory.files.get(number, ())
            held = sum(count for _, count in runs)
            free = self._free(())
            spare = self._spare(free)
            least = -(-nbytes // self.unit_bytes) - held
            wanted = max(least, min(-(-generous // self.unit_bytes) - held, spare))
            after = runs[-1][0] + runs[-1][1] if runs else None
            new = _format.allocate(free, wanted, after) if wanted <= spare else None
            if new is None:
                raise _format.no_space(self.medium.path, least, max(0, spare), self.unit_bytes)
            prepare(new)
            runs = _format.joined((*runs, *new))
            self.replace(self.directory.with_file(number, runs))
            return runs

    def _clear(self, runs: Runs) -> None:
        memory = self.map(runs).memory
        for start in range(0, len(memory), len(_ZEROS)):
            piece = memory[start : start + len(_ZEROS)]
            self._store(piece, _ZEROS[: len(piece)])

    def shrink(self, number: int, nbytes: int) -> Runs:
        """Take what a file has beyond `nbytes` bytes; return what it keeps."""
        with self._lock:
            keep = -(-nbytes // self.unit_bytes)
            kept: list[tuple[int, int]] = []
            for first, count in self.directory.files[number]:
                if keep:
                    kept.append((first, min(keep, count)))
                    keep -= kept[-1][1]
            self.replace(self.directory.with_file(number, tuple(kept)))
            return tuple(kept)

    def map_file(self, number: int) -> pmem.Mapping | None:
        """Map the units of a file; None where it has none."""
        with self._lock:
            runs = self.directory.files[number]
            if not runs:
                return None
            mapping = self.map(runs)
            self._mappings.append((weakref.ref(mapping), runs))
            return mapping

    def make(self, number: int) -> None:
        """Make an empty file, in the place of one that a crash may have left."""
        with self._lock:
            self.replace(self.directory.with_file(number, ()))

    def remove(self, numbers: Iterable[int]) -> None:
        """Delete files; their units are free for others."""
        with self._lock:
            directory = self.directory
            for number in numbers:
                directory = directory.with_file(number, None)
            if directory != self.directory:
                self.replace(directory)

    def save(self, checkpoint: str) -> None:
        """Replace the metadata of the group."""
        with self._lock:
            self.replace(replace(self.directory, checkpoint=checkpoint))

    # -- the writer -------------------------------------------------------------------------------

    def become_writer(self) -> None:
        """Take the lock, and leave a note of who has it; make a pool on an empty device."""
        self.lock.acquire(read_owner(bytes(self._note[:OWNER_BYTES])))
        try:
            if not self.refresh():
                self.format()
            else:
                self._mend()
            self._store(self._note, owner_note())
        except BaseException:
            self.lock.release()
            raise

    def make_way(self) -> None:
        """Make an empty pool where something else is than a whole pool."""
        try:
            self.refresh()
        except (ForeignDataError, DamagedError):
            self.make_empty()

    def make_empty(self) -> None:
        """Make an empty pool, whatever is there, while nobody else writes to it."""
        self.lock.acquire("unknown")
        try:
            self.format()
        finally:
            self.lock.release()

    def contents(self) -> str:
        """Say for a person what is on the device."""
        try:
            if not self.refresh():
                return "nothing, by all appearances"
        except (ForeignDataError, DamagedError) as error:
            return self.foreign() or str(error)
        count = len(self.directory.files.keys() - {_format.JOURNAL})
        return f"a pool of pmarray with {count} array{'s' * (count != 1)}"

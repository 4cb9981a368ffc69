"""One group in a pool: on the whole of a DAX device, or in a shelf of PyMM.

`_formats.pool` has the format.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pmarray._dtypes import DType
from pmarray._formats.metadata import ArrayMetadata, Checkpoint, GroupMetadata
from pmarray._formats.pool import JOURNAL, begins_with
from pmarray._geometry.layout import Layout
from pmarray._system import pmem
from pmarray.backends.shelf.pool import Medium, Pool
from pmarray.backends.shelf.stores import NOTHING, Stores
from pmarray.errors import DamagedError, SnapshotExpiredError

__all__ = ["PoolBackend", "PoolRegion"]

_GROW_MAX_BYTES = 1 << 30


class PoolRegion:
    """One file of a pool, mapped as consecutive bytes.

    Parameters
    ----------
    pool
        Where it is.
    number
        Of the file, which exists.
    """

    block_bytes = 1

    def __init__(self, pool: Pool, number: int) -> None:
        self._pool = pool
        self._number = number
        self._generation = pool.known_generation
        self._stores = Stores(pool.medium.path)
        self._mapping: weakref.ref[pmem.Mapping] | None = None
        self._map()

    def _map(self) -> None:
        """Map the units that the file has now; arrays made from an older mapping keep that."""
        self._runs = self._pool.directory.files[self._number]
        mapping = self._pool.map_file(self._number)
        self._mapping = None if mapping is None else weakref.ref(mapping)
        self._stores.memory = NOTHING if mapping is None else mapping.memory

    @property
    def capacity(self) -> int:
        return len(self._stores.memory)

    @property
    def memory(self) -> NDArray[np.uint8]:
        """The bytes themselves."""
        return self._stores.memory

    def will_store(self, offset: int, nbytes: int, /) -> None:
        pass

    def stored(self, offset: int, nbytes: int, /) -> None:
        self._stores.add(offset, nbytes)

    def read_into(self, offset: int, out: memoryview, /) -> None:
        if not self._pool.lock.held:
            self._check()
        self._stores.read_into(offset, out)

    def _check(self) -> None:
        """A writer may have given these units to somebody else; ask before they are read.

        If it does so meanwhile, the reader finds the stamp changed and reads again.
        """
        if self._pool.generation == self._generation:
            return
        self._pool.refresh()
        runs = self._pool.directory.files.get(self._number, ())
        if not begins_with(runs, self._runs):
            raise SnapshotExpiredError(
                "what this handle was reading has been deleted or cut since: call refresh() on the "
                "group to read the last commit"
            )
        self._generation = self._pool.known_generation

    def will_read(self, offset: int, nbytes: int, /) -> None:
        pass

    def write(self, offset: int, buffers: Sequence[memoryview], /) -> None:
        self._stores.write(offset, buffers)

    def barrier(self) -> None:
        self._stores.persist()

    def reserve(self, nbytes: int, /) -> None:
        self._reserve(nbytes, self._pool.grow)

    def reserve_unfilled(self, nbytes: int, /) -> None:
        self._reserve(nbytes, self._pool.grow_unfilled)

    def _reserve(self, nbytes: int, grow: Callable[[int, int, int], object]) -> None:
        if nbytes > self.capacity:
            step = min(self.capacity // 4, _GROW_MAX_BYTES)
            grow(self._number, nbytes, max(nbytes, self.capacity + step))
            self._map()

    def refresh(self) -> None:
        self._check()
        # By its units, for a read may have followed the generation already, and not mapped them.
        if self._pool.directory.files.get(self._number) != self._runs:
            self._map()

    def describe(self, layout: Layout, dtype: DType, ndim: int, /) -> None:
        pass

    def trim(self, nbytes: int, /) -> None:
        if self.capacity - nbytes < self._pool.unit_bytes:
            return
        mapping = self._mapping
        self._stores.memory = NOTHING
        if mapping is None or mapping() is None:
            self._pool.shrink(self._number, nbytes)
        self._map()

    def view(self, nbytes: int, /) -> NDArray[np.uint8]:
        result = self._stores.memory[:nbytes]
        result.flags.writeable = False
        return result

    def close(self) -> None:
        self._stores.memory = NOTHING


class PoolBackend:
    """One group in a pool."""

    can_create = True
    has_journal = True

    def __init__(self, medium: Medium, *, writable: bool) -> None:
        self._pool = Pool(medium, writable=writable)

    # -- metadata ---------------------------------------------------------------------------------

    def load(self) -> Checkpoint | None:
        if not self._pool.refresh() or self._pool.directory.checkpoint is None:
            return None
        text = self._pool.directory.checkpoint
        return Checkpoint.from_bytes(text.encode(), self._pool.medium.path)

    def save(self, checkpoint: Checkpoint, /) -> None:
        self._pool.save(checkpoint.to_bytes().decode())

    def admit(self, array: ArrayMetadata, /) -> None:
        pass

    def stamp(self) -> object:
        return self._pool.stamp()

    def open_journal(self, *, create: bool) -> PoolRegion | None:
        if JOURNAL not in self._pool.directory.files:
            if not create:
                return None
            self._pool.make(JOURNAL)
        return PoolRegion(self._pool, JOURNAL)

    # -- the lock ---------------------------------------------------------------------------------

    def lock(self) -> None:
        self._pool.become_writer()

    def make_way(self) -> None:
        """Make an empty pool where something else is than a whole pool of ours."""
        self._pool.make_way()

    # -- regions ----------------------------------------------------------------------------------

    def create(self, file_id: int, nbytes: int, /, *, aligned: bool) -> PoolRegion:
        self._pool.make(file_id)
        region = PoolRegion(self._pool, file_id)
        try:
            region.reserve(nbytes)
        except BaseException:
            region.close()
            self.remove(file_id)
            raise
        return region

    def open(self, file_id: int, nbytes: int, /, *, aligned: bool) -> PoolRegion:
        where = self._pool.medium.path
        if file_id not in self._pool.directory.files:
            raise DamagedError(f"{where} has no file {file_id}, though its metadata name it")
        region = PoolRegion(self._pool, file_id)
        if region.capacity < nbytes:
            region.close()
            raise DamagedError(
                f"file {file_id} of {where} has {region.capacity} bytes, its metadata expect "
                f"{nbytes}"
            )
        return region

    def remove(self, file_id: int, /) -> None:
        self._pool.remove([file_id])

    def remove_orphans(self, metadata: GroupMetadata, /) -> None:
        self._pool.remove(self._orphans(metadata))

    def orphans(self, metadata: GroupMetadata, /) -> list[str]:
        place = self._pool.medium.path
        return [f"{place}, file {number}" for number in self._orphans(metadata)]

    def flaws(self) -> list[tuple[str, str, bool]]:
        """Say what is the matter with the superblocks: which, what, whether it is damage."""
        return self._pool.describe_slots()

    def _orphans(self, metadata: GroupMetadata) -> list[int]:
        """Return the files that are neither an array's nor the journal."""
        return sorted(self._pool.directory.files.keys() - {*metadata.file_ids, JOURNAL})

    def close(self) -> None:
        self._pool.lock.release()

    def abandon(self) -> None:
        self._pool.lock.abandon()

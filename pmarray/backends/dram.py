"""``dram:`` - volatile memory. Nothing outlives the process.

``dram:`` is a new group each time; ``dram:name`` is the same group for the whole process, until
it is opened with ``mode="w"``.

``dram:?spill=/directory`` is volatile memory larger than DRAM: files without names in that
directory, mapped, with the kernel's page cache in front. It stands for the *memory mode* of
persistent memory, where the processor does the same with DRAM as the cache.

``dram:?device=/dev/dax0.0`` lies on a volatile DAX device: CXL memory, or memory that the firmware
has set apart (`backends.shelf.memory`).
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pmarray._dtypes import DType
from pmarray._formats.metadata import ArrayMetadata, Checkpoint
from pmarray._geometry.layout import Layout
from pmarray._sizes import format_bytes
from pmarray._system import osops
from pmarray._url import URL
from pmarray.errors import BudgetError, GroupLockedError, StorageError, URLError

__all__ = ["DRAMBackend", "DRAMRegion", "SpillRegion", "open_backend"]

_PAGE = mmap.PAGESIZE
_HUGE_PAGE = 2 << 20
_SPILL_STEP_BYTES = 1 << 30


class DRAMRegion:
    """A growing anonymous mapping, with huge pages where the system has them."""

    def __init__(self, nbytes: int) -> None:
        self._map: mmap.mmap | None = None
        self._memory: NDArray[np.uint8] | None = None
        self.capacity = 0
        self.block_bytes = 1
        self.reserve(nbytes)

    @property
    def memory(self) -> NDArray[np.uint8]:
        """The bytes themselves."""
        if self._memory is None:
            self._memory = np.frombuffer(self._map or bytearray(), np.uint8)
        return self._memory

    def read_into(self, offset: int, out: memoryview, /) -> None:
        np.frombuffer(out, np.uint8)[:] = self.memory[offset : offset + out.nbytes]

    def will_read(self, offset: int, nbytes: int, /) -> None:
        pass

    def write(self, offset: int, buffers: Sequence[memoryview], /) -> None:
        for buffer in buffers:
            self.memory[offset : offset + buffer.nbytes] = np.frombuffer(buffer, np.uint8)
            offset += buffer.nbytes

    def barrier(self) -> None:
        pass

    def reserve(self, nbytes: int, /) -> None:
        if nbytes <= self.capacity:
            return
        # Geometric growth, so that n appends copy O(n); untouched pages cost nothing.
        capacity = max(nbytes, self.capacity + self.capacity // 2)
        capacity = -(-capacity // _PAGE) * _PAGE
        self._memory = None
        try:
            if self._map is None:
                self._map = self._allocate(capacity)
            else:
                self._grow(self._map, capacity)
        except (OSError, ValueError, OverflowError, MemoryError) as error:
            raise BudgetError(f"cannot allocate {format_bytes(capacity)} of memory") from error
        self.capacity = capacity

    def _grow(self, old: mmap.mmap, capacity: int) -> None:
        try:
            old.resize(capacity)  # moves page tables, not bytes
            return
        except BufferError:
            pass  # somebody holds a view: it keeps the old memory, we move on to new
        new = self._allocate(capacity)
        np.frombuffer(new, np.uint8)[: len(old)] = np.frombuffer(old, np.uint8)
        self._map = new

    @staticmethod
    def _allocate(capacity: int) -> mmap.mmap:
        result = mmap.mmap(-1, capacity, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if capacity >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                result.madvise(mmap.MADV_HUGEPAGE)
            except OSError:
                pass  # a kernel without transparent huge pages: slower, not wrong
        return result

    def refresh(self) -> None:
        pass

    def describe(self, layout: Layout, dtype: DType, ndim: int, /) -> None:
        pass

    def trim(self, nbytes: int, /) -> None:
        pass

    def view(self, nbytes: int, /) -> NDArray[np.uint8]:
        result = self.memory[:nbytes]
        result.flags.writeable = False
        return result

    def close(self) -> None:
        self._memory = None

    def release(self) -> None:
        """Give the memory back, but for what somebody has a view of."""
        self._memory = self._map = None
        self.capacity = 0


class SpillRegion(DRAMRegion):
    """A mapping of a file without a name, which is gone with its last user, however that ends.

    Parameters
    ----------
    nbytes
        To begin with.
    directory
        Where the file takes its space.
    """

    def __init__(self, nbytes: int, directory: str) -> None:
        self._directory = directory
        try:
            self._fd = osops.open_nameless(directory)
        except OSError as error:
            raise StorageError(
                error.errno, f"cannot make a file to spill to: {error.strerror}", directory
            ) from error
        self._close_file = weakref.finalize(self, os.close, self._fd)
        super().__init__(nbytes)

    def reserve(self, nbytes: int, /) -> None:
        if nbytes <= self.capacity:
            return
        generous = max(nbytes, self.capacity + min(self.capacity // 2, _SPILL_STEP_BYTES))
        try:
            self._map_file(generous)
        except (OSError, ValueError, OverflowError):
            try:
                self._map_file(nbytes)
            except (OSError, ValueError, OverflowError) as error:
                code = error.errno if isinstance(error, OSError) else None
                raise StorageError(
                    code,
                    f"cannot reserve {format_bytes(nbytes - self.capacity)} more to spill to "
                    f"({error}); nothing was changed: free space and try again",
                    self._directory,
                ) from error

    def _map_file(self, nbytes: int) -> None:
        capacity = -(-nbytes // _PAGE) * _PAGE
        try:
            # Allocated, so that a full disk is an error here and not a bus error at some store.
            osops.fallocate(self._fd, 0, capacity)
            self._map = mmap.mmap(self._fd, capacity)  # old arrays show the same pages
        except BaseException:
            osops.ftruncate(self._fd, self.capacity)  # what was allocated before it was full
            raise
        self._memory = None
        self.capacity = capacity

    def release(self) -> None:
        super().release()
        self._close_file()


class DRAMBackend:
    """One group in memory.

    Parameters
    ----------
    where
        For messages.
    make_region
        Returns a region of so many bytes.
    """

    can_create = True
    has_journal = False
    volatile = True
    """Whether all is gone with the process, so that nobody has to close it."""

    def __init__(self, where: str, make_region: Callable[[int], DRAMRegion] = DRAMRegion) -> None:
        self._where = where
        self._make_region = make_region
        self._checkpoint: Checkpoint | None = None
        self._regions: dict[int, DRAMRegion] = {}
        self._locked = False

    def load(self) -> Checkpoint | None:
        return self._checkpoint

    def save(self, checkpoint: Checkpoint, /) -> None:
        self._checkpoint = checkpoint

    def admit(self, array: ArrayMetadata, /) -> None:
        pass

    def stamp(self) -> object:
        return self._checkpoint

    def open_journal(self, *, create: bool) -> None:
        return None

    def lock(self) -> None:
        if self._locked:
            raise GroupLockedError(
                f"{self._where} is open for writing in this process already; close that handle"
            )
        self._locked = True

    def create(self, file_id: int, nbytes: int, /, *, aligned: bool) -> DRAMRegion:
        region = self._make_region(nbytes)
        self._regions[file_id] = region
        return region

    def open(self, file_id: int, nbytes: int, /, *, aligned: bool) -> DRAMRegion:
        return self._regions[file_id]

    def settle(self) -> None:
        pass

    def committed(self) -> None:
        pass

    def remove(self, file_id: int, /) -> None:
        self._regions.pop(file_id, None)

    def remove_orphans(self, keep: Collection[int], /) -> None:
        pass

    def publish(self, names: Mapping[str, int], /) -> None:
        pass

    def close(self) -> None:
        self._locked = False

    def abandon(self) -> None:
        pass


_NAMED: dict[str, DRAMBackend] = {}


class _Nameless(DRAMBackend):
    """A group that nobody can open again."""

    def close(self) -> None:
        super().close()
        for region in self._regions.values():
            region.release()
        self._regions.clear()


class _Handle(DRAMBackend):
    """One opener's share of a named group: the lock is held by one handle at a time."""

    def __init__(self, shared: DRAMBackend) -> None:
        super().__init__(shared._where, shared._make_region)
        self._shared = shared
        self._regions = shared._regions
        self._holds = False

    def load(self) -> Checkpoint | None:
        return self._shared.load()

    def save(self, checkpoint: Checkpoint, /) -> None:
        self._shared.save(checkpoint)

    def stamp(self) -> object:
        return self._shared.stamp()

    def lock(self) -> None:
        self._shared.lock()
        self._holds = True

    def close(self) -> None:
        if self._holds:
            self._shared.close()
            self._holds = False


def open_backend(url: URL, *, writable: bool) -> DRAMBackend:
    """Open ``dram:`` or ``dram:name``, either with ``?spill=/directory`` or ``?device=``."""
    if set(url.options) - {"spill", "device"} or len(url.options) > 1:
        raise URLError(
            "dram: takes no options but ?spill=/directory or ?device=/dev/dax0.0, got "
            f"{url.options}"
        )
    make_region: Callable[[int], DRAMRegion] = DRAMRegion
    for option, place in url.options.items():
        path = os.path.join(os.getcwd(), os.path.expanduser(place))
        if option == "spill":
            make_region = partial(SpillRegion, directory=path)
        else:
            from pmarray.backends.shelf.memory import DeviceRegion, device_memory

            make_region = partial(DeviceRegion, owner=device_memory(path))
    if not url.path:
        return _Nameless("dram:", make_region)
    shared = _NAMED.setdefault(url.path, DRAMBackend(f"dram:{url.path}", make_region))
    return _Handle(shared)

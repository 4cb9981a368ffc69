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

from collections.abc import Callable
from functools import partial

from pmarray._formats.metadata import ArrayMetadata, Checkpoint
from pmarray._system.lockfile import locked_by, owner
from pmarray._url import URL, whole_path
from pmarray.backends._regions import DRAMRegion, SpillRegion
from pmarray.backends.shelf.memory import DeviceRegion, device_memory
from pmarray.errors import URLError

__all__ = ["DRAMBackend", "DRAMRegion", "SpillRegion", "open_backend"]


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
            raise locked_by(self._where, owner())
        self._locked = True

    def create(self, file_id: int, nbytes: int, /, *, aligned: bool) -> DRAMRegion:
        region = self._make_region(nbytes)
        self._regions[file_id] = region
        return region

    def open(self, file_id: int, nbytes: int, /, *, aligned: bool) -> DRAMRegion:
        return self._regions[file_id]

    def remove(self, file_id: int, /) -> None:
        self._regions.pop(file_id, None)

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
        path = whole_path(place)
        if option == "spill":
            make_region = partial(SpillRegion, directory=path)
        else:
            make_region = partial(DeviceRegion, owner=device_memory(path))
    if not url.path:
        return _Nameless("dram:", make_region)
    shared = _NAMED.setdefault(url.path, DRAMBackend(f"dram:{url.path}", make_region))
    return _Handle(shared)

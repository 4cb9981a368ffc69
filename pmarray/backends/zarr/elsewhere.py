"""A group in a store that is not on this machine, and has no lock."""

from __future__ import annotations

from pmarray._formats.metadata import GroupMetadata
from pmarray.backends.zarr import leftovers
from pmarray.backends.zarr.store import ZarrBackend

__all__ = ["RemoteZarrBackend"]


class RemoteZarrBackend(ZarrBackend):
    """One group there. What a crash has left is told and not removed: another may be writing it."""

    survives_fork = False  # the threads of obstore and fsspec do not

    def orphans(self, metadata: GroupMetadata, /) -> list[str]:
        listing = self._listing()
        if self.can_create:
            return list(leftovers.in_group(listing, metadata, session=""))
        return list(leftovers.in_array(listing, "", metadata.arrays["array"]))

"""A transaction that is open: where to go back to."""

from __future__ import annotations

import weakref
from collections.abc import Callable, MutableMapping
from typing import Any, Protocol

from pmarray._array.stored import StoredArray
from pmarray._array.transaction import Transaction
from pmarray._formats.metadata import ArrayMetadata, GroupMetadata
from pmarray._storage.items import Storage

__all__ = ["OpenTransaction"]


class Members(Protocol):
    """The arrays of a group, as a transaction finds them and puts them back."""

    metadata: GroupMetadata

    @property
    def arrays(self) -> MutableMapping[str, Any]:
        """The handles that are open, by name."""

    @property
    def removed(self) -> list[int]:
        """Files that go with the next commit."""


class OpenTransaction:
    """The group's side of a transaction: where to go back to.

    Knows the handle of the block weakly: one that has died without an end was torn away, and the
    next operation rolls it back.

    Parameters
    ----------
    members
        The arrays as they are now.
    handle
        The block's.
    died
        Called when nobody has the handle any more.
    remove
        Deletes a file.
    """

    def __init__(
        self,
        members: Members,
        handle: Transaction,
        died: Callable[[object], None],
        remove: Callable[[int], None],
    ) -> None:
        self._members = members
        self._remove = remove
        self._handle = weakref.ref(handle, died)
        self.owner = handle.owner
        self.metadata = members.metadata
        self._handles: dict[str, tuple[StoredArray, ArrayMetadata, Storage]] = {
            name: (array, array._array, array._storage) for name, array in members.arrays.items()
        }
        self._removed = list(members.removed)
        self.retired: list[Storage] = []
        """Storages of deleted and moved arrays; released when there is no way back to them."""
        for array in members.arrays.values():
            array._storage.begin()

    def is_of(self, handle: Transaction) -> bool:
        """Whether `handle` began it."""
        return self._handle() is handle

    @property
    def torn(self) -> bool:
        """Whether nobody will end it; asked under the group's lock, with no task pending."""
        handle = self._handle()
        return handle is None or handle.torn

    def join(self, array: StoredArray) -> None:
        """Note the same of an array that was there before, and is opened only now."""
        self._handles[array.name] = (array, array._array, array._storage)
        array._storage.begin()

    def storages(self) -> list[Storage]:
        """The storages of all arrays that are open and were there then."""
        return [storage for _, _, storage in self._handles.values()]

    def restore(self) -> None:
        """Go back there; the cache has forgotten what was written."""
        members = self._members
        kept = set(self.storages())
        for array in members.arrays.values():
            array._detached = True  # unless it was there before: see below
        for storage in {*self.retired, *(array._storage for array in members.arrays.values())}:
            if storage not in kept:
                storage.discard()
        created = range(self.metadata.next_file_id, members.metadata.next_file_id)
        members.metadata = self.metadata
        members.removed[:] = self._removed
        members.arrays.clear()
        for name, (array, metadata, storage) in self._handles.items():
            array._array, array._storage, array._detached = metadata, storage, False
            storage.roll_back(metadata.layout)
            members.arrays[name] = array
        for file_id in created:
            self._remove(file_id)

    def release(self) -> None:
        """There is no way back any more."""
        for storage in self.retired:
            storage.discard()

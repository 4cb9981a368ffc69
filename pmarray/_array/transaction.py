"""`Transaction`: the public handle, and the way back to where it began."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from pmarray._array.stored import StoredArray
from pmarray._formats.metadata import ArrayMetadata, GroupMetadata
from pmarray._storage.items import Storage
from pmarray.backends._protocols import Backend
from pmarray.errors import TransactionError

__all__ = ["OpenTransaction", "Transaction"]

T = TypeVar("T")


class Transacting(Protocol):
    """A group, as its transactions see it."""

    _metadata: GroupMetadata

    @property
    def _arrays(self) -> MutableMapping[str, Any]:
        """The handles that are open, by name."""

    @property
    def _removed(self) -> list[int]:
        """Files that go with the next commit."""

    @property
    def _backend(self) -> Backend: ...

    def _turn(self) -> AbstractContextManager[Any]: ...

    def _admit(self) -> None: ...

    def _admit_rollback(self, handle: Transaction, /) -> bool: ...

    def _do(self, task: Callable[[], T], /) -> T: ...

    def _begin(self, handle: Transaction, /) -> None: ...

    def _commit(self, handle: Transaction, /, *, wait: bool) -> None: ...

    def _roll_back(self) -> None: ...

    def _transaction_died(self, handle: object, /) -> None: ...


class Transaction:
    """Everything written to the group inside the block becomes visible and durable together.

    Made by `Group.transaction` and `PMArray.transaction`. If the block raises, arrays, shapes and
    attributes are again what they were when it was entered. Operations of other threads during
    the block belong to it too.

    An interrupt (Ctrl-C) in the block is an exception like any other. One that arrives while the
    block ends decides nothing: the commit takes place or it does not, as if nobody had
    interrupted, and the next operation on the group waits for the outcome.

    Examples
    --------
    >>> import pmarray
    >>> group = pmarray.open_group("dram:")
    >>> x = group.create("x", (2, 1), layout="col")
    >>> try:
    ...     with group.transaction():
    ...         x.append([1, 2])
    ...         group.attrs["step"] = 1
    ...         raise KeyboardInterrupt
    ... except KeyboardInterrupt:
    ...     x.shape, dict(group.attrs)
    (2, 2)
    ((2, 1), {})
    """

    def __init__(self, group: Transacting, *, wait: bool) -> None:
        self._group = group
        self._wait = wait
        self._begun = False
        self.torn = False
        """Whether an exception has torn it away at its beginning or end: see `OpenTransaction`."""

    def __enter__(self) -> Self:
        if self._begun:
            raise TransactionError("this transaction has been used; call transaction() for another")
        self._begun = True
        self.owner = threading.current_thread()
        group = self._group
        try:
            with group._turn():
                group._admit()
                group._do(lambda: group._begin(self))
        except BaseException:
            self.torn = True
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        group = self._group
        try:
            with group._turn():
                if kind is None:
                    group._admit()
                    group._do(lambda: group._commit(self, wait=self._wait))
                elif group._admit_rollback(self):
                    group._do(group._roll_back)
        except BaseException:
            self.torn = True
            raise


class OpenTransaction:
    """The group's side of a transaction: where to go back to.

    Knows the handle of the block weakly: one that has died without an end was torn away, and the
    next operation rolls it back.
    """

    def __init__(self, group: Transacting, handle: Transaction) -> None:
        self._group = group
        self._handle = weakref.ref(handle, group._transaction_died)
        self.owner = handle.owner
        self.metadata = group._metadata
        self._handles: dict[str, tuple[StoredArray, ArrayMetadata, Storage]] = {
            name: (array, array._array, array._storage) for name, array in group._arrays.items()
        }
        self._removed = list(group._removed)
        self.retired: list[Storage] = []
        """Storages of deleted and moved arrays; released when there is no way back to them."""
        for array in group._arrays.values():
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
        group = self._group
        kept = set(self.storages())
        for array in group._arrays.values():
            array._detached = True  # unless it was there before: see below
        for storage in {*self.retired, *(array._storage for array in group._arrays.values())}:
            if storage not in kept:
                storage.discard()
        created = range(self.metadata.next_file_id, group._metadata.next_file_id)
        group._metadata = self.metadata
        group._removed[:] = self._removed
        group._arrays.clear()
        for name, (array, metadata, storage) in self._handles.items():
            array._array, array._storage, array._detached = metadata, storage, False
            storage.roll_back(metadata.layout)
            group._arrays[name] = array
        for file_id in created:
            group._backend.remove(file_id)

    def release(self) -> None:
        """There is no way back any more."""
        for storage in self.retired:
            storage.discard()

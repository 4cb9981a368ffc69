"""What an array knows of its group."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from pmarray._cache.cache import ChunkCache
from pmarray._formats.metadata import ArrayMetadata
from pmarray._storage.items import Storage

__all__ = ["Home"]

T = TypeVar("T")


class Home(Protocol):
    """A group, as its arrays see it: whose turn it is, and where an array's files come from."""

    @property
    def url(self) -> str:
        """Where the group is."""

    @property
    def mode(self) -> str:
        """How the group was opened."""

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""

    @property
    def _cache(self) -> ChunkCache:
        """The cache that all its arrays share."""

    @property
    def _unattended(self) -> deque[Callable[[], None]]:
        """What is done, with the lock, before the next operation."""

    @property
    def _transaction(self) -> Any:
        """The open one; None if there is none."""

    def _turn(self) -> AbstractContextManager[Any]:
        """Return the lock of the group."""

    def _admit(self) -> None:
        """Refuse an operation where there can be none; called with the lock."""

    def _admit_writer(self) -> None:
        """Refuse one that changes something where there can be none; called with the lock."""

    def _note_change(self) -> None:
        """Something was written; called with the lock."""

    def _refuse_fixed(self, why: str, /) -> None:
        """Refuse what a group that is one array cannot have."""

    def _state(self, array: ArrayMetadata, /) -> tuple[object, ...] | None:
        """What an array's committed state is told by; None while this handle may change it."""

    def _do(self, task: Callable[[], T], /) -> T:
        """Do what an exception in the caller must not tear."""

    def _admit_shape(self, array: ArrayMetadata, /) -> None:
        """Refuse an array that the backend cannot have."""

    def _update(self, name: str, array: ArrayMetadata, /) -> None:
        """Note what an array is like from now on."""

    def _new_file(
        self, array: ArrayMetadata, shape: tuple[int, ...], /
    ) -> tuple[ArrayMetadata, Storage]:
        """Make a place for an array of another shape."""

    def _discard_file(self, array: ArrayMetadata, /) -> None:
        """Give that place back: nothing came of it."""

    def _replace_array(self, name: str, old: ArrayMetadata, new: ArrayMetadata, /) -> None:
        """Let the array be in another place from now on."""

    def _retire(self, storage: Storage, /) -> None:
        """Nothing is read from this storage or written to it any more."""

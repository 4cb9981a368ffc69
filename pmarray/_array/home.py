"""What an array knows of its group."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from pmarray._cache.cache import ChunkCache
from pmarray._cache.lull import Lull
from pmarray._formats.metadata import ArrayMetadata
from pmarray._storage.items import Storage

__all__ = ["Home", "Places", "Turns"]

T = TypeVar("T")


class Turns(Protocol):
    """The session of a group: whose turn it is, and what must not be torn."""

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""

    @property
    def cache(self) -> ChunkCache:
        """The cache that all arrays of the group share."""

    @property
    def unattended(self) -> deque[Callable[[], None]]:
        """What is done, with the lock, before the next operation."""

    @property
    def transaction(self) -> Any:
        """The open one; None if there is none."""

    @property
    def changes(self) -> int:
        """How often something was changed, or was about to be."""

    @property
    def snapshot(self) -> object | None:
        """The commit that the handle reads; None where it reads what is there."""

    def turn(self) -> AbstractContextManager[Any]:
        """Return the lock of the group."""

    def admit(self) -> None:
        """Refuse an operation where there can be none; called with the lock."""

    def admit_writer(self) -> None:
        """Refuse one that changes something where there can be none; called with the lock."""

    def note_change(self) -> None:
        """Something was written; called with the lock."""

    def begin_lull(self) -> Lull | None:
        """Return a time in which an operation need not be admitted; called with the lock."""

    def do(self, task: Callable[[], T], /) -> T:
        """Do what an exception in the caller must not tear."""


class Places(Protocol):
    """The catalog of a group: what an array is there, and where its files come from."""

    def refuse_fixed(self, why: str, /) -> None:
        """Refuse what a group that is one array cannot have."""

    def state_of(self, array: ArrayMetadata, /) -> tuple[object, ...] | None:
        """What an array's committed state is told by; None while this handle may change it."""

    def occupied_nbytes(self, name: str, /) -> int | None:
        """Return what an array takes on the medium; None where that cannot be told."""

    def admit_shape(self, array: ArrayMetadata, /) -> None:
        """Refuse an array that the backend cannot have."""

    def update(self, name: str, array: ArrayMetadata, /) -> None:
        """Note what an array is like from now on."""

    def new_file(
        self, array: ArrayMetadata, shape: tuple[int, ...], /
    ) -> tuple[ArrayMetadata, Storage]:
        """Make a place for an array of another shape."""

    def discard_file(self, array: ArrayMetadata, /) -> None:
        """Give that place back: nothing came of it."""

    def replace_array(self, name: str, old: ArrayMetadata, new: ArrayMetadata, /) -> None:
        """Let the array be in another place from now on."""

    def retire(self, storage: Storage, /) -> None:
        """Nothing is read from this storage or written to it any more."""


class Home(Protocol):
    """A group, as its arrays see it."""

    @property
    def url(self) -> str:
        """Where the group is."""

    @property
    def mode(self) -> str:
        """How the group was opened."""

    @property
    def _session(self) -> Turns: ...

    @property
    def _catalog(self) -> Places: ...

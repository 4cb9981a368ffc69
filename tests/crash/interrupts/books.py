"""A look into the library's own books: locks, pins, loans, open transactions.

The one module here that knows how the library keeps them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pmarray
from tests.crash.interrupts.patience import patience

__all__ = ["held_locks", "left_open", "library_threads"]

_THREADS = ("swag",)
"""How the names begin of those that end with the group; a pool of the process stays."""

_PATIENCE_SECONDS = 5.0
"""A lock that was left held is held for good."""


def _locks(group: pmarray.Group) -> Iterator[tuple[str, Any]]:
    yield "the group's lock", group._session.lock
    yield "the cache's lock", group._session.cache.lock


def held_locks(group: pmarray.Group) -> list[str]:
    """Which locks another thread than this one cannot have; called from the one that has none."""
    held = []
    for name, lock in _locks(group):
        if lock.acquire(timeout=patience(_PATIENCE_SECONDS)):
            lock.release()
        else:
            held.append(name)
    return held


def left_open(group: pmarray.Group) -> list[tuple[str, str]]:
    """What an operation that has ended should have ended as well: a kind, and what it is.

    What an exception has torn away in the middle is for the next operation to put right.
    """
    if not group.closed:
        len(group)
    found = []
    for name, array in list(group._catalog.arrays.items()):
        if array._loans:
            found.append(("loan open", f"{len(array._loans)} loans of {name}"))
    found += [("pinned", f"chunk {chunk.index}, by {chunk.pins}") for chunk in _pinned(group)]
    if group._session.transaction is not None:
        found.append(("transaction open", "after an operation that should have ended it"))
    return found


def _pinned(group: pmarray.Group) -> list[Any]:
    """The chunks that stay in memory: not for the sake of what a thread is fetching right now.

    Other threads may go on reading, so that there is no moment without any: a chunk counts while
    it is found in memory at each look.
    """
    cache = group._session.cache
    until = time.monotonic() + patience(_PATIENCE_SECONDS)
    pinned = list(cache._chunks.values())
    while True:
        pinned = [chunk for chunk in pinned if chunk.pins]
        if not pinned or time.monotonic() > until:
            return pinned
        with cache.lock:  # what is done at the latest when memory is wanted
            while cache.memory.before_eviction:
                cache.memory.before_eviction.popleft()()
        time.sleep(0.001)


def library_threads() -> list[str]:
    """The library's own threads that run."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(_THREADS)]

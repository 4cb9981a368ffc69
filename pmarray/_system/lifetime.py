"""The groups that are open in this process: closed when it ends, given up where it forks."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from typing import Protocol

from pmarray._system.dropped import await_closing, await_garbage

__all__ = [
    "await_dropped", "begin", "call_after_closing", "close_before_threads_end", "end",
    "is_written_here",
]  # fmt: skip


class _Group(Protocol):
    url: str

    @property
    def is_writer(self) -> bool: ...

    def close(self) -> None: ...

    def abandon(self) -> None: ...


_OPEN: weakref.WeakSet[_Group] = weakref.WeakSet()
_after: list[Callable[[], object]] = []


def begin(group: _Group) -> None:
    """Close this group at exit, if nobody does before."""
    _OPEN.add(group)


def end(group: _Group) -> None:
    """The group is closed."""
    _OPEN.discard(group)


def is_written_here(url: str) -> bool:
    """Whether a handle of this process has a group open for writing."""
    return any(group.url == url and group.is_writer for group in list(_OPEN))


def await_dropped(url: str | None) -> None:
    """Return when groups that were dropped are closed, and all that have written to this one.

    Of these, the interpreter may not know yet: a group and its arrays refer to one another. None
    stands for a new place in memory.
    """
    await_closing()
    if url is not None and is_written_here(url):
        await_garbage()


def call_after_closing(function: Callable[[], object]) -> None:
    """Call a function at exit when all groups are closed: it ends what they need for that."""
    _after.append(function)


@cache
def close_before_threads_end() -> None:
    """Close groups sooner than `atexit` would, for those that need thread pools to write.

    The interpreter ends its thread pools before it waits for other threads, and before it calls
    what `atexit` has. What is registered here it calls before that; so threads that go on writing
    get `ClosedError`. Without this private function such a group has to be closed.
    """
    getattr(threading, "_register_atexit", lambda _: None)(_close_all)


def _close_all() -> None:
    """What was written and not closed reaches its medium all the same."""
    with ExitStack() as closes:  # all of them, also when one raises
        for group in list(_OPEN):
            closes.callback(group.close)


def _nothing() -> None:
    pass


def _end() -> None:
    with ExitStack() as ends:
        for function in _after:
            ends.callback(function)
        ends.callback(_close_all)
        ends.callback(await_closing)  # called first


def _abandon_all() -> None:
    for group in list(_OPEN):
        group.abandon()


# What `atexit` has is called in reverse. `weakref.finalize` registers itself when it is first used,
# and is how stores close their connections; groups are written through these. So it comes first.
weakref.finalize(_end, _nothing)
atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)

"""What the library must not do without: left out, so that the rig has to notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pmarray._cache.source import Commit
from pmarray._group.session import Session
from tests.crash.interrupts.places import slow_barriers

__all__ = ["MUTATIONS", "without"]

_BARRIER_SECONDS = 0.05
"""So long that what has not been waited for is seen not to be there."""


def _nothing(*arguments: Any, **options: Any) -> None:
    """Instead of what should have been done."""


# Each names a function of the library and what stands in for it.
MUTATIONS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    # A commit that is waited for returns when the writer thread has applied its outcome.
    "commit": (Commit, "wait", _nothing),
    # Whoever comes after a caller that was torn away waits until what was begun for it is over: a
    # commit that is sealed, above all.
    "wait": (Session, "await_pending", _nothing),
}


@contextmanager
def without(name: str | None) -> Iterator[None]:
    """Leave one of them out; nothing for None."""
    if name is None:
        yield
        return
    owner, attribute, instead = MUTATIONS[name]
    real = getattr(owner, attribute)
    setattr(owner, attribute, instead)
    try:
        with slow_barriers(_BARRIER_SECONDS):
            yield
    finally:
        setattr(owner, attribute, real)

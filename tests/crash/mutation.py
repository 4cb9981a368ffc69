"""Removes barriers, one place in the code after another: each removal has to be noticed.

`store` to persistent memory is a barrier of its own bytes: what is removed is that it makes them
durable.

A *site* is where a barrier is called from: the lines of the code under test, innermost first, down
to the first that is not in a module which merely passes barriers on, or that another library has
called.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pmarray
from pmarray._system import osops
from tests.crash.recorder import LEFT_OUT

__all__ = ["BARRIERS", "barrier_sites", "without_barrier"]

BARRIERS = ("fdatasync", "fsync", "fsync_directory", "persist", "store")
_PASSING_ON = (
    "_system/osops.py", "_system/files.py", "_commits/journal.py", "files/memmap.py",
    "files/region.py", "zarr/files.py", "zarr/local.py", "shelf/stores.py", "shelf/dax.py",
    "shelf/poolbackend.py",
)  # fmt: skip
_PASSING_ON_FUNCTIONS = ("shelf/pool.py _store",)
_RIG = Path(__file__).parent
_LIBRARY = Path(pmarray.__file__).parent
_PROGRAMS = ("protocols.py", "scenarios.py")


def _site(frame: FrameType | None) -> str:
    lines: list[str] = []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.parent == _RIG and path.name not in _PROGRAMS:
            frame = frame.f_back  # the recorder's wrappers, and this module's
            continue
        if lines and path.parent != _RIG and _LIBRARY not in path.parents:
            break
        name = f"{path.parent.name}/{path.name}"
        lines.append(f"{name}:{frame.f_lineno} {frame.f_code.co_name}")
        function = f"{name} {frame.f_code.co_name}"
        if name not in _PASSING_ON and function not in _PASSING_ON_FUNCTIONS:
            break
        frame = frame.f_back
    return " < ".join(lines)


@contextmanager
def _watching(decide: Callable[[str], bool]) -> Iterator[None]:
    """Ask `decide` at each barrier whether it is to be carried out."""
    saved: dict[str, Any] = {}

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if decide(f"{name} {_site(sys._getframe(1))}"):
                return real(*arguments, **options)
            if name == "store":
                memory, data = arguments
                memory[:] = data
            return LEFT_OUT

        return call

    for name in BARRIERS:
        if hasattr(osops, name):
            saved[name] = getattr(osops, name)
            setattr(osops, name, watched(name, saved[name]))
    try:
        yield
    finally:
        for name, real in saved.items():
            setattr(osops, name, real)


@contextmanager
def barrier_sites() -> Iterator[Counter[str]]:
    """Count the barriers of each site."""
    found: Counter[str] = Counter()
    lock = threading.Lock()

    def decide(site: str) -> bool:
        with lock:
            found[site] += 1
        return True

    with _watching(decide):
        yield found


@contextmanager
def without_barrier(site: str) -> Iterator[None]:
    """Leave out the barriers of one site."""
    with _watching(lambda here: here != site):
        yield

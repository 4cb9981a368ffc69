"""The two sides of a copy: where they are, who opens them, and with how much memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pmarray._opening import _open_group
from pmarray._url import DEFAULT_NAME, URL
from pmarray.array import PMArray
from pmarray.errors import (
    ArrayExistsError,
    BudgetError,
    PMArrayError,
    ReadOnlyError,
    SnapshotExpiredError,
    URLError,
)
from pmarray.group import Group

__all__ = [
    "Budget",
    "array_of",
    "destination",
    "group_of",
    "is_anonymous",
    "of_one_commit",
    "parse_destination",
    "refuse_itself",
    "refuse_taken",
    "same_place",
    "writes_through",
]

_SMALLEST_BYTES = 128 << 10
_TRIES = 10


def refuse_itself(source: PMArray, url: URL, name: str) -> None:
    """Raise if array `name` at `url` is the source, or what the source is a view of."""
    if same_place(source.group, url) and source.name == name:
        raise URLError(f"{source.group.url}#{name} is the source itself: give another #name")


def refuse_taken(group: Group, name: str, mode: str) -> None:
    """Raise if there is such an array and it may not be replaced."""
    if mode == "w-" and name in group:
        raise ArrayExistsError(
            f"{group.url} has an array {name!r} already: mode='w' replaces it, or give "
            "another #name"
        )


def same_place(group: Group, url: URL) -> bool:
    """Whether `url` is where `group` is."""
    one = URL.parse(group.url)
    if one.scheme != url.scheme or is_anonymous(url):
        return False
    if one.local_path is not None and url.local_path is not None:
        return os.path.realpath(one.local_path) == os.path.realpath(url.local_path)
    return one.path == url.path


def writes_through(group: Group, url: URL) -> bool:
    """Whether a source's own handle is the one to write with.

    Raises
    ------
    ReadOnlyError
        It is, and cannot write. A second handle would move on from the state that this one reads.
    """
    if not same_place(group, url):
        return False
    if group.mode == "r":
        raise ReadOnlyError(
            f"{group.url} is open with mode='r', and a copy within it is written through the "
            "handle that reads: open it with 'r+' or 'a', or give the source as a URL"
        )
    return True


def is_anonymous(url: URL) -> bool:
    """Whether every opener of `url` gets a new group."""
    return url.scheme == "dram" and not url.path


@dataclass(frozen=True, slots=True)
class Budget:
    """What `cache=` is divided into."""

    whole: int
    buffers: int
    destination: int
    source: int

    @classmethod
    def of(cls, nbytes: int) -> Budget:
        nbytes = max(nbytes, _SMALLEST_BYTES)
        # Long runs are what memory is good for here. The source's cache only serves runs that are
        # too short to be read by themselves.
        return cls(nbytes, nbytes * 5 // 8, nbytes // 4, nbytes // 8)


def parse_destination(dst: str | os.PathLike[str]) -> URL:
    url = URL.parse(dst)
    if is_anonymous(url):
        raise URLError(f"a copy at {dst!r} would be gone on return: name it, as in 'dram:name'")
    return url


def of_one_commit(src: object, do: Callable[[], None]) -> None:
    """Begin again where the source's writer has gone on too far, if the source is opened here."""
    if isinstance(src, (PMArray, Group)):
        do()
        return
    for _ in range(_TRIES):
        try:
            do()
            return
        except SnapshotExpiredError as error:
            expired = error
    raise SnapshotExpiredError(
        f"the writer of {src} commits faster than it can be copied ({_TRIES} times it was begun "
        "anew): let the writer pause, or copy in its own program, from its open array or group"
    ) from expired


@contextmanager
def array_of(src: str | os.PathLike[str] | PMArray, to: URL, budget: Budget) -> Iterator[PMArray]:
    if isinstance(src, PMArray):
        yield src
        return
    url = URL.parse(src)
    place = url._replace(name=None)
    with _source(place, budget, url.name or DEFAULT_NAME) as group:
        if not same_place(group, to):
            yield group[url.name or DEFAULT_NAME]
            return
    # One handle for both sides, since a writer need not wait for its own reader.
    with _open_group(place, "r+", budget.destination) as group:
        yield group[url.name or DEFAULT_NAME]


@contextmanager
def group_of(src: str | os.PathLike[str] | Group, budget: Budget) -> Iterator[Group]:
    if isinstance(src, Group):
        yield src
        return
    url = URL.parse_group(src)
    with _source(url, budget) as group:
        yield group


@contextmanager
def _source(place: URL, budget: Budget, *names: str) -> Iterator[Group]:
    """Open a group whose arrays are read, or those with names."""
    with _open_group(place, "r", budget.source) as group:
        if _has_room_for(group, names):
            yield group
            return
    # Chunks are as large as somebody's whole cache let them be.
    with _open_group(place, "r", budget.whole) as group:
        yield group


def _has_room_for(group: Group, names: tuple[str, ...]) -> bool:
    try:
        for name in names or list(group):
            group[name]
    except BudgetError:
        return False
    except PMArrayError:
        pass  # whoever reads it finds out
    return True


@contextmanager
def destination(source: Group, to: URL, budget: Budget) -> Iterator[Group]:
    if writes_through(source, to):
        yield source
        return
    with _open_group(to._replace(name=None), "a", budget.destination) as group:
        yield group

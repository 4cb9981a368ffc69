"""`pmarray.copy` and `pmarray.copy_group`: from any backend and layout to any other.

What is copied appears in one transaction of the destination: the arrays are created, filled and,
where they replace others, take their place in it. So there is no moment, and no crash, after which
a part of a copy could be taken for the whole.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal
from warnings import warn

import numpy as np

from pmarray._copying.sides import (
    Budget,
    array_of,
    destination,
    group_of,
    of_one_commit,
    parse_destination,
    refuse_itself,
    refuse_taken,
    same_place,
)
from pmarray._geometry.layout import LayoutName, Order, parse_layout
from pmarray._group.catalog import NewArray
from pmarray._opening import _cache_bytes, _open_group
from pmarray._streams.progress import Progress, reporting
from pmarray._streams.stream import ArraySource, Source, stream
from pmarray._system.uninterrupted import go_on, uninterrupted
from pmarray._url import DEFAULT_NAME, URL
from pmarray.array import PMArray
from pmarray.errors import GroupExistsError, LeftOutWarning, URLError
from pmarray.group import Group

__all__ = [
    "CreationMode",
    "Task",
    "copy",
    "copy_group",
    "create",
    "fill",
    "in_one_step",
    "parse_mode",
]

CreationMode = Literal["w", "w-"]
"""How something is opened that is made, or replaced."""


def copy(
    src: str | os.PathLike[str] | PMArray,
    dst: str | os.PathLike[str],
    *,
    mode: CreationMode = "w-",
    layout: LayoutName | None = None,
    chunks: str | int | tuple[int, ...] = "auto",
    cache: int | str = "auto",
    progress: bool | Progress = False,
    **options: Any,
) -> None:
    """Copy one array to another URL: another backend, another layout, another name.

    The copy is one transaction of the destination's group. Others see all of it or nothing, also
    after a crash, and it is durable on return; if it fails, what was there is there still, and a
    group that was new is left empty. In a store without transactions (`zarr:` that is not in a
    local directory) it is made and filled step by step, and removed if that fails.

    Each item is read once and written once, but for chunks of another shape than what is written
    at a time, which are completed from the store if the cache cannot hold them. Shape, dtype,
    fill value and the array's attributes stay; those of the group come along by `copy_group`. What
    was forgotten (`PMArray.forget`) is copied as it is found, which may be anything, and counts in
    the copy as any other item.

    Parameters
    ----------
    src
        A URL, as `open` takes it, whose last commit or flush is copied; or an open `PMArray`, also
        a view of one, with everything written to it so far.
    dst
        A URL; ``#name`` is the name of the copy, "array" unless told.
    mode
        ``"w-"`` the array must not exist, ``"w"`` it is replaced if it does. The old one stays
        until the new one is complete, so that there has to be room for both.
    layout
        "row" or "col"; the source's unless told.
    chunks
        The unit of writing: see `Group.create`.
    cache
        The memory that the copy may take altogether, besides the cache of a group that is open
        already: bytes, ``"1 GiB"``, ``"auto"`` for 256 MiB
        or a quarter of the free memory, whichever is less; not less than 128 KiB are taken. Where
        the layout changes, the runs that are read and written grow with the square root of it.
    progress
        True draws a bar on the terminal; a function is called, on a thread of the library's, with
        the bytes that are done and the bytes there are.
    **options
        How a chunk store stores the copy: see `Group.create`.

    Raises
    ------
    URLError
        `src` and `dst` are the same array, or `dst` is an anonymous ``dram:``, which would be gone
        on return.
    ReadOnlyError
        `src` is open with ``mode="r"`` in the group that `dst` names.
    ArrayExistsError
        There is an array of this name, and the mode is not ``"w"``.
    SnapshotExpiredError
        Another process writes to the source, and commits faster than it can be copied. Where `src`
        is a URL, the copy has been begun anew several times then, each time from the last commit.
    PMArrayError
        What `open` raises for either, and `Group.transaction` for the destination.

    Examples
    --------
    >>> import pmarray
    >>> with pmarray.open("dram:rows#x", shape=(4, 3), fill_value=2) as x:
    ...     x[0] = 1
    >>> pmarray.copy("dram:rows#x", "memmap:./columns#x", layout="col")
    >>> with pmarray.open("./columns#x", mode="r") as y:
    ...     y.layout, y[:, 0]
    ('col', array([1., 2., 2., 2.]))
    """
    parse_mode(mode)
    order = parse_layout(layout)
    to = parse_destination(dst)
    name = to.name or DEFAULT_NAME
    budget = Budget.of(_cache_bytes(cache))
    uninterrupted(
        lambda: of_one_commit(
            src, lambda: _copy(src, to, name, mode, order, chunks, budget, progress, options)
        )
    )


def _copy(
    src: str | os.PathLike[str] | PMArray,
    to: URL,
    name: str,
    mode: str,
    order: Order | None,
    chunks: str | int | tuple[int, ...],
    budget: Budget,
    progress: bool | Progress,
    options: Mapping[str, Any],
) -> None:
    with array_of(src, to, budget) as source:
        refuse_itself(source, to, name)
        task = Task(
            name,
            source.shape,
            source.dtype,
            order or source.layout,
            source._array.fill,
            ArraySource(source),
            dict(source.attrs),
        )
        with destination(source.group, to, budget) as group:
            refuse_taken(group, name, mode)
            with reporting(progress) as report, in_one_step(group):
                if name in group:
                    del group[name]
                fill(group, [task], chunks, budget.buffers, report, options)


def copy_group(
    src: str | os.PathLike[str] | Group,
    dst: str | os.PathLike[str],
    *,
    mode: CreationMode = "w-",
    layout: LayoutName | None = None,
    cache: int | str = "auto",
    progress: bool | Progress = False,
    **options: Any,
) -> None:
    """Copy all arrays and attributes of a group to another URL.

    One transaction, with the guarantees of `copy`: all of it appears or nothing. Of a Zarr
    hierarchy, groups within the group are not copied; arrays that are not read here, such as those
    of text, are left out with a `LeftOutWarning`.

    Parameters
    ----------
    src
        A URL, or an open `Group`.
    dst
        A URL without a name.
    mode
        ``"w-"`` the group must not exist, or be empty; ``"w"`` everything in it is replaced.
    layout
        "row" or "col", for all arrays; that of each unless told.
    cache, progress, **options
        As in `copy`.

    Raises
    ------
    URLError
        One of the two names an array, or they are the same group.
    GroupExistsError
        There is something in the destination, and the mode is not ``"w"``.
    PMArrayError
        What `open_group` raises for either, and `Group.transaction` for the destination.

    Examples
    --------
    >>> import pmarray
    >>> with pmarray.open_group("dram:run") as group:
    ...     weights = group.create("weights", (3,), fill_value=1)
    ...     group.attrs["step"] = 5
    >>> pmarray.copy_group("dram:run", "memmap:./saved")
    >>> with pmarray.open_group("./saved", mode="r") as saved:
    ...     saved["weights"][:], saved.attrs["step"]
    (array([1., 1., 1.]), 5)
    """
    parse_mode(mode)
    order = parse_layout(layout)
    to = parse_destination(dst)
    URL.parse_group(dst)
    budget = Budget.of(_cache_bytes(cache))
    uninterrupted(
        lambda: of_one_commit(
            src, lambda: _copy_group(src, to, mode, order, budget, progress, options)
        )
    )


def _copy_group(
    src: str | os.PathLike[str] | Group,
    to: URL,
    mode: str,
    order: Order | None,
    budget: Budget,
    progress: bool | Progress,
    options: Mapping[str, Any],
) -> None:
    with group_of(src, budget) as source:
        if same_place(source, to):
            raise URLError(f"{source.url} is the source itself: give another URL")
        with _open_group(to, "a", budget.destination) as group:
            if mode == "w-" and (len(group) or len(group.attrs)):
                raise GroupExistsError(
                    f"{group.url} is not empty: mode='w' replaces all that is in it"
                )
            if left_out := source._catalog.refused():
                warn(
                    f"{source.url} has {len(left_out)} arrays that are not copied, since they are "
                    f"not read here: {', '.join(left_out[:4])}",
                    LeftOutWarning,
                    stacklevel=2,
                )
            arrays = [source[name] for name in source]
            tasks = [
                Task(array.name, array.shape, array.dtype, order or array.layout,
                     array._array.fill, ArraySource(array), dict(array.attrs))
                for array in arrays
            ]  # fmt: skip
            with reporting(progress) as report, in_one_step(group):
                for name in list(group):
                    del group[name]
                fill(group, tasks, "auto", budget.buffers, report, options)
                # Last: without a transaction, nothing takes them back.
                group.attrs.clear()
                group.attrs.update(source.attrs)


# -- shared with from_array ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Task:
    """One array to make, and where its items come from."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    layout: str
    fill: bytes
    source: Source
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the items."""
        return math.prod(self.shape) * int(self.dtype.itemsize)


def fill(
    group: Group,
    tasks: Iterable[Task],
    chunks: str | int | tuple[int, ...],
    nbytes: int,
    report: Progress,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> list[PMArray]:
    """Create the arrays and write all their items; called in `in_one_step` of `group`."""
    tasks = list(tasks)
    total = sum(task.nbytes for task in tasks)
    done = 0
    report(0, total)
    made = []
    for task in tasks:
        target = create(group, task, chunks, options)
        for step in stream(task.source, target, nbytes):
            done += step
            go_on()  # or give up, where the caller was interrupted
            report(done, total)
        made.append(target)
    return made


def create(
    group: Group,
    task: Task,
    chunks: str | int | tuple[int, ...],
    options: Mapping[str, Any],
) -> PMArray:
    """Create the array of a task, its items unwritten."""
    fill_value = np.frombuffer(task.fill, task.dtype)[0]
    order = parse_layout(task.layout)
    new = NewArray(task.shape, task.dtype, order, fill_value, chunks, options)
    with group._session.turn():
        group._session.admit_writer()
        made = group._session.do(lambda: group._catalog.create(task.name, new))
    if task.attrs:
        made.attrs.update(task.attrs)
    return made


@contextmanager
def in_one_step(group: Group) -> Iterator[None]:
    """A transaction, or where there is none, the next best: what is made is removed on failure."""
    if group._session.kind.can_commit:
        with group.transaction(wait=True):
            yield
        return
    before = set(group)
    try:
        yield
        group.flush()
    except BaseException:
        for name in set(group) - before:
            del group[name]
        group.flush()
        raise


def parse_mode(mode: str) -> None:
    """Refuse a mode that does not create."""
    if mode not in ("w", "w-"):
        raise ValueError(f"mode={mode!r}: use 'w-' (must not exist) or 'w' (is replaced)")

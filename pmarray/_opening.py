"""`pmarray.open` and `pmarray.open_group`: an array, or a group, by URL."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, Literal, get_args

from numpy.typing import DTypeLike

from pmarray._available import available_memory_bytes
from pmarray._dtypes import parse_dtype
from pmarray._geometry.layout import (
    LayoutName,
    parse_layout,
    parse_shape,
    refuse_unaddressable,
)
from pmarray._group.catalog import NewArray
from pmarray._group.kinds import kind_of
from pmarray._sizes import parse_bytes
from pmarray._system import lifetime
from pmarray._system.uninterrupted import uninterrupted
from pmarray._url import DEFAULT_NAME, URL
from pmarray.array import PMArray
from pmarray.backends._registry import open_backend
from pmarray.errors import (
    ArrayExistsError,
    ArrayNotFoundError,
    GroupExistsError,
    GroupNotFoundError,
    LayoutError,
)
from pmarray.group import Group

__all__ = ["Mode", "open", "open_group"]


Mode = Literal["r", "r+", "a", "w", "w-"]
"""How a group is opened."""
_MODES = get_args(Mode)
_AUTO_CACHE_BYTES = 256 << 20


def open_group(
    url: str | os.PathLike[str],
    *,
    mode: Mode = "a",
    cache: int | str | None = "auto",
    commit: Literal["durable", "pipelined"] = "durable",
    commit_window: float = 0.0,
) -> Group:
    """Open a group of arrays.

    Parameters
    ----------
    url
        ``"memmap:/dir"``, ``"dram:"``, ``"zarr:/dir"``, ``"zarr:s3://bucket/x"``,
        ``"icechunk:/dir"``, or a path, which means ``memmap:``, or ``zarr:`` where it ends in
        ``.zarr``.
    mode
        ``"r"`` read only, must exist; ``"r+"`` read and write, must exist; ``"a"`` read and write,
        created if missing; ``"w"`` created, the arrays and attributes that were there are deleted;
        ``"w-"`` created, must not exist. The lock of the one writer is taken at the first write.
    cache
        The memory for cached and not yet written chunks: bytes, ``"256 MiB"``, 0 for none,
        ``"auto"`` (or None) for 256 MiB or a quarter of the free memory, whichever is less.
    commit
        ``"durable"``: a transaction ends when it is durable. ``"pipelined"``: it ends at once, and
        becomes durable later, in its turn. See `Group.transaction`.
    commit_window
        Seconds for which a pipelined commit may wait for others, to become durable in one step with
        them; the window ends as soon as somebody waits for a write, or a quarter of the cache is
        queued. A crash loses a suffix of the commits, with a window as without one.

    Raises
    ------
    URLError
        Not a URL, or of an unknown scheme.
    GroupNotFoundError, GroupExistsError
        The mode asks for a group that exists and there is none, or the other way round.
    ForeignDataError, DamagedError
        What is there was not made by pmarray, or it is damaged.
    GroupLockedError
        Another process is writing to it.

    Examples
    --------
    >>> group = open_group("dram:")
    >>> group.create("x", (3,))[:]
    array([0., 0., 0.])
    """
    parsed = URL.parse_group(url)
    try:
        is_length = 0 <= commit_window < math.inf
    except TypeError:
        is_length = False
    if not is_length:
        raise ValueError(f"commit_window is in seconds, zero or more, not {commit_window!r}")
    group = _open_group(parsed, mode, cache, commit)
    group._session.set_commit_window(commit_window)
    return group


def _open_group(
    parsed: URL,
    mode: str,
    cache: int | str | None,
    commit: str = "durable",
    *,
    overwrite: bool = False,
    admit: Callable[[Group], None] = lambda group: None,
) -> Group:
    """Open a group; what `admit` raises stops it before anything is made."""
    if mode not in _MODES:
        raise ValueError(f"mode={mode!r}: use one of {', '.join(map(repr, _MODES))}")
    if commit not in ("durable", "pipelined"):
        raise ValueError(f"commit={commit!r}: use 'durable' or 'pipelined'")
    cache_bytes = _cache_bytes(cache)
    return uninterrupted(
        lambda: _enter_group(parsed, mode, cache, cache_bytes, commit, overwrite, admit)
    )


def _enter_group(
    parsed: URL,
    mode: str,
    cache: int | str | None,
    cache_bytes: int,
    commit: str,
    overwrite: bool,
    admit: Callable[[Group], None],
) -> Group:
    parsed = parsed.absolute()  # the process may work in another directory when it is used
    lifetime.await_dropped(str(parsed) if parsed.path else None)
    backend = open_backend(parsed, writable=mode != "r")
    if overwrite or mode == "w":
        kind_of(str(parsed), backend).make_way()
    # Where the medium is memory it is reached directly, unless a cache is asked for.
    write_cache = cache not in (None, "auto") and cache_bytes > 0
    group = Group(parsed, backend, mode, cache_bytes, write_cache=write_cache)
    group._wait = commit == "durable"
    try:
        admit(group)
        _enter_mode(group, mode)
    except BaseException:
        group._session.give_up()
        raise
    return group


def _enter_mode(group: Group, mode: str) -> None:
    exists = group._commits.exists
    if mode in ("r", "r+") and not exists:
        raise GroupNotFoundError(
            f"there is no group at {group.url}: correct the path, or create one, by open_group or "
            "by open with shape="
        )
    if mode == "w-" and exists:
        raise GroupExistsError(f"{group.url} exists already; mode='a' opens it, 'w' replaces it")
    if mode == "w" and exists:
        for name in list(group):
            del group[name]
        group.attrs.clear()
    if mode == "w" or not exists:
        with group._session.turn():
            group._session.admit_writer()
            group._session.do(group._commits.flush)


def _cache_bytes(cache: int | str | None) -> int:
    if cache is None or cache == "auto":
        return max(1 << 20, min(_AUTO_CACHE_BYTES, available_memory_bytes() // 4))
    try:
        return parse_bytes(cache)
    except ValueError as error:
        raise ValueError(f"cache={cache!r}: {error}") from error


def open(
    url: str | os.PathLike[str],
    shape: int | tuple[int, ...] | None = None,
    dtype: DTypeLike | None = None,
    *,
    mode: Mode = "a",
    layout: LayoutName | None = None,
    order: LayoutName | None = None,
    chunks: str | int | tuple[int, ...] = "auto",
    cache: int | str | None = "auto",
    fill_value: Any = None,
    **options: Any,
) -> PMArray:
    """Open one array, and the group that holds it.

    Parameters
    ----------
    url
        ``"memmap:/dir"``, ``"dram:"``, ``"shelf:/mnt/pmem0"``, ``"shelf:/dev/dax0.0"``,
        ``"zarr:/dir"``, ``"icechunk:/dir"``, a directory, or an existing ``.npy`` file; ``#name``
        picks an array of the group; without it, the one called "array".
    shape
        Extent of each axis. It is needed to create an array, and compared with one that exists.
    dtype
        Type of the items, float64 if not given. It is compared with that of an array that exists.
    mode
        ``"r"`` read only, must exist; ``"r+"`` read and write, must exist; ``"a"`` read and write,
        created if missing; ``"w"`` created, an array of this name is deleted; ``"w-"`` created,
        must not exist.
    layout, order
        ``"row"`` or ``"col"``, which NumPy calls "C" and "F"; row-major if not given. It is
        compared with that of an array that exists.
    chunks
        The unit of caching: see `Group.create`. An array that exists in a chunk store keeps its
        own.
    cache
        The group's memory: see `open_group`.
    fill_value
        What items of a new array hold until they are written; 0 unless told. One that exists
        keeps its own.
    **options
        How a chunk store stores a new array: see `Group.create`.

    Returns
    -------
    PMArray
        Closing it closes its group.

    Raises
    ------
    LayoutError
        The array exists and has another shape, dtype or layout; or no array can have these.
    ArrayNotFoundError, ArrayExistsError
        The mode asks for an array that exists and there is none, or the other way round.
    PMArrayError
        What `open_group` raises.

    Examples
    --------
    >>> import pmarray
    >>> a = pmarray.open("dram:demo", shape=(1000, 3), dtype="float32", layout="col")
    >>> a[:, 2] = 1
    >>> a.close()
    >>> b = pmarray.open("dram:demo", mode="r")
    >>> b.shape, b.layout, float(b[5, 2])
    ((1000, 3), 'col', 1.0)
    """
    if isinstance(shape, str):
        raise LayoutError(
            f"shape={shape!r}: the second argument is the shape of a new array; for a mode write "
            f"mode={shape!r}"
        )
    parsed = URL.parse(url)
    name = parsed.name or DEFAULT_NAME
    kind = "float64" if dtype is None else dtype
    fill = 0 if fill_value is None else fill_value
    # Refused before a medium is touched: "w" may overwrite one that held something else.
    if shape is not None:
        refuse_unaddressable(parse_shape(shape), parse_dtype(kind).itemsize)
        parse_layout(layout, order)
    elif mode in ("w", "w-"):
        raise LayoutError(f"mode={mode!r} creates an array: give shape=")

    def admit(group: Group) -> None:
        """Refuse, before anything is created or deleted for it, what cannot be."""
        if shape is not None and (mode in ("w", "w-") or (mode == "a" and name not in group)):
            new = NewArray.parse(name, shape, kind, layout, order, fill, chunks, options)
            group._catalog.plan(name, new)

    # "w" and "w-" are about the array: its neighbours in the group are left alone. Without a shape
    # "a" can create nothing, and leaves no empty group behind.
    group_mode = "a" if mode in ("w", "w-") else "r+" if mode == "a" and shape is None else mode
    overwrite = mode == "w"

    def work() -> PMArray:
        group = _open_group(
            parsed._replace(name=None), group_mode, cache, overwrite=overwrite, admit=admit
        )
        try:
            return find_or_create(group)
        except BaseException as error:
            group._catalog.forget_changes()
            group.close()
            if isinstance(error, ArrayNotFoundError) and lifetime.is_written_here(group.url):
                raise ArrayNotFoundError(
                    f"{error}; what another handle of this process has created there is seen after "
                    "its flush() or close()"
                ) from None
            raise

    def find_or_create(group: Group) -> PMArray:
        if mode in ("a", "w", "w-") and shape is not None and name not in group:
            # As the writer it has moved on to what the last one left, which may have been made
            # since, such as by a handle that was dropped and is closed now.
            with group._session.turn():
                group._session.admit_writer()
        if mode == "w-" and name in group:
            raise ArrayExistsError(
                f"{group.url} has an array {name!r} already; mode='a' opens it, 'w' replaces it"
            )
        if mode == "w" and name in group:
            del group[name]
        if name in group:
            result = group._catalog.get(name, chunks)
            _check(result, shape, dtype, layout, order)
            return result
        if mode in ("r", "r+"):
            return group[name]  # raises, and says what there is
        if shape is None:
            raise ArrayNotFoundError(f"no array {name!r} in {group.url}; give shape= to create it")
        return group.create(
            name,
            shape,
            kind,
            layout=layout,
            order=order,
            chunks=chunks,
            fill_value=fill,
            **options,
        )

    return uninterrupted(work)


def _check(
    array: PMArray,
    shape: int | tuple[int, ...] | None,
    dtype: DTypeLike | None,
    layout: str | None,
    order: str | None,
) -> None:
    """Refuse an array that is not as the caller describes it."""
    asked = parse_layout(layout, order)
    wanted = {
        "shape": None if shape is None else parse_shape(shape),
        "dtype": None if dtype is None else parse_dtype(dtype),
        # One axis or none has no order to speak of.
        "layout": asked if array.ndim > 1 else None,
    }
    for what, value in wanted.items():
        stored = getattr(array, what)
        if value is not None and value != stored:
            raise LayoutError(
                f"{array.group.url}#{array.name} has {what} {stored}, not {value}; open it "
                f"without {what}=, or replace it with mode='w'"
            )

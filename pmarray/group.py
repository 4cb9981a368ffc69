"""A group: several arrays and attributes in one place, one cache, one writer."""

from __future__ import annotations

import atexit
import json
import os
import threading
import uuid
import weakref
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike

from pmarray._cache import ChunkCache
from pmarray._dtypes import parse_dtype
from pmarray._metadata import ArrayMetadata, GroupMetadata
from pmarray._npy import write_header
from pmarray._sizes import available_memory_bytes, parse_bytes
from pmarray._storage import CachedStorage, MappedStorage, Storage, plan_chunks
from pmarray._url import URL, check_name
from pmarray.array import PMArray
from pmarray.backends import RegionBackend, open_backend
from pmarray.errors import (
    ArrayExistsError,
    ArrayNotFoundError,
    ClosedError,
    ForeignDataError,
    GroupExistsError,
    GroupNotFoundError,
    LayoutError,
    PoisonedError,
    ReadOnlyError,
)
from pmarray.layout import Layout, parse_layout

__all__ = ["Attributes", "Group", "open_group"]

_MODES = ("r", "r+", "a", "w", "w-")
_AUTO_CACHE_BYTES = 256 << 20


class Group:
    """Arrays and attributes in one place: the unit of locking, caching and flushing.

    Made by `open_group`. All methods may be called from any thread; operations on one group take
    turns. A process that was forked from the one that opened the group must open its own.

    Attributes
    ----------
    url : str
        Where the group is.
    mode : str
        As it was opened.
    attrs : Attributes
        JSON values by name.

    Examples
    --------
    >>> import pmarray
    >>> with pmarray.open_group("dram:") as group:
    ...     x = group.create("x", (4, 0), "float32", layout="col")
    ...     x.append([1, 2, 3, 4])
    ...     group.attrs["step"] = 1
    ...     list(group), dict(group.attrs)
    (4, 1)
    (['x'], {'step': 1})
    """

    def __init__(self, url: URL, backend: RegionBackend, mode: str, cache_bytes: int) -> None:
        self.url = str(replace(url, name=None))
        self.mode = mode
        self.attrs = Attributes(self)
        self._backend = backend
        self._cache = ChunkCache(cache_bytes)
        # Held for a whole operation. The cache has a lock of its own for its books, which its
        # writer and ending loans need while an operation waits for memory.
        self._lock = threading.RLock()
        self._arrays: dict[str, PMArray] = {}
        self._locked = False
        self._closed = False
        self._poison: PoisonedError | None = None
        loaded = backend.load()
        self._metadata = loaded or GroupMetadata(uuid=str(uuid.uuid4()))
        self._saved = loaded
        self._removed: list[int] = []
        _OPEN_GROUPS.add(self)

    # -- arrays ---------------------------------------------------------------------------------

    def create(
        self,
        name: str,
        shape: int | tuple[int, ...],
        dtype: DTypeLike = "float64",
        *,
        layout: str | None = None,
        order: str | None = None,
        chunks: str | int | tuple[int, ...] = "auto",
        fill_value: Any = 0,
    ) -> PMArray:
        """Create an array and reserve its space.

        Parameters
        ----------
        name
            Letters, digits, ``_``, ``-``, ``.``; new in this group.
        shape
            Extent of each axis; 0 is allowed.
        dtype
            Any NumPy dtype of fixed size without Python objects, or "bfloat16".
        layout, order
            "row" or "col", alias "C" or "F"; row-major unless told.
        chunks
            "auto", a number of lines (columns of a column-major matrix), or a shape of whole
            lines: the unit of caching and writing. Not stored.
        fill_value
            What items hold until they are written.

        Raises
        ------
        ArrayExistsError
            The name is taken.
        LayoutError
            No such array can be.
        StorageError
            There is no room; nothing was changed.
        """
        check_name(name)
        dtype = parse_dtype(dtype)
        shape = parse_shape(shape)
        plan = Layout.plan(shape, dtype.itemsize, parse_layout(layout, order) or "row")
        fill = np.empty((), dtype)
        try:
            fill[()] = fill_value
            write_header(plan, dtype, ndim=len(shape))
        except (ValueError, TypeError, OverflowError) as error:
            raise LayoutError(
                f"cannot create {name!r} of dtype {dtype} with fill_value={fill_value!r}: {error}"
            ) from error
        with self._writing():
            self._refuse_fixed("use a directory to hold several arrays")
            if name in self._metadata.arrays:
                raise ArrayExistsError(
                    f"{self.url} has an array {name!r} already; open it, or delete it first"
                )
            array = ArrayMetadata(
                self._metadata.next_file_id,
                shape,
                dtype,
                plan.order,
                plan.line_stride,
                fill.tobytes(),
            )
            storage = self._storage(array, chunks, new=True)
            self._metadata = replace(
                self._metadata,
                next_file_id=array.file_id + 1,
                arrays={**self._metadata.arrays, name: array},
            )
            result = self._arrays[name] = PMArray(self, name, array, storage)
            if any(array.fill) and result.size:
                result[...] = fill
            return result

    def _storage(self, array: ArrayMetadata, chunks: Any, *, new: bool) -> Storage:
        layout = array.layout
        shape = plan_chunks(layout, chunks, self._cache.max_chunk_bytes)
        make = self._backend.create if new else self._backend.open
        region = make(array.file_id, layout.nbytes, aligned=CachedStorage.is_aligned(layout, shape))
        if region.memory is not None:
            return MappedStorage(region, layout, array.dtype, shape, new=new)
        return CachedStorage(region, layout, array.dtype, self._cache, shape, new=new)

    def __getitem__(self, name: str) -> PMArray:
        with self._reading():
            return self._get(name, "auto")

    def _get(self, name: str, chunks: str | int | tuple[int, ...]) -> PMArray:
        array = self._metadata.arrays.get(name)
        if array is None:
            names = ", ".join(sorted(self._metadata.arrays)) or "no arrays"
            raise ArrayNotFoundError(f"no array {name!r} in {self.url}; it holds {names}")
        result = self._arrays.get(name)
        if result is None:
            storage = self._storage(array, chunks, new=False)
            result = self._arrays[name] = PMArray(self, name, array, storage)
        return result

    def __delitem__(self, name: str) -> None:
        with self._writing():
            result = self._get(name, "auto")
            self._refuse_fixed("delete the file")
            result._refuse_loans("delete")
            arrays = dict(self._metadata.arrays)
            self._removed.append(arrays.pop(name).file_id)
            self._metadata = replace(self._metadata, arrays=arrays)
            del self._arrays[name]
            result._detach()

    def __contains__(self, name: object) -> bool:
        with self._reading():
            return name in self._metadata.arrays

    def __iter__(self) -> Iterator[str]:
        with self._reading():
            return iter(sorted(self._metadata.arrays))

    def __len__(self) -> int:
        with self._reading():
            return len(self._metadata.arrays)

    def __bool__(self) -> bool:
        return True

    # -- durability -----------------------------------------------------------------------------

    def flush(self) -> None:
        """Return when everything written so far is durable: data, shapes and attributes.

        Afterwards other programs find each array as ``<name>.npy`` where the backend has files.

        Raises
        ------
        WriteBehindError
            Something could not be written; it is still in memory, and `flush` may be called again.
        PoisonedError
            A barrier failed; the group can only be closed.
        """
        with self._reading():
            if self.mode != "r":
                self._flush()

    def _flush(self) -> None:
        # Data before the metadata that count on them, metadata before the files they gave up.
        self._cache.flush()
        changed = self._metadata != self._saved
        try:
            for name, array in self._arrays.items():
                known = self._saved.arrays.get(name) if self._saved else None
                array._storage.make_durable(array.ndim, describe=array._array != known)
            if changed:
                self._backend.save(self._metadata)
                self._saved = self._metadata
        except PoisonedError as error:
            self._poison = error
            raise
        while self._removed:
            self._backend.remove(self._removed.pop())
        if changed:
            names = self._metadata.arrays
            self._backend.publish({name: array.file_id for name, array in names.items()})

    def close(self) -> None:
        """Flush, give up the lock and release memory; raise what could not be written.

        The resources are released also when it raises. Closing twice does nothing.
        """
        with self._lock:
            if self._closed:
                return
            try:
                if self._locked and self._poison is None:
                    self._flush()
                    for array in self._arrays.values():
                        array._storage.trim()
            finally:
                self._closed = True
                _OPEN_GROUPS.discard(self)
                self._cache.close()
                for array in self._arrays.values():
                    array._storage.close()
                self._backend.close()

    @property
    def closed(self) -> bool:
        """Whether the group has been closed."""
        return self._closed

    @property
    def cache_bytes(self) -> int:
        """Bytes of DRAM that cached chunks occupy now."""
        with self._lock:
            return self._cache.used_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._metadata.arrays)} arrays"
        return f"<Group {self.url} mode={self.mode!r} {state}>"

    # -- admission ------------------------------------------------------------------------------

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Hold the lock for one operation, if there may be any."""
        with self._lock:
            if self._closed:
                raise ClosedError(f"{self.url} is closed; open it again")
            if self._poison is not None:
                raise self._poison
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """The same for an operation that changes something; becomes the group's one writer."""
        with self._reading():
            if self.mode == "r":
                raise ReadOnlyError(f"{self.url} is open with mode='r'; use 'r+' or 'a' to write")
            if not self._locked:
                self._backend.lock()
                self._locked = True
                self._adopt(self._backend.load())
            yield

    def _adopt(self, loaded: GroupMetadata | None) -> None:
        """Move on to what another writer left since this handle read the metadata."""
        if loaded is None or loaded == self._saved:
            return
        self._saved = self._metadata = loaded
        for name, array in list(self._arrays.items()):
            now = loaded.arrays.get(name)
            if now is None or now.file_id != array._array.file_id:
                del self._arrays[name]
                array._detach()
            else:
                array._adopt(now)

    def _update(self, name: str, array: ArrayMetadata) -> None:
        """Note what has become of an array."""
        self._metadata = replace(self._metadata, arrays={**self._metadata.arrays, name: array})

    def _new_file(
        self, array: ArrayMetadata, shape: tuple[int, ...]
    ) -> tuple[ArrayMetadata, Storage]:
        """Make a file for the same array in another shape; nothing refers to it yet."""
        self._refuse_fixed("its one array cannot move to another file")
        plan = Layout.plan(shape, array.dtype.itemsize, array.order)
        moved = replace(
            array,
            file_id=self._metadata.next_file_id,
            shape=shape,
            line_stride=plan.line_stride,
        )
        storage = self._storage(moved, "auto", new=True)
        self._metadata = replace(self._metadata, next_file_id=moved.file_id + 1)
        return moved, storage

    def _discard_file(self, array: ArrayMetadata) -> None:
        """Delete a file that nothing refers to."""
        self._backend.remove(array.file_id)

    def _replace_array(self, name: str, old: ArrayMetadata, new: ArrayMetadata) -> None:
        """Give an array another file; the old one goes when the metadata are durable."""
        self._removed.append(old.file_id)
        self._update(name, new)

    def _refuse_fixed(self, why: str) -> None:
        if not self._backend.can_create:
            raise ForeignDataError(f"{self.url} is a single .npy file: {why}")

    def _abandon(self) -> None:
        """In a forked child: the handle is the parent's, and stays so."""
        self._closed = True
        self._backend.abandon()


class Attributes(MutableMapping[str, Any]):
    """JSON values of a group by name, kept with its arrays.

    Values are copied in and out: changing a list that was read changes nothing stored.

    >>> import pmarray
    >>> attrs = pmarray.open_group("dram:").attrs
    >>> attrs["seed"] = 7
    >>> attrs["model"] = {"widths": [784, 10]}
    >>> attrs["model"]["widths"]
    [784, 10]
    >>> attrs["when"] = object()
    Traceback (most recent call last):
        ...
    TypeError: attribute 'when' is no JSON value: Object of type object is not JSON serializable
    """

    def __init__(self, group: Group) -> None:
        self._group = group

    def __getitem__(self, key: str) -> Any:
        with self._group._reading():
            return json.loads(json.dumps(self._group._metadata.attrs[key]))

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set several attributes at once."""
        values = dict(*args, **kwargs)
        for key, value in values.items():
            if not isinstance(key, str):
                raise TypeError(f"attribute names are strings, not {key!r}")
            try:
                values[key] = json.loads(json.dumps(value))
            except (TypeError, ValueError) as error:
                raise TypeError(f"attribute {key!r} is no JSON value: {error}") from error
        self._set({**self._group._metadata.attrs, **values})

    def __delitem__(self, key: str) -> None:
        attrs = dict(self._group._metadata.attrs)
        del attrs[key]
        self._set(attrs)

    def _set(self, attrs: dict[str, Any]) -> None:
        with self._group._writing():
            self._group._refuse_fixed("it has no attributes")
            self._group._metadata = replace(self._group._metadata, attrs=attrs)

    def __iter__(self) -> Iterator[str]:
        with self._group._reading():
            return iter(list(self._group._metadata.attrs))

    def __len__(self) -> int:
        with self._group._reading():
            return len(self._group._metadata.attrs)

    def __repr__(self) -> str:
        return f"Attributes({dict(self)})"


def open_group(url: str | os.PathLike[str], *, mode: str = "a", cache: int | str = "auto") -> Group:
    """Open a group of arrays.

    Parameters
    ----------
    url
        ``"memmap:/dir"``, ``"dram:"``, or a path, which means ``memmap:``.
    mode
        ``"r"`` read only, must exist; ``"r+"`` read and write, must exist; ``"a"`` read and write,
        created if missing; ``"w"`` created, whatever was there is deleted; ``"w-"`` created, must
        not exist. The lock of the one writer is taken at the first write.
    cache
        The memory for cached and not yet written chunks: bytes, ``"256 MiB"``, 0 for none,
        ``"auto"`` for 256 MiB or a quarter of the free memory, whichever is less.

    Raises
    ------
    URLError
        Not a URL, or of an unknown scheme.
    GroupNotFoundError, GroupExistsError
        As the mode has it.
    ForeignDataError, DamagedError
        What is there is not ours, or not whole.
    GroupLockedError
        Another process is writing to it.

    Examples
    --------
    >>> group = open_group("dram:")
    >>> group.create("x", (3,))[:]
    array([0., 0., 0.])
    """
    parsed = URL.parse(url)
    if mode not in _MODES:
        raise ValueError(f"mode={mode!r}: use one of {', '.join(map(repr, _MODES))}")
    backend = open_backend(parsed, writable=mode != "r")
    group = Group(parsed, backend, mode, _cache_bytes(cache))
    try:
        _enter_mode(group, mode)
    except BaseException:
        group._closed = True
        _OPEN_GROUPS.discard(group)
        backend.close()
        raise
    return group


def _enter_mode(group: Group, mode: str) -> None:
    exists = group._saved is not None
    if mode in ("r", "r+") and not exists:
        raise GroupNotFoundError(f"there is no group at {group.url}; mode='a' creates one")
    if mode == "w-" and exists:
        raise GroupExistsError(f"{group.url} exists already; mode='a' opens it, 'w' replaces it")
    if mode == "w" and exists:
        for name in list(group):
            del group[name]
        group.attrs.clear()
    if mode == "w" or not exists:
        with group._writing():
            group._flush()


def _cache_bytes(cache: int | str) -> int:
    if cache == "auto":
        return max(1 << 20, min(_AUTO_CACHE_BYTES, available_memory_bytes() // 4))
    try:
        return parse_bytes(cache)
    except ValueError as error:
        raise ValueError(f"cache={cache!r}: {error}") from error


def parse_shape(shape: int | tuple[int, ...]) -> tuple[int, ...]:
    try:
        result = (int(shape),) if np.ndim(shape) == 0 else tuple(int(n) for n in shape)  # type: ignore
    except (TypeError, ValueError) as error:
        raise LayoutError(f"not a shape: {shape!r}") from error
    if any(n < 0 for n in result):
        raise LayoutError(f"shape {result} has a negative extent")
    return result


_OPEN_GROUPS: weakref.WeakSet[Group] = weakref.WeakSet()


def _close_all() -> None:
    """At exit: what was written and not closed reaches its medium all the same."""
    for group in list(_OPEN_GROUPS):
        group.close()


def _abandon_all() -> None:
    for group in list(_OPEN_GROUPS):
        group._abandon()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)

"""A group: several arrays and attributes in one place, one cache, one writer."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from numpy.typing import DTypeLike

from pmarray._array.attributes import Attributes
from pmarray._array.transaction import Transaction
from pmarray._geometry.layout import LayoutName
from pmarray._group.catalog import Catalog, NewArray, OwnAttributes
from pmarray._group.commits import Commits
from pmarray._group.contents import Contents
from pmarray._group.session import Session
from pmarray._system.dropped import close_later
from pmarray._url import URL
from pmarray.array import PMArray
from pmarray.backends._history import HistoryEntry
from pmarray.backends._protocols import ChunkBackend, RegionBackend

__all__ = ["Group"]


class Group(Contents):
    """Arrays and attributes in one place: the unit of locking, caching and flushing.

    Made by `open_group`. All methods may be called from any thread; operations on one group take
    turns. In a process that was forked, a group that was only read is opened again at its first
    use; one that was written to stays the parent's.

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

    _wait = True
    """Whether a transaction ends when it is durable, unless told."""
    _warns_unclosed = True

    def __init__(
        self,
        url: URL,
        backend: RegionBackend | ChunkBackend,
        mode: str,
        cache_bytes: int,
        *,
        write_cache: bool = True,
    ) -> None:
        self._session = Session(url, backend, mode, cache_bytes)
        self._catalog = Catalog(self._session, self, write_cache=write_cache)
        self._commits = Commits(self._session, self._catalog)
        self.url = self._session.url
        self.mode = mode
        self.attrs = Attributes(OwnAttributes(self._session, self._catalog))

    # -- arrays ---------------------------------------------------------------------------------

    def create(
        self,
        name: str,
        shape: int | tuple[int, ...] | None = None,
        dtype: DTypeLike | None = None,
        *,
        data: Any = None,
        layout: LayoutName | None = None,
        order: LayoutName | None = None,
        chunks: str | int | tuple[int, ...] = "auto",
        fill_value: Any = 0,
        **options: Any,
    ) -> PMArray:
        """Create an array.

        ``group[name] = data`` does the same with the items of `data` and no other choice. Besides,
        a group is a mapping of names to arrays: ``in``, ``len``, ``del``, `keys`, `values`,
        `items`, `get`.

        Parameters
        ----------
        name
            Letters, digits, ``_``, ``-``, ``.``; new in this group.
        shape
            Extent of each axis; 0 is allowed. That of `data` unless told.
        dtype
            Any NumPy dtype of fixed size without Python objects, or "bfloat16". That of `data`
            unless told, and float64 without any.
        data
            The items, of NumPy, dask, or what else `from_array` takes. The array has all of them,
            or is not made.
        layout, order
            "row" or "col", alias "C" or "F"; row-major unless told.
        chunks
            "auto" (or True, None), a number of lines (columns of a column-major matrix), or a
            shape of whole lines: the unit of caching and writing, and not stored. In a chunk store
            any shape: the chunks that are stored.
        fill_value
            What items hold until they are written.
        **options
            For chunk stores. ``codecs``: what encodes a chunk, in this order, by names such as
            "zstd", "blosc", "bitround", "crc32c", or as mappings with "name" and "configuration";
            nothing unless told; also codecs of numcodecs, such as ``numcodecs.BitRound(10)``.
            ``shards``: the shape of the objects in the store, a multiple of that of the chunks.
            ``dimension_names``: one an axis, for xarray; unless told, names of this array's own.

        Raises
        ------
        ArrayExistsError
            The name is taken.
        LayoutError
            No such array can be; or the store has no such dtype or codec.
        TypeError
            Options that the backend does not know.
        StorageError
            There is no room; nothing was changed.
        """
        if data is not None:
            return self._create_from(
                name, data, shape=shape, dtype=dtype, layout=layout, order=order, chunks=chunks,
                fill_value=fill_value, **options,
            )  # fmt: skip
        if shape is None:
            raise TypeError(f"cannot create {name!r} of unknown shape: give shape= or data=")
        new = NewArray.parse(name, shape, dtype, layout, order, fill_value, chunks, options)
        with self._session.turn():
            self._session.admit()
            return self._session.do(lambda: self._catalog.create_filled(name, new))

    def __getitem__(self, name: str) -> PMArray:
        with self._session.turn():
            self._session.admit()
            return self._catalog.get(name)

    def __delitem__(self, name: str) -> None:
        with self._session.turn():
            self._session.admit_writer()
            self._catalog.refuse_to_delete(name)
            self._session.do(lambda: self._catalog.delete(name))

    def __contains__(self, name: object) -> bool:
        with self._session.turn():
            self._session.admit()
            return name in self._catalog

    def __iter__(self) -> Iterator[str]:
        with self._session.turn():
            self._session.admit()
            return iter(sorted(self._catalog.metadata.arrays))

    def _ipython_key_completions_(self) -> list[str]:
        """What a notebook offers behind ``group["``."""
        return [] if self.closed else list(self)

    def __len__(self) -> int:
        with self._session.turn():
            self._session.admit()
            return len(self._catalog.metadata.arrays)

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
        self._commits.flush_in_turn()

    def close(self) -> None:
        """Flush, give up the lock and release memory; raise what could not be written.

        A transaction that is open is rolled back. The resources are released also when this
        raises. Closing twice does nothing. An interrupt stops the wait, not the closing: the group
        is closed all the same, and calling it again waits for that.
        """
        self._session.close()

    def __del__(self) -> None:
        # Dropped and not closed: what was written reaches its medium all the same.
        session = getattr(self, "_session", None)
        if session is None or not session.holds_resources:
            return
        try:
            # What is only memory has nothing that closing would keep.
            if self._warns_unclosed and not session.kind.is_volatile:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        finally:
            close_later(session)

    # -- transactions ---------------------------------------------------------------------------

    def transaction(self, *, wait: bool | None = None) -> Transaction:
        """Return a context manager that makes everything written in its block one atomic step.

        When the block ends, its writes, shapes, creations, deletions and attributes have all
        become durable; if it raises, or the power fails before, none of them. What was written
        before the block and not flushed is flushed first. On ``dram:`` there is nothing durable,
        and a block that raises is rolled back all the same.

        Parameters
        ----------
        wait
            False returns before the commit is durable; commits take effect in order, so that a
            crash loses a suffix of them, and `flush` waits for them. If such a commit fails, the
            next operation raises and the group has to be opened again. None means as the group
            was opened (``commit="durable"`` or ``"pipelined"``).

        Raises
        ------
        TransactionError
            One is open already, or the backend has no transactions.
        OutcomeUnknownError
            The last barrier failed; opening the group again settles what has happened.

        Examples
        --------
        >>> import pmarray
        >>> group = pmarray.open_group("dram:")
        >>> x = group.create("x", (3, 0), layout="col")
        >>> with group.transaction():
        ...     x.append([1, 2, 3])
        ...     group.attrs["step"] = 1
        (3, 1)
        """
        return Transaction(self._commits, wait=self._wait if wait is None else wait)

    @property
    def transaction_owner(self) -> threading.Thread | None:
        """The thread that began the transaction that is open; None if none is."""
        with self._session.turn():
            self._session.admit()
            transaction = self._session.transaction
            return None if transaction is None else transaction.owner

    def rollback(self) -> None:
        """Take back the transaction that is open, which an interrupt has left without its block.

        A transaction is rolled back by itself when its block raises, and when nobody has its
        handle any more. An exception that is kept (``sys.last_value`` in a notebook) may keep the
        handle of a block that it tore away before its end. Does nothing where none is open.

        Examples
        --------
        >>> import pmarray
        >>> group = pmarray.open_group("dram:")
        >>> block = group.transaction().__enter__()
        >>> group.attrs["step"] = 1
        >>> group.rollback()
        >>> dict(group.attrs)
        {}
        """
        self._commits.roll_back_in_turn()

    def refresh(self) -> None:
        """Move a reader on to the last commit; a handle that has written is always there.

        Arrays that were deleted meanwhile say so when they are used.
        """
        self._session.refresh()

    def discard(self) -> None:
        """Give up what was written since the last flush or commit, and go on from what is there.

        For backends that keep changes to themselves until they commit (`icechunk:`), as the way
        out of a `ConflictError`.

        Raises
        ------
        TransactionError
            A transaction is open, or the backend has written already.
        """
        self._commits.discard_in_turn()

    def history(self) -> list[HistoryEntry]:
        """Return the commits that can still be opened, latest first; of `icechunk:` only.

        Examples
        --------
        >>> import pmarray
        >>> group = pmarray.open_group("icechunk:memory://history")
        >>> with group.transaction():
        ...     group.attrs["step"] = 1
        >>> [entry.message for entry in group.history()][:1]
        ['pmarray: flush']
        >>> group.close()
        """
        with self._session.turn():
            self._session.admit()
            return self._session.do(lambda: list(self._session.kind.versions.history()))

    def create_tag(self, name: str) -> None:
        """Give the last commit a name for good, to open it by ``?tag=name``."""
        with self._session.turn():
            self._session.admit()
            self._session.do(lambda: self._session.kind.versions.create_tag(name))

    def create_branch(self, name: str) -> None:
        """Begin a branch at the last commit, to open it by ``?branch=name``."""
        with self._session.turn():
            self._session.admit()
            self._session.do(lambda: self._session.kind.versions.create_branch(name))

    @property
    def closed(self) -> bool:
        """Whether the group has been closed."""
        return self._session.closed

    @property
    def cache_bytes(self) -> int:
        """Bytes of DRAM that cached chunks occupy now."""
        with self._session.lock:
            return self._session.cache.memory.used_bytes

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
        count = len(self._catalog.metadata.arrays)
        there = f"{count} array{'s' * (count != 1)}"
        state = there if self._session.holds_resources else "closed"
        return f"<Group {self.url} mode={self.mode!r} {state}>"

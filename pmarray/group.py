"""A group: several arrays and attributes in one place, one cache, one writer."""

from __future__ import annotations

import threading
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import numpy as np
from numpy.typing import DTypeLike

from pmarray._array.attributes import Attributes
from pmarray._array.transaction import OpenTransaction, Transaction
from pmarray._cache.cache import ChunkCache
from pmarray._cache.source import Commit, CommittedStorage
from pmarray._commits.committer import Committer
from pmarray._commits.snapshot import Snapshot
from pmarray._dtypes import DType, parse_dtype
from pmarray._formats.metadata import ArrayMetadata, Checkpoint, GroupMetadata
from pmarray._formats.npy import write_header
from pmarray._formats.records import Image
from pmarray._geometry.chunking import plan_chunks
from pmarray._geometry.layout import Layout, Order, parse_layout, parse_shape, refuse_unaddressable
from pmarray._group.contents import Contents
from pmarray._group.kinds import StorageMaker
from pmarray._storage.chunked import STORE_ID
from pmarray._storage.items import Storage
from pmarray._storage.persistent import PersistentStorage
from pmarray._storage.region import RegionStorage
from pmarray._system import lifetime
from pmarray._system.dropped import await_closing, close_behind, close_later
from pmarray._system.uninterrupted import Task, await_abandoned
from pmarray._url import URL, check_name
from pmarray.array import PMArray
from pmarray.backends._history import HistoryEntry, Versions
from pmarray.backends._protocols import ChunkBackend, ImageTarget, RegionBackend
from pmarray.backends._registry import open_backend
from pmarray.errors import (
    ArrayExistsError,
    ArrayNotFoundError,
    ClosedError,
    DamagedError,
    ForeignDataError,
    GroupLockedError,
    GroupNotFoundError,
    LayoutError,
    PMArrayError,
    PoisonedError,
    ReadOnlyError,
    SnapshotExpiredError,
    TransactionError,
    WriteBehindError,
)

__all__ = ["Group", "parse_new"]

T = TypeVar("T")


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

    def __init__(
        self,
        url: URL,
        backend: RegionBackend | ChunkBackend,
        mode: str,
        cache_bytes: int,
        *,
        write_cache: bool = True,
    ) -> None:
        self.url = str(replace(url, name=None))
        self.mode = mode
        self.attrs = Attributes(self)
        self._backend = backend
        self._wait = True
        self._warns_unclosed = True
        self._parsed_url = url
        self._cache_bytes = cache_bytes
        self._forked: str | None = None
        """In a forked child, where the group is no more open: "reader" or "writer"."""
        self._write_cache = write_cache
        """Whether writes go through the cache also where the medium itself is memory."""
        # Held for a whole operation. The cache has a lock of its own for its books, which its
        # writer and ending loans need while an operation waits for memory.
        self._lock = threading.RLock()
        self._pending: Task[Any] | None = None
        """What has been begun for a caller; nobody else is admitted before it is over."""
        self._unattended: deque[Callable[[], None]] = deque()
        """What somebody has to do under the lock, since whose work it was is no more."""
        self._arrays: dict[str, PMArray] = {}
        self._locked = False
        self._closed = True  # until there is something to close
        self._changed = False
        """Whether anything was written outside a transaction since the last flush."""
        self._transaction: OpenTransaction | None = None
        self._removed: list[int] = []
        self._published: dict[str, int] | None = None
        self._snapshot: Snapshot | None = None
        stamp = self._stamp()
        loaded = backend.load()
        self._exists = loaded is not None
        self._metadata = GroupMetadata(uuid=str(uuid.uuid4()))
        self._committer = Committer(backend, loaded or Checkpoint(self._metadata))
        self._cache = ChunkCache(cache_bytes, self._committer)
        if loaded is not None:
            self._adopt(loaded, stamp)
        self._closed = False
        lifetime.begin(self)

    # -- arrays ---------------------------------------------------------------------------------

    def create(
        self,
        name: str,
        shape: int | tuple[int, ...] | None = None,
        dtype: DTypeLike | None = None,
        *,
        data: Any = None,
        layout: str | None = None,
        order: str | None = None,
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
        kind = "float64" if dtype is None else dtype
        new = parse_new(name, shape, kind, layout, order, fill_value)

        def work() -> PMArray:
            result = self._create(name, *new[:3], chunks, new[3], options)
            if not result._storage.holds_fill and result.size:
                result[...] = new[3]
            return result

        with self._turn():
            self._admit()
            return self._do(work)

    def _create(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: DType,
        order: Order | None,
        chunks: str | int | tuple[int, ...],
        fill_value: Any,
        options: Mapping[str, Any],
    ) -> PMArray:
        """Create an array; what its items hold before they are written is for the caller to see."""
        check_name(name)
        if not self._locked:  # becoming the writer makes files, for nothing where this raises
            self._plan(name, shape, dtype, order, chunks, fill_value, options)
        self._become_writer()
        self._note_change()
        self._refuse_fixed("use a directory to hold several arrays")
        if name in self._metadata.arrays:
            raise ArrayExistsError(
                f"{self.url} has an array {name!r} already; open it, or delete it first"
            )
        array = self._plan(name, shape, dtype, order, chunks, fill_value, options)
        if isinstance(self._backend, ChunkBackend):
            self._make_way(self._backend, name)
        storage = self._storage(name, array, chunks, new=True)
        self._metadata = replace(
            self._metadata,
            next_file_id=array.file_id + 1,
            arrays={**self._metadata.arrays, name: array},
        )
        result = self._arrays[name] = PMArray(self, name, array, storage)
        result._chunks = chunks
        return result

    def _plan(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: DType,
        order: Order | None,
        chunks: str | int | tuple[int, ...],
        fill_value: Any,
        options: Mapping[str, Any],
    ) -> ArrayMetadata:
        """Describe a new array, or raise where there can be none like it; nothing is made."""
        if options and not isinstance(self._backend, ChunkBackend):
            raise TypeError(
                f"{', '.join(options)}: for chunk stores such as zarr:, and {self.url} is none"
            )
        refuse_unaddressable(shape, dtype.itemsize)
        plan = Layout.plan(shape, dtype.itemsize, order or "row")
        array = ArrayMetadata(
            self._metadata.next_file_id,
            shape,
            dtype,
            plan.order,
            plan.line_stride,
            np.asarray(fill_value, dtype).tobytes(),
        )
        most = self._cache.max_chunk_bytes
        if isinstance(self._backend, ChunkBackend):
            return self._backend.plan(name, array, chunks, most, options)
        plan_chunks(plan, chunks, most)
        return array

    def _make_way(self, backend: ChunkBackend, name: str) -> None:
        """What a deleted array has left under this name goes now, if need be with a way back."""
        self._cache.settle()
        number = self._cache.transaction
        if number is None:
            if name in self._committer.in_force.arrays and not backend.commits:
                self._flush()  # its deletion is durable before its chunks go
                self._note_change()
        else:
            had_array = name in self._committer.in_force.arrays
            images = backend.images_of_name(name, had_array=had_array)
            if images:
                self._committer.keep(
                    number, [Image(STORE_ID, offset, memoryview(data)) for offset, data in images]
                )

    def _storage(self, name: str, array: ArrayMetadata, chunks: Any, *, new: bool) -> Storage:
        make = self._storages()
        try:
            if isinstance(self._backend, ChunkBackend):
                return make.in_chunks(self._backend, name, array, new=new)
            return make.in_region(self._backend, array, chunks, new=new)
        except DamagedError:
            if self._snapshot is not None and not self._snapshot.is_latest():
                raise SnapshotExpiredError(
                    f"an array of {self.url} was deleted since this handle read the last commit: "
                    "call refresh()"
                ) from None
            raise

    def _storages(self) -> StorageMaker:
        in_place = self._locked and not self._write_cache
        return StorageMaker(self._cache, self._snapshot, self._committer.keep, in_place)

    def __getitem__(self, name: str) -> PMArray:
        with self._turn():
            self._admit()
            return self._get(name, "auto")

    def _get(self, name: str, chunks: str | int | tuple[int, ...]) -> PMArray:
        array = self._metadata.arrays.get(name)
        if array is None:
            if why := getattr(self._backend, "refused", {}).get(name):
                raise ForeignDataError(why)
            names = ", ".join(sorted(self._metadata.arrays)) or "no arrays"
            raise ArrayNotFoundError(f"no array {name!r} in {self.url}; it holds {names}")
        result = self._arrays.get(name)
        return self._do(lambda: self._open_array(name, array, chunks)) if result is None else result

    def _open_array(
        self, name: str, array: ArrayMetadata, chunks: str | int | tuple[int, ...]
    ) -> PMArray:
        storage = self._storage(name, array, chunks, new=False)
        result = self._arrays[name] = PMArray(self, name, array, storage)
        result._chunks = chunks
        if self._transaction is not None:
            self._transaction.join(result)
        return result

    def __delitem__(self, name: str) -> None:
        with self._turn():
            self._admit_writer()
            self._refuse_fixed("delete the file")
            if name not in self._metadata.arrays:
                self._get(name, "auto")  # raises, and says what there is
            self._do(lambda: self._delete(name))

    def _delete(self, name: str) -> None:
        arrays = dict(self._metadata.arrays)
        # Not opened for this: what is damaged can be deleted, and replaced by mode="w".
        result = self._arrays.get(name)
        if result is not None:
            result._refuse_loans("delete", pins=True)
            del self._arrays[name]
            result._detach()
        self._removed.append(arrays.pop(name).file_id)
        self._metadata = replace(self._metadata, arrays=arrays)

    def __contains__(self, name: object) -> bool:
        with self._turn():
            self._admit()
            return name in self._metadata.arrays

    def __iter__(self) -> Iterator[str]:
        with self._turn():
            self._admit()
            return iter(sorted(self._metadata.arrays))

    def __len__(self) -> int:
        with self._turn():
            self._admit()
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
        with self._turn():
            self._admit()
            self._refuse_transaction("flush")
            if self._locked:
                self._do(self._flush)

    def _flush(self) -> None:
        # Data before the metadata that count on them, metadata before the files they gave up;
        # unless all of it appears in one step.
        self._committer.refuse_lost_lock()
        self._cache.flush()
        if isinstance(self._backend, ChunkBackend) and self._backend.commits:
            self._remove_deleted()
        committer = self._committer
        self._changed = True  # whatever fails from here on: no transaction begins before a flush
        try:
            for array in self._arrays.values():
                array._storage.make_durable(array.ndim)
            if (
                not self._exists
                or committer.must_checkpoint(self._metadata)
                or (isinstance(self._backend, ChunkBackend) and self._backend.has_changes())
            ):
                committer.checkpoint(self._metadata)
                self._exists = True
        except PoisonedError as error:
            self._cache.poison = error
            raise
        self._changed = False
        self._remove_deleted()
        names = {name: array.file_id for name, array in self._metadata.arrays.items()}
        if names != self._published:
            self._backend.publish(names)
            self._published = names
        merged = self._backend.merged() if isinstance(self._backend, ChunkBackend) else None
        if merged is not None:
            self._committer.saved = merged
            self._adopt(merged)

    def _remove_deleted(self) -> None:
        while self._removed:
            self._backend.remove(self._removed.pop())

    def close(self) -> None:
        """Flush, give up the lock and release memory; raise what could not be written.

        A transaction that is open is rolled back. The resources are released also when this
        raises. Closing twice does nothing. An interrupt stops the wait, not the closing: the group
        is closed all the same, and calling it again waits for that.
        """
        try:
            with self._turn():
                self._await_pending()
                if not self._closed:
                    self._do(self._close)
                elif self._forked == "reader":
                    self._forked = None  # and no use opens it again
        except PMArrayError:
            raise  # by the closing, or it was refused
        except BaseException:
            if not self._closed:  # it may have come before anything was begun
                close_behind(self)
            raise

    def _close(self) -> None:
        try:
            if self._transaction is not None:
                self._roll_back()
            self._attend_to_all()
            if self._cache.poison is not None:
                if self._cache.unreported is not None:
                    raise self._cache.poison
            elif self._locked:
                self._flush_for_good()
        finally:
            self._closed = True
            lifetime.end(self)
            with ExitStack() as releases:  # every one of them, also when one of them raises
                releases.callback(self._backend.close)
                if self._snapshot is not None:
                    releases.callback(self._snapshot.close)
                releases.callback(self._committer.close)
                for array in self._arrays.values():
                    releases.callback(array._storage.close)
                releases.callback(self._cache.close)

    def _flush_for_good(self) -> None:
        """Flush, with no later chance: an old failure is raised after what can be written is."""
        failure: WriteBehindError | None = None
        try:
            self._flush()
        except WriteBehindError as error:
            failure = error
            self._flush()
            failure.add_note("Closing tried again and wrote everything: nothing was lost.")
        for array in self._arrays.values():
            array._storage.trim()
        self._backend.settle()
        if failure is not None:
            raise failure

    def __del__(self) -> None:
        # Dropped and not closed: what was written reaches its medium all the same.
        if getattr(self, "_closed", True):
            return
        try:
            # What is only memory has nothing that closing would keep.
            if self._warns_unclosed and not getattr(self._backend, "volatile", False):
                warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        finally:
            close_later(self)

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
        return Transaction(self, wait=self._wait if wait is None else wait)

    def _begin(self, handle: Transaction) -> None:
        if self._transaction is not None:
            raise TransactionError(
                f"a transaction of {self.url} is open already, in the thread "
                f"{self._transaction.owner.name!r}; they do not nest. If an interrupt has left it "
                "open, call rollback() on the group"
            )
        if not self._backend.can_create:
            raise TransactionError(
                f"{self.url} is a single .npy file, which has no journal: copy it into a "
                "directory to have transactions"
            )
        if not self._can_commit:
            raise TransactionError(
                f"{self.url} is in a store that cannot change several objects in one step: use "
                "icechunk: there, or zarr: in a local directory"
            )
        for array in self._arrays.values():
            array._refuse_loans("begin a transaction")
        self._become_writer()
        if self._changed:
            self._flush()
        if self._backend.has_journal:
            try:
                self._cache.transaction = self._committer.begin()
            except PoisonedError as error:
                self._cache.poison = error
                raise
        self._transaction = OpenTransaction(self, handle)

    @property
    def transaction_owner(self) -> threading.Thread | None:
        """The thread that began the transaction that is open; None if none is."""
        with self._turn():
            self._admit()
            transaction = self._transaction
            return None if transaction is None else transaction.owner

    @property
    def _can_commit(self) -> bool:
        """Whether several changes can be one step here."""
        backend = self._backend
        return not isinstance(backend, ChunkBackend) or backend.has_journal or backend.commits

    def _commit(self, handle: Transaction, *, wait: bool) -> None:
        transaction = self._transaction
        if transaction is None or not transaction.is_of(handle):
            raise TransactionError(f"this transaction of {self.url} has ended already")
        number = self._cache.transaction
        try:
            for array in self._arrays.values():
                array._refuse_loans("commit")
            marks: dict[CommittedStorage, int] = {}
            for array in self._arrays.values():
                mark = array._storage.seal()
                if mark is not None and isinstance(array._storage, CommittedStorage):
                    marks[array._storage] = mark
            if number is not None:
                commit = Commit(number, self._metadata, marks, list(self._removed), waited_for=wait)
                self._cache.seal(commit)
                self._removed.clear()
                if wait:
                    commit.wait()
                    if commit.error is not None:
                        raise commit.error
            elif isinstance(self._backend, ChunkBackend):
                self._flush()  # and the backend commits
        except PoisonedError as error:
            self._cache.poison = error
            self._transaction = None
            raise
        except BaseException:
            self._roll_back()
            raise
        self._transaction = None
        transaction.release()

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
        with self._turn():
            self._admit()
            if self._transaction is not None:
                self._do(self._roll_back)

    def _roll_back(self) -> None:
        transaction, self._transaction = self._transaction, None
        assert transaction is not None
        try:
            self._cache.forget()
            if self._cache.poison is not None:
                return  # a predecessor failed: what is there is for recovery to sort out
            targets: dict[int, ImageTarget] = {
                storage.file_id: storage.region
                for storage in transaction.storages()
                if isinstance(storage, RegionStorage | PersistentStorage)
            }
            if isinstance(self._backend, ChunkBackend):
                if self._backend.commits:
                    self._backend.roll_back()
                else:
                    targets[STORE_ID] = self._backend.images()
            self._committer.roll_back(targets.get)
            transaction.restore()
        except BaseException as error:
            code = error.errno if isinstance(error, OSError) else None
            poison = self._cache.poison = PoisonedError(
                code, f"rolling back failed ({error}): close the group and open it again"
            )
            raise poison from error

    def _transaction_died(self, _: object) -> None:
        """The handle of an open transaction is no more: an exception has torn it away."""
        self._attend(self._roll_back_torn)

    def _roll_back_torn(self) -> None:
        if self._transaction is not None and self._transaction.torn:
            self._roll_back()

    def _refuse_transaction(self, what: str) -> None:
        if self._transaction is not None:
            raise TransactionError(
                f"cannot {what} inside a transaction: end it first. If an interrupt has left it "
                "open, call rollback() on the group"
            )

    def refresh(self) -> None:
        """Move a reader on to the last commit; a handle that has written is always there.

        Arrays that were deleted meanwhile say so when they are used.
        """
        with self._turn():
            self._admit()
            if not self._locked:
                self._do(self._refresh)

    def _refresh(self) -> None:
        while True:
            stamp = self._stamp()
            loaded = self._backend.load()
            try:
                if loaded is not None:
                    self._adopt(loaded, stamp)
                return
            except SnapshotExpiredError:
                continue  # a writer has deleted one of the open arrays, which are not many

    def discard(self) -> None:
        """Give up what was written since the last flush or commit, and go on from what is there.

        For backends that keep changes to themselves until they commit (`icechunk:`), as the way
        out of a `ConflictError`.

        Raises
        ------
        TransactionError
            A transaction is open, or the backend has written already.
        """
        with self._turn():
            self._admit()
            self._refuse_transaction("discard")
            if not (isinstance(self._backend, ChunkBackend) and self._backend.commits):
                raise TransactionError(f"what was written to {self.url} cannot be taken back")
            self._do(lambda: self._discard(self._backend))

    def _discard(self, backend: Any) -> None:
        self._cache.forget()
        self._removed.clear()
        self._changed = False
        if self._locked:
            backend.roll_back()
        loaded = backend.load()
        if loaded is not None:
            self._committer.saved = loaded
            self._adopt(loaded)

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
        with self._turn():
            self._admit()
            return self._do(lambda: list(self._versions().history()))

    def create_tag(self, name: str) -> None:
        """Give the last commit a name for good, to open it by ``?tag=name``."""
        with self._turn():
            self._admit()
            self._do(lambda: self._versions().create_tag(name))

    def create_branch(self, name: str) -> None:
        """Begin a branch at the last commit, to open it by ``?branch=name``."""
        with self._turn():
            self._admit()
            self._do(lambda: self._versions().create_branch(name))

    def _versions(self) -> Versions:
        if not isinstance(self._backend, Versions):
            raise TransactionError(f"{self.url} keeps no history: icechunk: does")
        return self._backend

    @property
    def closed(self) -> bool:
        """Whether the group has been closed."""
        return self._closed and self._forked != "reader"

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
    #
    # An operation says, in a frame of its own,
    #
    #     with group._turn():          # the lock: C, so that an exception cannot leave it held
    #         group._admit()           # or _admit_writer(): raises where there may be none
    #         ... group._do(work) ...  # what must not be torn
    #
    # On a thread that does such work for a caller, who has the lock, it says the same.

    def _turn(self) -> AbstractContextManager[Any]:
        """Return the lock, to be entered at once."""
        pending = self._pending
        if pending is not None and pending.thread == threading.get_ident():
            return _NO_LOCK  # the caller has it
        if self._cache.on_loan:
            self._cache.note_blocked()  # the one that has it may want memory of our loans
        return self._lock

    def _admit(self) -> None:
        """Refuse an operation where there can be none; called with the lock."""
        if self._forked is not None:
            self._reopen_in_child()
        if self._cache.on_loan:
            self._cache.note_free()
        if self._pending is not None:
            self._await_pending()
        if self._closed:
            raise ClosedError(f"{self.url} is closed; open it again")
        if self._cache.poison is not None:
            self._cache.raise_failure()
        if self._unattended or (self._transaction is not None and self._transaction.torn):
            self._attend_to_torn()

    def _admit_writer(self) -> None:
        """The same for an operation that changes something; becomes the group's one writer."""
        self._admit()
        if not self._locked:
            self._do(self._become_writer)
        self._note_change()

    def _admit_rollback(self, handle: Transaction) -> bool:
        """Whether the transaction is still there to be rolled back."""
        self._await_pending()
        # Closing has rolled it back, or a poisoned group has nothing to go back to.
        return (
            not self._closed and self._transaction is not None and self._transaction.is_of(handle)
        )

    def _await_pending(self) -> None:
        """Wait for what was begun for a caller that was torn away."""
        while (pending := self._pending) is not None:
            if pending.thread == threading.get_ident():
                return  # it is what runs here
            # Over and still here: it was given up, and whoever did so was torn away in the middle.
            if pending.over or pending.give_up():
                self._pending = None
            else:
                self._cache.refuse_reentry()
                pending.wait()

    def _do(self, work: Callable[[], T]) -> T:
        """Do what must not be torn, on a thread of ours; called with the lock, admitted."""
        pending = self._pending
        if pending is not None and pending.thread == threading.get_ident():
            return work()
        self._cache.refuse_reentry()
        task = Task(work, self._over)
        self._pending = task
        if self._cache.on_loan:
            self._cache.note_blocked()
        result = task.run_for_caller()
        if self._cache.on_loan:
            self._cache.note_free()
        return result

    def _over(self) -> None:
        self._pending = None

    def _attend(self, work: Callable[[], None]) -> None:
        """Have the next operation do something first; may be called from anywhere."""
        self._unattended.append(work)

    def _attend_to_torn(self) -> None:
        pending = self._pending
        if pending is None:
            self._do(self._attend_to_all)

    def _attend_to_all(self) -> None:
        self._roll_back_torn()
        while self._unattended:
            self._unattended[0]()
            self._unattended.popleft()

    def _note_change(self) -> None:
        if self._transaction is None:
            self._changed = True

    def _become_writer(self) -> None:
        if self.mode == "r":
            raise ReadOnlyError(f"{self.url} is open with mode='r'; use 'r+' or 'a' to write")
        if self._locked:
            return
        await_closing()
        try:
            self._backend.lock()
        except GroupLockedError:
            if not await_abandoned():
                raise
            self._backend.lock()  # a handle that an interrupt has left behind has closed
        try:
            loaded = self._backend.load()
            if loaded is not None:
                self._committer = Committer(self._backend, loaded)
                self._committer.recover()
                loaded = self._committer.saved
                self._backend.remove_orphans([a.file_id for a in loaded.metadata.arrays.values()])
            self._cache.set_sink(self._committer)
            self._locked = True
            if loaded is not None:
                self._adopt(loaded)
        except BaseException:
            self._locked = False
            self._committer.close()
            self._backend.close()
            raise

    def _recover(self) -> int:
        """Become the writer, which recovers; return the number of the last commit."""
        with self._turn():
            self._admit()
            self._do(self._become_writer)
            return self._committer.saved.transaction

    def _stamp(self) -> object:
        """What tells these metadata from later ones, to be noted before they are loaded."""
        try:
            return self._backend.stamp() if self._backend.has_journal else None
        except PMArrayError:
            return None  # there are none, or loading says what is the matter

    def _adopt(self, loaded: Checkpoint, stamp: object = None) -> None:
        """Move on to what is there now, which another writer may have left."""
        follows = self._snapshot is not None
        if self._snapshot is not None:
            self._snapshot.close()
            self._snapshot = None
        metadata = loaded.metadata
        if not self._locked and self._backend.has_journal:
            self._snapshot = Snapshot(self._backend, loaded, stamp=stamp, thorough=not follows)
            metadata = self._snapshot.metadata
        self._cache.forget()
        self._metadata = metadata
        self._exists = True
        for name, array in list(self._arrays.items()):
            now = metadata.arrays.get(name)
            if now is None or now.file_id != array._array.file_id:
                del self._arrays[name]
                array._detach()
            else:
                array._adopt(now, self._storage(name, now, array._chunks, new=False))

    def _retire(self, storage: Storage) -> None:
        """Release what a deleted or moved array had, or keep it while there is a way back."""
        if self._transaction is None:
            storage.discard()
        else:
            storage.retire()
            self._transaction.retired.append(storage)

    @property
    def _attributes(self) -> dict[str, Any]:
        return self._metadata.attrs

    def _replace_attributes(self, attrs: dict[str, Any]) -> None:
        self._metadata = replace(self._metadata, attrs=attrs)

    def _state(self, array: ArrayMetadata) -> tuple[object, ...] | None:
        """What an array's committed state is told by; None while this handle may change it."""
        if self._locked:
            return None
        transaction = self._committer.saved.transaction
        return self._metadata.uuid, transaction, array.file_id, repr(self._backend.stamp())

    def _admit_shape(self, array: ArrayMetadata) -> None:
        """Refuse an array that the backend cannot have."""
        self._backend.admit(array)

    def _update(self, name: str, array: ArrayMetadata) -> None:
        """Note what has become of an array."""
        self._metadata = replace(self._metadata, arrays={**self._metadata.arrays, name: array})

    def _new_file(
        self, array: ArrayMetadata, shape: tuple[int, ...]
    ) -> tuple[ArrayMetadata, Storage]:
        """Make a file for the same array in another shape; nothing refers to it yet."""
        self._refuse_fixed("its one array cannot move to another file")
        assert isinstance(self._backend, RegionBackend)  # chunk stores take any shape in place
        plan = Layout.plan(shape, array.dtype.itemsize, array.order)
        moved = replace(
            array,
            file_id=self._metadata.next_file_id,
            shape=shape,
            line_stride=plan.line_stride,
        )
        storage = self._storages().in_region(self._backend, moved, "auto", new=True)
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

    def _give_up(self) -> None:
        """Close a group that could not be opened in its mode, changing nothing."""
        self._closed = True
        lifetime.end(self)
        self._committer.close()
        if self._snapshot is not None:
            self._snapshot.close()
        self._backend.close()

    def _forget_changes(self) -> None:
        """Go back to the metadata that are durable; what was deleted since stays."""
        if self._locked and not self._closed:
            self._metadata = self._committer.saved.metadata
            self._removed.clear()

    def _abandon(self) -> None:
        """In a forked child: the handle is the parent's, and stays so."""
        self._forked = "writer" if self._locked else "reader"
        self._closed = True
        self._lock = threading.RLock()  # another thread of the parent may have held it
        self._pending = None
        self._backend.abandon()

    def _reopen_in_child(self) -> None:
        """Open, at its first use, what the parent only read; what it wrote to stays its own."""
        if self._forked == "writer" or not getattr(self._backend, "survives_fork", True):
            raise ClosedError(
                f"{self.url} was opened before this process was forked, and "
                + (
                    "is written to by the process that it was forked from: open it again here, "
                    "with mode='r'"
                    if self._forked == "writer"
                    else "what reads it works in threads that a forked process does not have: use "
                    "the start method 'spawn' or 'forkserver' (multiprocessing_context= of a "
                    "DataLoader)"
                )
            )
        backend = open_backend(self._parsed_url, writable=self.mode != "r")
        try:
            loaded = backend.load()
            if loaded is None:
                raise GroupNotFoundError(f"there is no group at {self.url} any more")
            # Threads of the parent may have held the locks of what is there, so all of it is new.
            self._backend, self._committer = backend, Committer(backend, loaded)
            self._cache = ChunkCache(self._cache_bytes, self._committer)
            self._snapshot = self._published = None
            self._removed, self._changed = [], False
            self._pending, self._unattended = None, deque()
            for array in self._arrays.values():
                array._storage = cast(Storage, _Left())
            self._adopt(loaded)
        except BaseException:
            backend.close()
            raise
        self._closed, self._forked = False, None
        lifetime.begin(self)


_NO_LOCK = nullcontext()


def parse_new(
    name: str,
    shape: int | tuple[int, ...],
    dtype: DTypeLike,
    layout: str | None,
    order: str | None,
    fill_value: Any,
) -> tuple[tuple[int, ...], DType, Order, Any]:
    """Return shape, dtype, order and fill value of a new array; what cannot be is refused."""
    check_name(name)
    kind = parse_dtype(dtype)
    extents = parse_shape(shape)
    refuse_unaddressable(extents, kind.itemsize)
    plan = Layout.plan(extents, kind.itemsize, parse_layout(layout, order) or "row")
    fill = np.zeros((), kind)
    try:
        if type(fill_value) is not int or fill_value:
            fill[()] = fill_value  # as text, 0 would be the character
        write_header(plan, kind, ndim=len(extents))
    except (ValueError, TypeError, OverflowError) as error:
        raise LayoutError(
            f"cannot create {name!r} of dtype {kind} with fill_value={fill_value!r}: {error}"
        ) from error
    return extents, kind, plan.order, fill[()]


class _Left:
    """What an array of the parent has in a child: closing the real one may wait for its threads."""

    def close(self) -> None:
        pass

    retire = discard = close

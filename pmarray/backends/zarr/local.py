"""``zarr:/dir`` - Zarr hierarchies in a directory, with the transactions of a directory.

In a directory::

    dir/
      zarr.json                the group and its attributes
      array/zarr.json          shape, dtype, codecs
      array/c/0/17             a chunk, or a shard of several
      .pmarray/                only while a writer is at work, or after it has crashed
        pmarray.json           metadata as of the last checkpoint: the authority while it is there;
                               and checksums of the zarr.json that may stand in the hierarchy
        journal                commits, and the names of what they overwrite
        lock                   locked by the one writer, and holding its process id
        kept/1                 objects as they were, under second names

A transaction is what it is for a region backend (`_commits.committer`), with one difference: the
before-image of a chunk is a second name of its old file. When the group is closed, the metadata
are those of the Zarr hierarchy, and ``.pmarray`` is gone.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Iterable, Sequence

import numpy as np
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from pmarray._formats.metadata import (
    ArrayMetadata,
    Checkpoint,
    GroupMetadata,
    parse_json,
)
from pmarray._system import osops
from pmarray._system.beneath import Below, entries, glance, is_directory, status, walk
from pmarray._system.files import occupied_nbytes, read_file, replace_durably
from pmarray._system.keptfiles import Parts
from pmarray._system.lockfile import LockFile
from pmarray.backends.files.region import FileRegion, if_there, make_journal_file
from pmarray.backends.zarr import leftovers
from pmarray.backends.zarr import translation as zarr_format
from pmarray.backends.zarr.above import LockAbove
from pmarray.backends.zarr.chunks import AnyArray, ZarrChunks
from pmarray.backends.zarr.documents import Documents
from pmarray.backends.zarr.files import FileStore, KeptObjects
from pmarray.backends.zarr.shards import Slabs
from pmarray.backends.zarr.store import ZarrBackend
from pmarray.errors import (
    ConflictError,
    DamagedError,
    ForeignDataError,
    PMArrayError,
    StorageError,
)

__all__ = ["LocalZarrBackend"]

SESSION = ".pmarray"


class _KeepingChunks(ZarrChunks):
    """The chunks of an array in a local directory."""

    is_near = True
    _least_of_shard = 1

    def __init__(
        self, store: FileStore, path: str, array: ArrayMetadata, kept: KeptObjects
    ) -> None:
        super().__init__(store, path, array)
        self._nbytes = math.prod(self.shape) * array.dtype.itemsize
        self._files = store
        self._kept = kept

    def read_into(self, chunk: tuple[int, ...], out: AnyArray, /) -> None:
        in_order = out.flags.f_contiguous if self._array.order == "col" else out.flags.c_contiguous
        if self._is_plain and in_order:
            # Straight from the file to where the items are wanted.
            whole = out.reshape(-1, order="A").view(np.uint8)
            self._read_plain(self._name(chunk), [(0, whole)])
        else:
            super().read_into(chunk, out)

    def read_parts_into(self, chunk: tuple[int, ...], parts: Parts, /) -> None:
        if self._slabs is None:
            self._read_plain(self._name(chunk), parts)
        else:
            self._read_slabs(chunk, self._slabs, parts)

    def read_parts_at_hand(self, chunk: tuple[int, ...], parts: Parts, /) -> bool:
        return self._is_plain and self._files.read_parts_at_hand(
            self._name(chunk), parts, self._nbytes
        )

    def _read_slabs(self, chunk: tuple[int, ...], slabs: Slabs, parts: Parts) -> None:
        name = self._name(chunk)
        self._take(slabs, self._files.whole(name), name, parts)

    def _read_plain(self, name: str, parts: Parts) -> None:
        if not self._files.read_parts_into(name, parts, self._nbytes):
            for _, out in parts:
                self._put_fill(out)

    # Directly: each turn of an event loop costs as much as a small chunk.

    def _get(self, name: str) -> Buffer | None:
        data = self._files.read(name)
        return None if data is None else default_buffer_prototype().buffer.from_bytes(data)

    def _set(self, name: str, data: Buffer) -> None:
        self._files.write(name, data.as_buffer_like())

    def _delete(self, name: str) -> None:
        self._files.remove(name)

    def before_image(self, chunk: tuple[int, ...], /) -> tuple[int, bytes] | None:
        name = self._name(chunk)
        return self._kept.keep(name), name.encode()

    def read_image_into(self, offset: int, chunk: tuple[int, ...], out: AnyArray, /) -> None:
        name = self._name(chunk)
        store = MemoryStore()
        if offset:
            data = default_buffer_prototype().buffer.from_bytes(self._kept.read(offset))
            sync(store.set(name, data))
        ZarrChunks(store, self._path, self._array).read_into(chunk, out)


class _PutBack:
    """Where before-images of objects are put back; see `ImageTarget`."""

    def __init__(self, store: FileStore, kept: KeptObjects, documents: Documents) -> None:
        self._store = store
        self._kept = kept
        self._documents = documents

    def write(self, offset: int, buffers: Sequence[memoryview], /) -> None:
        key = self._key(b"".join(buffers))
        self._kept.put_back(offset, key)
        if key.endswith("/zarr.json"):
            self._documents.look([key])

    def _key(self, data: bytes) -> str:
        """Return the name of an object of an array; a whole array's ends in "/"."""
        try:
            key = data.decode()
            if self._store.path(key.removesuffix("/")).names[0] == SESSION:
                raise ValueError("that is not a hierarchy's")
        except (ValueError, IndexError) as error:
            raise DamagedError(
                f"the journal of {self._store.root} names {data!r:.80}, which is no object of an "
                f"array ({error}): restore the group from a backup"
            ) from error
        return key

    def barrier(self) -> None:
        self._store.barrier()

    def close(self) -> None:
        pass


class LocalZarrBackend(ZarrBackend):
    """One group in a local directory, with a lock and transactions."""

    _may_be_far = False

    def __init__(self, directory: str, *, writable: bool) -> None:
        self._files = FileStore(directory, read_only=not writable)
        self.directory = directory
        super().__init__(directory, self._files, writable=writable)
        self._session = Below(directory) / SESSION
        self._metadata_path = self._session / "pmarray.json"
        self._journal_path = self._session / "journal"
        self._lock = LockFile(self._session / "lock", directory)
        self._above = LockAbove(directory, SESSION)
        self._kept = KeptObjects(self._files, self._session / "kept")
        self._crashed = False
        self._settled = False
        self._conflict: ConflictError | None = None

    @property
    def has_journal(self) -> bool:  # type: ignore[override]  # an array alone has no place for it
        return self.can_create

    # -- metadata -------------------------------------------------------------------------------

    def load(self) -> Checkpoint | None:
        try:
            data = read_file(self._metadata_path)
        except (FileNotFoundError, NotADirectoryError):
            result = self._load_hierarchy()
            if result is None:
                self._refuse_foreign_directory()
        except OSError as error:
            text = f"cannot open: {error.strerror}"
            raise StorageError(error.errno, text, self._metadata_path) from error
        else:
            result = Checkpoint.from_bytes(data, self._metadata_path)
            for name, array in result.metadata.arrays.items():
                if name == SESSION:
                    raise DamagedError(f"an array of {self.directory} is called {name!r}")
                zarr_format.check(array, name)
        self._adopt(result)
        return result

    def _refuse_foreign_directory(self) -> None:
        try:
            found = set(entries(self.directory))
        except FileNotFoundError:
            return
        except NotADirectoryError as error:
            raise ForeignDataError(
                f"{self.directory} is a file; a Zarr group is a directory, or a .zip file"
            ) from error
        if found - {SESSION}:
            raise ForeignDataError(
                f"{self.directory} holds {', '.join(sorted(found)[:4])} but no zarr.json: it is "
                "no Zarr group, and nothing was changed; choose another directory"
            )

    def _read(self, keys: Sequence[str]) -> list[bytes | None]:
        return [self._files.read(key) for key in keys]

    def save(self, checkpoint: Checkpoint, /) -> None:
        if not self.can_create:
            super().save(checkpoint)
        else:
            contents = self._contents(checkpoint)
            self._note_conflict(contents)
            record = {"hierarchy": self._documents.record(contents)}
            replace_durably(self._metadata_path, checkpoint.to_bytes(record))
            self._kept.clear()  # the journal that named them is stale now
            # In a conflict ours are there, and theirs in the hierarchy. This raises nothing: the
            # journal goes on from the checkpoint.
            if self._conflict is None:
                self._publish(checkpoint, contents)
        self._files.barrier()

    def _note_conflict(self, keys: Iterable[str]) -> None:
        """Find out whether another program is at work here."""
        key = self._documents.changed(keys)
        if key is not None:
            self._conflict = self._conflict_about(key)

    def _conflict_about(self, key: str) -> ConflictError:
        return ConflictError(
            f"another program has changed {key} of {self.directory} while a writer of pmarray was "
            f"at work: it was left as it is, and what pmarray wrote is kept in {self._session}. "
            f"Close this group; delete {self._session} to go on from what the other program left, "
            f"or put back the {key} that was there before to go on from what pmarray wrote"
        )

    def _refuse_conflict(self) -> None:
        if self._conflict is not None:
            raise self._conflict

    def merged(self) -> Checkpoint | None:
        self._refuse_conflict()
        return None

    def _put(self, key: str, data: bytes) -> None:
        if self._published.get(key) != data:
            if self._files.read(key) == data:
                self._files.note(self._files.path(key))
            else:
                self._files.write(key, data)
            self._published[key] = data

    def stamp(self) -> object:
        result: list[object] = []
        for path in (self._metadata_path, self._files.path("zarr.json")):
            found = glance(path)
            stamp = None if found is None else (found.st_ino, found.st_mtime_ns, found.st_size)
            result.append(stamp)
        return tuple(result)

    def open_journal(self, *, create: bool) -> FileRegion | None:
        path = self._journal_path

        def region() -> FileRegion:
            return FileRegion(path, 0, writable=self._writable, aligned=True)

        if not create:
            return if_there(region)
        make_journal_file(path)
        return region()

    # -- the lock -------------------------------------------------------------------------------

    def lock(self) -> None:
        super().lock()
        if self.can_create:
            self._lock_here()
            return
        self._above.acquire()
        try:
            self._lock_here()
        except BaseException:
            self._above.release()
            raise

    def _lock_here(self) -> None:
        found = is_directory(self._session)
        while True:
            self._make_directory(self._session)
            try:
                self._lock.acquire()
                break
            except StorageError as error:
                if error.errno != errno.ENOENT:
                    raise  # else a writer that ended has just removed it
        try:
            self._make_directory(self._kept.directory)  # which that one has removed before
        except BaseException:
            self._lock.release()
            raise
        self._settled = False
        # What the last writer did is durable before anything is made of it: that it closed, too.
        if self._known is None:
            self._files.note(self.directory)
        self._files.note(self._metadata_path)
        self._files.note(self._kept.path(1))
        self._files.barrier()
        self._crashed = status(self._metadata_path) is not None or (found and not self.can_create)
        self._refuse_changed_hierarchy()
        if status(self._metadata_path) is None:
            # Of a session that was closed: nothing may take it for this one's.
            self._forget(self._journal_path)
            self._kept.clear()
            self._files.note(self._metadata_path)
            self._files.barrier()

    def _make_directory(self, path: Below) -> None:
        try:
            self._files.make_directory(path)
        except OSError as error:
            raise StorageError(
                error.errno, f"cannot make a directory: {error.strerror}", self._session
            ) from error

    def _refuse_changed_hierarchy(self) -> None:
        """Raise where another program went on in what a writer of ours left when it died."""
        try:
            record = parse_json(read_file(self._metadata_path))["hierarchy"]
            key = self._documents.changed_since(record)
        except (OSError, PMArrayError, ValueError, KeyError, TypeError, AttributeError):
            return  # there is none, or it is damaged, which `load` says
        if key is not None:
            self._lock.release()
            raise self._conflict_about(key)

    @staticmethod
    def _forget(path: Below) -> None:
        try:
            osops.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError(error.errno, f"cannot delete: {error.strerror}", path) from error

    def settle(self) -> None:
        """Make the hierarchy the authority: it holds everything, durably."""
        if not self._lock.held or not self.can_create:
            return
        self._note_conflict(self._document_keys(self._known))
        self._refuse_conflict()
        self._files.barrier()  # what the hierarchy still has of deleted arrays goes first
        self._forget(self._metadata_path)
        self._files.note(self._metadata_path)
        self._files.barrier()
        self._forget(self._journal_path)
        self._kept.clear()
        self._settled = True

    def close(self) -> None:
        super().close()
        try:
            self._close_session()
        finally:
            self._above.release()

    def _close_session(self) -> None:
        if self._settled or (self._lock.held and not self.can_create):
            try:
                osops.rmdir(self._kept.directory)
            except OSError:
                pass  # a later writer finds it, and uses it
        self._lock.release(remove=self._settled or not self.can_create)
        if self._settled or not self.can_create:
            try:
                osops.rmdir(self._session)
            except OSError:
                pass  # another writer has come

    def refuse_lost_lock(self) -> None:
        self._lock.refuse_lost()
        self._above.refuse_lost()

    def abandon(self) -> None:
        self._lock.abandon()
        self._above.abandon()

    # -- chunks ---------------------------------------------------------------------------------

    def _listing(self) -> FileStore:
        return self._files

    def _chunks(self, path: str, array: ArrayMetadata) -> ZarrChunks:
        return _KeepingChunks(self._files, path, array, self._kept)

    def _erase(self, path: str) -> None:
        self._files.remove_tree(path)
        self._forget_documents(path)

    def images_of_name(self, name: str, /, *, had_array: bool) -> list[tuple[int, bytes]]:
        there = is_directory(self._files.path(name))
        if not there and not had_array:
            return []
        keys = sorted(self._files.keys(name)) if there else []
        kept = [(self._kept.keep(key), key.encode()) for key in keys]
        if kept:
            self._kept.barrier()
        # Put back first, as the last: nothing of the new array stays beside them.
        return [*kept, (0, f"{name}/".encode())]

    def occupied_nbytes(self, name: str, array: ArrayMetadata, /) -> int | None:
        try:
            return sum(
                occupied_nbytes(directory / one)
                for directory, names in walk(self._files.path(name))
                for one in names
            )
        except (FileNotFoundError, NotADirectoryError):
            return None  # not written yet, or removed meanwhile

    def images(self) -> _PutBack:
        return _PutBack(self._files, self._kept, self._documents)

    def images_kept(self) -> None:
        self._kept.barrier()

    def barrier(self) -> None:
        self._files.barrier()

    def committed(self) -> None:
        self._kept.clear()

    def orphans(self, metadata: GroupMetadata, /) -> list[str]:
        """What is left of a session that did not end; see `leftovers`."""
        if self.can_create and status(self._metadata_path) is not None:
            return list(leftovers.in_group(self._files, metadata, SESSION))
        if not self.can_create and is_directory(self._session):
            return list(leftovers.in_array(self._files, "", metadata.arrays["array"]))
        return []

    def remove_orphans(self, metadata: GroupMetadata, /) -> None:
        if not self._crashed:
            return
        self._files.note_all()
        for name in self.orphans(metadata):
            (self._files.remove_tree if name.endswith("/") else self._files.remove)(name)
        # Durable with the next commit or flush, or at `settle`: until then they are found again.

"""``zarr:/dir`` - Zarr format 3, in a directory or in any store that zarr-python knows.

An array of the group is an array of the Zarr hierarchy, which any Zarr reader opens. What Zarr has
no word for is in its attributes under "pmarray": the layout of an array, the identity of a group.
A column-major array is stored with the transpose codec, so that a chunk of several columns has
them one after another. Hierarchies of other programs, of format 2 too (read only), open as groups.

In a directory::

    dir/
      zarr.json                the group and its attributes
      array/zarr.json          shape, dtype, codecs
      array/c/0/17             a chunk, or a shard of several
      .pmarray/                only while a writer is at work, or after it has crashed
        pmarray.json           metadata as of the last checkpoint: the authority while it is there
        journal                commits, and the names of what they overwrite
        lock                   locked by the one writer, and holding its process id
        kept/1                 objects as they were, under second names

A transaction is what it is for a region backend (`_commits`), with one difference: the before-image
of a chunk is a second name of its old file. When the group is closed, the metadata are those of
the Zarr hierarchy, and ``.pmarray`` is gone.

Elsewhere (memory, S3 and other object stores) there is neither a lock nor a transaction: what was
written is in the store when `flush` returns. A zip archive is written once, and there when its
group has been closed (`_zarr_zip`).
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.buffer.cpu import NDBuffer
from zarr.core.metadata import ArrayV2Metadata
from zarr.core.sync import sync
from zarr.errors import ContainsArrayAndGroupError, GroupNotFoundError, NodeNotFoundError
from zarr.storage import MemoryStore, StorePath

from pmarray import _osops
from pmarray._files import replace_durably
from pmarray._lockfile import LockFile
from pmarray._metadata import ArrayMetadata, Checkpoint, GroupMetadata
from pmarray._url import URL
from pmarray.backends import _zarr_format as zarr_format
from pmarray.backends import _zarr_leftovers as leftovers
from pmarray.backends._file_region import FileRegion, make_journal_file
from pmarray.backends._zarr_files import FileStore, KeptObjects
from pmarray.errors import DamagedError, ForeignDataError, StorageError, URLError

__all__ = ["LocalZarrBackend", "ZarrBackend", "ZarrChunks", "open_backend"]

AnyArray = NDArray[Any]
SESSION = ".pmarray"


class ZarrChunks:
    """The chunks of one Zarr array."""

    def __init__(self, store: Store, path: str, array: ArrayMetadata) -> None:
        self._path = path
        self._store = store
        self.shape = zarr_format.stored_chunk_shape(array)
        metadata = zarr_format.to_zarr(array)
        self._metadata = metadata
        # zarr-python asks for items, not for chunks. This array is large enough for any chunk;
        # its shape is never stored.
        huge = tuple(n << 40 for n in self.shape)
        node = zarr.AsyncArray(metadata.update_shape(huge), StorePath(store, path))
        self._items: Any = zarr.Array(node)

    def grow(self, array_shape: tuple[int, ...], /) -> None:
        pass

    def read_into(self, chunk: tuple[int, ...], out: AnyArray, /) -> None:
        try:
            self._items.get_basic_selection(
                self._slices(chunk), out=NDBuffer.from_numpy_array(out.reshape(self.shape))
            )
        except (ValueError, RuntimeError, TypeError, EOFError) as error:
            raise DamagedError(
                f"chunk {self._name(chunk)} cannot be decoded: {error}; restore it from a backup"
            ) from error

    def write(self, chunk: tuple[int, ...], values: AnyArray, /) -> None:
        self._items[self._slices(chunk)] = values.reshape(self.shape)

    def delete(self, chunk: tuple[int, ...], /) -> None:
        sync(self._store.delete(self._name(chunk)))

    def key(self, chunk: tuple[int, ...], /) -> bytes:
        return self._name(chunk).encode()

    def before_image(self, chunk: tuple[int, ...], /) -> tuple[int, bytes] | None:
        return None

    def read_image_into(self, offset: int, chunk: tuple[int, ...], out: AnyArray, /) -> None:
        raise NotImplementedError("only a local directory keeps before-images")

    def _name(self, chunk: tuple[int, ...]) -> str:
        name = self._metadata.encode_chunk_key(chunk[: len(self.shape)])
        return f"{self._path}/{name}" if self._path else name

    def _slices(self, chunk: tuple[int, ...]) -> tuple[slice, ...]:
        return tuple(slice(i * n, (i + 1) * n) for i, n in zip(chunk, self.shape, strict=False))


class ZarrBackend:
    """One group in any Zarr store."""

    has_journal = False
    commits = False

    def __init__(self, where: str, store: Store, *, writable: bool) -> None:
        self.where = where
        self._store = store
        self._writable = writable
        self._paths: dict[int, str] = {}
        """Where the arrays are, by number."""
        self._known: Checkpoint | None = None
        self._published: dict[str, bytes] = {}
        self.refused: dict[str, str] = {}
        """Arrays that no array here can be, by name, and why."""
        self.can_create = True

    # -- metadata -------------------------------------------------------------------------------

    def load(self) -> Checkpoint | None:
        result = self._load_hierarchy()
        self._adopt(result)
        return result

    def _adopt(self, checkpoint: Checkpoint | None) -> None:
        self._known = checkpoint
        if checkpoint is not None and self.can_create:
            arrays = checkpoint.metadata.arrays
            self._paths = {array.file_id: name for name, array in arrays.items()}

    def _load_hierarchy(self) -> Checkpoint | None:
        try:
            with zarr_format.quiet():
                node = zarr.open(self._store, mode="r")
                members = {} if isinstance(node, zarr.Array) else self._members(node)
        except (FileNotFoundError, NodeNotFoundError, GroupNotFoundError):
            return None
        except ForeignDataError:
            raise
        except (ValueError, KeyError, TypeError, ContainsArrayAndGroupError) as error:
            kind = zarr_format.unsupported(self._document(""))
            if kind is not None:
                raise ForeignDataError(
                    f"{self.where} is of type {kind}, which is not read here"
                ) from error
            raise DamagedError(f"the Zarr metadata of {self.where} are damaged: {error}") from error
        if isinstance(node, zarr.Array):
            return self._one_array(node)
        arrays: dict[str, ArrayMetadata] = {}
        for name, array in sorted(members.items()):
            try:
                found = zarr_format.from_zarr(array.metadata, name)
            except ForeignDataError as error:
                self.refused[name] = str(error)
                continue  # of a type that no array here can have; the others can be used
            if any(found.file_id == other.file_id for other in arrays.values()):
                # Somebody has copied the directory of an array, its number with it.
                found = replace(found, file_id=zarr_format.foreign_id(name))
            arrays[name] = found
        attributes: dict[str, Any] = dict(node.attrs)
        ours = zarr_format.our_attribute(attributes)
        largest = max((a.file_id for a in arrays.values() if a.file_id < 1 << 32), default=0)
        metadata = GroupMetadata(
            uuid=str(ours.get("uuid") or uuid.uuid5(uuid.NAMESPACE_URL, self.where)),
            next_file_id=max(int(ours.get("next", 1)), largest + 1),
            arrays=arrays,
            attrs=zarr_format.user_attributes(attributes),
        )
        return Checkpoint(metadata, int(ours.get("transaction", 0)))

    def _members(self, node: zarr.Group) -> dict[str, Any]:
        """The arrays of a group, but those of types that are not read here."""
        self.refused = {}
        try:
            return dict(node.arrays())
        except ValueError:
            found = {}
            for name in sync(_listed(self._store)):
                kind = zarr_format.unsupported(self._document(name))
                if kind is not None:
                    self.refused[name] = (
                        f"{self.where}#{name} is of type {kind}, which is not read here"
                    )
                elif isinstance(one := node.get(name), zarr.Array):
                    found[name] = one
            if not self.refused:
                raise
            return found

    def _document(self, path: str) -> bytes | None:
        key = f"{path}/zarr.json" if path else "zarr.json"
        buffer = sync(self._store.get(key, default_buffer_prototype()))
        return None if buffer is None else buffer.to_bytes()

    def _one_array(self, node: Any) -> Checkpoint:
        self.can_create = False
        array = zarr_format.from_zarr(node.metadata, "array")
        self._paths[array.file_id] = ""
        identity = str(uuid.uuid5(uuid.NAMESPACE_URL, self.where))
        return Checkpoint(GroupMetadata(identity, 1, {"array": array}, array.attrs))

    def save(self, checkpoint: Checkpoint, /) -> None:
        self._publish(checkpoint)
        self._known = checkpoint
        # Deleted arrays keep their paths until they are removed; those that only the journal knew
        # until now get theirs.
        for name, array in checkpoint.metadata.arrays.items():
            self._paths.setdefault(array.file_id, name)

    def _publish(self, checkpoint: Checkpoint) -> None:
        """Write what has changed of the metadata of the hierarchy."""
        metadata = checkpoint.metadata
        if self.can_create:
            attributes = zarr_format.attributes_with(metadata.attrs, self._ours(checkpoint))
            group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
            self._put("zarr.json", json.dumps(group, indent=1).encode())
        for name, array in metadata.arrays.items():
            path = self._paths.get(array.file_id, name)
            document = zarr_format.to_zarr(array)
            for key, data in zarr_format.documents(document).items():
                self._put(f"{path}/{key}" if path else key, data)

    def _ours(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """What the attributes of the group say of us."""
        return {
            "uuid": checkpoint.metadata.uuid,
            "next": checkpoint.metadata.next_file_id,
            "transaction": checkpoint.transaction,
        }

    def has_changes(self) -> bool:
        return False

    def roll_back(self) -> None:
        raise NotImplementedError("this store has no transactions of its own")

    def merged(self) -> Checkpoint | None:
        return None

    def _put(self, key: str, data: bytes) -> None:
        if self._published.get(key) != data:
            buffer = default_buffer_prototype().buffer.from_bytes(data)
            sync(self._store.set(key, buffer))
            self._published[key] = data

    def admit(self, array: ArrayMetadata, /) -> None:
        pass

    def stamp(self) -> object:
        return None

    def open_journal(self, *, create: bool) -> FileRegion | None:
        return None

    def lock(self) -> None:
        checkpoint = self._known
        for name, array in (checkpoint.metadata.arrays if checkpoint else {}).items():
            if isinstance(zarr_format.to_zarr(array), ArrayV2Metadata):
                raise ForeignDataError(
                    f"{self.where}#{name} is of Zarr format 2, which is read only here: copy it, "
                    "with pmarray.copy, and write to the copy"
                )

    # -- chunks ---------------------------------------------------------------------------------

    def plan(
        self,
        name: str,
        array: ArrayMetadata,
        chunks: str | int | tuple[int, ...],
        max_nbytes: int,
        options: Mapping[str, Any],
        /,
    ) -> ArrayMetadata:
        if name in self.refused:
            raise ForeignDataError(f"{self.refused[name]}, nor replaced: choose another name")
        unknown = set(options) - {"codecs", "shards", "dimension_names"}
        if unknown:
            raise TypeError(
                f"zarr: takes codecs=, shards= and dimension_names=, not {', '.join(unknown)}"
            )
        return zarr_format.plan(array, chunks, max_nbytes, name=name, **options)

    def create_chunks(self, name: str, array: ArrayMetadata, /) -> ZarrChunks:
        self._erase(name)
        self._paths[array.file_id] = name
        return self._chunks(name, array)

    def open_chunks(self, name: str, array: ArrayMetadata, /) -> ZarrChunks:
        return self._chunks(self._paths.setdefault(array.file_id, name), array)

    def _chunks(self, path: str, array: ArrayMetadata) -> ZarrChunks:
        return ZarrChunks(self._store, path, array)

    def _erase(self, path: str) -> None:
        sync(self._store.delete_dir(path))
        for key in [key for key in self._published if key.startswith(f"{path}/")]:
            del self._published[key]

    def images_of_name(self, name: str, /, *, had_array: bool) -> list[tuple[int, bytes]]:
        return []

    def images(self) -> Any:
        raise NotImplementedError("only a local directory keeps before-images")

    def images_kept(self) -> None:
        pass

    def barrier(self) -> None:
        pass

    def committed(self) -> None:
        pass

    def settle(self) -> None:
        pass

    def remove(self, file_id: int, /) -> None:
        path = self._paths.pop(file_id, None)
        if path is not None and path not in self._paths.values():
            self._erase(path)

    def remove_orphans(self, keep: Collection[int], /) -> None:
        pass

    def publish(self, names: Mapping[str, int], /) -> None:
        pass

    def close(self) -> None:
        self._store.close()

    def abandon(self) -> None:
        pass


class _KeepingChunks(ZarrChunks):
    """The chunks of an array in a local directory."""

    def __init__(
        self, store: FileStore, path: str, array: ArrayMetadata, kept: KeptObjects
    ) -> None:
        super().__init__(store, path, array)
        self._array = array
        self._kept = kept

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

    def __init__(self, store: FileStore, kept: KeptObjects) -> None:
        self._store = store
        self._kept = kept

    def write(self, offset: int, buffers: Sequence[memoryview], /) -> None:
        self._kept.put_back(offset, b"".join(buffers).decode())

    def barrier(self) -> None:
        self._store.barrier()

    def close(self) -> None:
        pass


class LocalZarrBackend(ZarrBackend):
    """One group in a local directory, with a lock and transactions."""

    def __init__(self, directory: str, *, writable: bool) -> None:
        self._files = FileStore(directory, read_only=not writable)
        self.directory = directory = str(self._files.root)
        super().__init__(directory, self._files, writable=writable)
        self._session = os.path.join(directory, SESSION)
        self._metadata_path = os.path.join(self._session, "pmarray.json")
        self._journal_path = os.path.join(self._session, "journal")
        self._lock = LockFile(os.path.join(self._session, "lock"), directory)
        self._kept = KeptObjects(self._files, os.path.join(self._session, "kept"))
        self._crashed = False
        self._settled = False

    @property
    def has_journal(self) -> bool:  # type: ignore[override]  # an array alone has no place for it
        return self.can_create

    # -- metadata -------------------------------------------------------------------------------

    def load(self) -> Checkpoint | None:
        try:
            with open(self._metadata_path, "rb") as file:
                data = file.read()
        except (FileNotFoundError, NotADirectoryError):
            result = self._load_hierarchy()
            if result is None:
                self._refuse_foreign_directory()
        except OSError as error:
            raise StorageError(error.errno, error.strerror, self._metadata_path) from error
        else:
            result = Checkpoint.from_bytes(data, self._metadata_path)
        self._adopt(result)
        return result

    def _refuse_foreign_directory(self) -> None:
        try:
            entries = set(os.listdir(self.directory))
        except FileNotFoundError:
            return
        except NotADirectoryError as error:
            raise ForeignDataError(
                f"{self.directory} is a file; a Zarr group is a directory, or a .zip file"
            ) from error
        if entries - {SESSION}:
            raise ForeignDataError(
                f"{self.directory} holds {', '.join(sorted(entries)[:4])} but no zarr.json: it is "
                "no Zarr group, and nothing was changed; choose another directory"
            )

    def save(self, checkpoint: Checkpoint, /) -> None:
        if self.can_create:
            replace_durably(self._metadata_path, checkpoint.to_bytes())
            self._kept.clear()  # the journal that named them is stale now
        super().save(checkpoint)
        self._files.barrier()

    def _put(self, key: str, data: bytes) -> None:
        if self._published.get(key) != data:
            if self._files.read(key) == data:
                self._files.note(self._files.path(key))
            else:
                self._files.write(key, data)
            self._published[key] = data

    def stamp(self) -> object:
        result: list[object] = []
        for path in (self._metadata_path, os.path.join(self.directory, "zarr.json")):
            try:
                found = os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                result.append(None)
            else:
                result.append((found.st_ino, found.st_mtime_ns, found.st_size))
        return tuple(result)

    def open_journal(self, *, create: bool) -> FileRegion | None:
        path = self._journal_path
        if create:
            make_journal_file(path)
        elif not os.path.exists(path):
            return None
        return FileRegion(path, 0, writable=self._writable, aligned=True)

    # -- the lock -------------------------------------------------------------------------------

    def lock(self) -> None:
        super().lock()
        found = os.path.isdir(self._session)
        try:
            self._files.make_directory(self._kept.directory)
        except OSError as error:
            raise StorageError(
                error.errno, f"cannot make a directory: {error.strerror}", self._session
            ) from error
        self._lock.acquire()
        self._settled = False
        # What the last writer did is durable before anything is made of it: that it closed, too.
        if self._known is None:
            self._files.note(self.directory)
        self._files.note(self._metadata_path)
        self._files.note(self._kept.path(1))
        self._files.barrier()
        self._crashed = os.path.exists(self._metadata_path) or (found and not self.can_create)
        if not os.path.exists(self._metadata_path):
            # Of a session that was closed: nothing may take it for this one's.
            self._forget(self._journal_path)
            self._kept.clear()
            self._files.note(self._metadata_path)
            self._files.barrier()

    @staticmethod
    def _forget(path: str) -> None:
        try:
            _osops.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError(error.errno, f"cannot delete: {error.strerror}", path) from error

    def settle(self) -> None:
        """Make the hierarchy the authority: it holds everything, durably."""
        if not self._lock.held or not self.can_create:
            return
        self._files.barrier()  # what the hierarchy still has of deleted arrays goes first
        self._forget(self._metadata_path)
        self._files.note(self._metadata_path)
        self._files.barrier()
        self._forget(self._journal_path)
        self._kept.clear()
        self._settled = True

    def close(self) -> None:
        super().close()
        if self._settled or (self._lock.held and not self.can_create):
            try:
                _osops.rmdir(self._kept.directory)
            except OSError:
                pass  # a later writer finds it, and uses it
        self._lock.release(remove=self._settled or not self.can_create)
        if self._settled or not self.can_create:
            try:
                _osops.rmdir(self._session)
            except OSError:
                pass  # another writer has come

    def abandon(self) -> None:
        self._lock.abandon()

    # -- chunks ---------------------------------------------------------------------------------

    def _chunks(self, path: str, array: ArrayMetadata) -> ZarrChunks:
        return _KeepingChunks(self._files, path, array, self._kept)

    def _erase(self, path: str) -> None:
        self._files.remove_tree(path)
        for key in [key for key in self._published if key.startswith(f"{path}/")]:
            del self._published[key]

    def images_of_name(self, name: str, /, *, had_array: bool) -> list[tuple[int, bytes]]:
        there = os.path.isdir(self._files.path(name))
        if not there and not had_array:
            return []
        keys = sorted(self._files.keys(name)) if there else []
        kept = [(self._kept.keep(key), key.encode()) for key in keys]
        if kept:
            self._kept.barrier()
        # Put back first, as the last: nothing of the new array stays beside them.
        return [*kept, (0, f"{name}/".encode())]

    def images(self) -> _PutBack:
        return _PutBack(self._files, self._kept)

    def images_kept(self) -> None:
        self._kept.barrier()

    def barrier(self) -> None:
        self._files.barrier()

    def committed(self) -> None:
        self._kept.clear()

    def remove_orphans(self, keep: Collection[int], /) -> None:
        """After a crash: delete what it has left that belongs to no array."""
        if not self._crashed or self._known is None:
            return
        self._files.note_all()
        metadata = self._known.metadata
        if self.can_create:
            names = list(leftovers.in_group(self._files, metadata, SESSION))
        else:
            names = list(leftovers.in_array(self._files, "", metadata.arrays["array"]))
        for name in names:
            (self._files.remove_tree if name.endswith("/") else self._files.remove)(name)
        # Durable with the next commit or flush, or at `settle`: until then they are found again.


async def _listed(store: Store) -> list[str]:
    return sorted([name async for name in store.list_dir("")])


_MEMORY: dict[str, MemoryStore] = {}
_MEMORY_LOCK = threading.Lock()


def open_backend(url: URL, *, writable: bool) -> ZarrBackend:
    """Open ``zarr:/dir``, ``zarr:/file.zip``, ``zarr:memory://name``, ``zarr:s3://bucket/x``."""
    path = url.path
    if path.startswith("file://"):
        path = path.removeprefix("file://")
    if "://" in path:
        if path.startswith("memory://"):
            with _MEMORY_LOCK:
                store: Store = _MEMORY.setdefault(path, MemoryStore())
            return ZarrBackend(str(url), store, writable=writable)
        from pmarray.backends._zarr_remote import remote_store

        return ZarrBackend(str(url), remote_store(url, writable=writable), writable=writable)
    if url.options:
        raise URLError(f"zarr: of a local path takes no options, got {url.options}")
    if not path:
        raise URLError("zarr: needs a directory, as in 'zarr:./run'")
    path = os.path.join(os.getcwd(), os.path.expanduser(path))
    if path.endswith(".zip"):
        from pmarray.backends._zarr_zip import ZipBackend

        return ZipBackend(path, writable=writable)
    return LocalZarrBackend(path, writable=writable)

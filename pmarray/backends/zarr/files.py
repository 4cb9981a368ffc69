"""A Zarr store in a local directory whose writes survive a power cut.

zarr-python's own store renames each object into place, and leaves it to the kernel when it becomes
durable. Here, writing an object is

1. write a temporary file beside it, past the kernel's cache where it is large,
2. make that file durable,
3. rename it over the old one,

and `barrier` makes the directories durable. So at any moment, power cut or not, an object has its
old contents or its new ones.

A directory is found after a power cut if its name is durable in the one above it, and so on up.
Who made it may have died before that, or never have cared: so the first time that a session has
something in a directory to be made durable, the directories above it are made so too. And what is
found to be as it should, such as an object that is gone already, may be the work of a process that
died: its directory is made durable no less.

A *before-image* of an object costs no copy: since a new version is a new file, the old one stays
when it is given a second name, in `keep`. Putting it back is renaming a third one into place.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from pmarray._system import osops
from pmarray._system.beneath import Below, entries, is_directory, status, walk
from pmarray._system.descriptor import Descriptor
from pmarray._system.files import barrier, keep_access, read_file, read_fully
from pmarray._system.keptfiles import KeptFiles, Parts
from pmarray._system.pastcache import write_new
from pmarray.backends.zarr.shards import WholeFile
from pmarray.errors import DamagedError, PoisonedError, SnapshotExpiredError, StorageError
from pmarray.locks import Lock

__all__ = ["NEW", "FileStore", "KeptObjects"]

NEW = ".pmarray-new"
"""Ends the names of temporary files."""


def _no_file(path: Below) -> DamagedError:
    """What is to be said where a chunk can be neither there nor missing."""
    return DamagedError(
        f"{path} is no file, or something in its path is no directory: something else was put in "
        "the place of one; restore it from a backup"
    )


class FileStore(Store):
    """Objects of a Zarr hierarchy in a local directory, which may be a stranger's.

    Parameters
    ----------
    root
        The directory, which need not exist yet.
    read_only
        Whether writing is refused.
    """

    supports_writes = True
    supports_deletes = True
    supports_listing = True

    def __init__(self, root: str, *, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self.root = Below(root)
        self._unsynced: set[str] = set()
        """Directories whose entries have changed since the last barrier."""
        self._reached: set[str] = {self.root}
        """Directories whose names, and those of all above, are durable, or will be by then."""
        self._books = Lock()
        self._kept = KeptFiles()
        """Objects of which parts were read."""

    def with_read_only(self, read_only: bool = False) -> FileStore:
        return FileStore(str(self.root), read_only=read_only)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileStore) and self.root == other.root

    __hash__ = None  # type: ignore[assignment]  # as all stores

    async def set(self, key: str, value: Buffer) -> None:
        await asyncio.to_thread(self.write, key, value.as_buffer_like())

    async def delete(self, key: str) -> None:
        await asyncio.to_thread(self.remove, key)

    async def delete_dir(self, prefix: str) -> None:
        await asyncio.to_thread(self.remove_tree, prefix)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        data = self.read(key)  # documents, which are small: another thread would cost more
        if data is None:
            return None
        make = (prototype or default_buffer_prototype()).buffer.from_bytes
        return make(data if byte_range is None else data[_slice(byte_range)])

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return await asyncio.to_thread(status, self.path(key)) is not None

    async def list(self) -> AsyncIterator[str]:
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in self.keys(prefix.rstrip("/")):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        for name in self.entries(prefix.rstrip("/")):
            yield name

    def path(self, key: str) -> Below:
        """Return the path of an object."""
        return self.root / key if key else self.root

    def read(self, key: str) -> bytes | None:
        """Return an object, or None where there is none."""
        path = self.path(key)
        try:
            return read_file(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except IsADirectoryError as error:
            raise _no_file(path) from error
        except OSError as error:
            raise StorageError(error.errno, f"cannot read: {error.strerror}", path) from error

    def read_parts_into(self, key: str, parts: Parts, nbytes: int) -> bool:
        """Fill memory with parts of an object that has `nbytes` bytes; False if there is none.

        Each part is given by its first byte, and by memory that is as long as it.
        """
        if self.read_parts_at_hand(key, parts, nbytes):
            return True
        path = self.path(key)
        descriptor = self._opened(path)
        if descriptor is None:
            return False
        fd = descriptor.fileno()
        if (found := os.fstat(fd).st_size) != nbytes:
            wrong = f"has {found} bytes and should have {nbytes}" if found else "is empty"
            raise DamagedError(f"{path} {wrong}: restore it from a backup")
        for start, out in parts:
            read_fully(fd, out.data, start, path=path)
        self._kept.keep(key, path, descriptor)
        return True

    def read_parts_at_hand(self, key: str, parts: Parts, nbytes: int) -> bool:
        """The same of an object that was read before, and is in memory.

        False where it has to be opened or waited for; the memory then holds anything.
        """
        return self._kept.read(key, parts, nbytes)

    def close(self) -> None:
        """Close what is open of the objects; another reader opens it again."""
        super().close()
        self._kept.clear()

    def whole(self, key: str) -> WholeFile | None:
        """Open an object, of which some will be read; None where there is none."""
        path = self.path(key)
        descriptor = self._opened(path)
        return None if descriptor is None else WholeFile(descriptor, path)

    def _opened(self, path: Below) -> Descriptor | None:
        """Open an object; it is closed when nobody has the descriptor any more."""
        try:
            (descriptor,) = map(Descriptor, map(osops.open_file, (path,)))  # see `Descriptor`
        except FileNotFoundError:
            return None
        except (NotADirectoryError, IsADirectoryError) as error:
            raise _no_file(path) from error
        except OSError as error:
            raise StorageError(error.errno, f"cannot read: {error.strerror}", path) from error
        return descriptor

    def entries(self, key: str) -> tuple[str, ...]:
        """Return the names in a directory, none if it is none."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return tuple(entries(self.path(key)))
        return ()

    def write(self, key: str, data: object) -> None:
        """Replace an object; steps 1 to 3."""
        path = self.path(key)
        temporary = path + NEW
        directory = path.parent
        try:
            self.make_directory(directory)
            try:
                fd = osops.open_file(temporary, write=True, create=True)
            except FileExistsError:
                osops.unlink(temporary)  # left by a crash
                fd = osops.open_file(temporary, write=True, create=True)
            try:
                write_new(fd, memoryview(data).cast("B"), path=temporary)  # type: ignore[arg-type]  # 1
                keep_access(path, fd)
                barrier(fd, path=path)  # 2
            finally:
                osops.close(fd)
            osops.rename(temporary, path)  # 3
        except PoisonedError:
            raise
        except OSError as error:
            self._forget(temporary)
            raise StorageError(error.errno, f"cannot write: {error.strerror}", path) from error
        self._kept.drop(key)
        self._note(directory)

    def remove(self, key: str) -> None:
        """Remove an object, if it is there."""
        path = self.path(key)
        try:
            osops.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise StorageError(error.errno, f"cannot delete: {error.strerror}", path) from error
        self._kept.drop(key)
        self.note(path)

    def remove_tree(self, prefix: str) -> None:
        """Remove everything below a name, and the name itself."""
        root = self.path(prefix.rstrip("/"))
        self._kept.clear()
        self.note(root)
        if not is_directory(root):
            return
        try:
            for directory, names in walk(root):
                for name in names:
                    osops.unlink(directory / name)
                osops.rmdir(directory)
                with self._books:
                    self._unsynced.discard(directory)
                    self._reached.discard(directory)
        except OSError as error:
            raise StorageError(error.errno, f"cannot delete: {error.strerror}", root) from error

    def is_directory(self, key: str) -> bool:
        """Whether there is a directory of this name."""
        return is_directory(self.path(key))

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the names of all objects below a name."""
        if self.is_directory(prefix):
            for directory, names in walk(self.path(prefix)):
                for name in names:
                    yield "/".join((directory / name).names)

    def make_directory(self, path: Below) -> None:
        """Make a directory with its parents; durable after `barrier`."""
        missing: list[str] = []
        while path.names and not is_directory(path):
            missing.append(path)
            path = path.parent
        above: str = path
        while not os.path.isdir(above):
            missing.append(above)
            above = os.path.dirname(above)
        for one in reversed(missing):
            try:
                osops.mkdir(one)
            except FileExistsError:
                if not (is_directory(one) if isinstance(one, Below) else os.path.isdir(one)):
                    raise
            self.note(one)

    def barrier(self) -> None:
        """Return when everything written and removed before is durable."""
        with self._books:
            directories, self._unsynced = self._unsynced, set()
        for directory in sorted(directories):
            try:
                osops.fsync_directory(directory)
            except (FileNotFoundError, NotADirectoryError):
                continue  # it is gone, and the one above it is here too
            except OSError as error:
                raise PoisonedError(
                    error.errno,
                    f"a barrier failed ({error.strerror}): what was written since the last flush "
                    "may be lost; close the group, repair the medium and open it again",
                    directory,
                ) from error

    def _note(self, directory: str) -> None:
        with self._books:
            self._unsynced.add(directory)
            while (
                directory not in self._reached and isinstance(directory, Below) and directory.names
            ):
                self._reached.add(directory)
                directory = directory.parent
                self._unsynced.add(directory)

    def note(self, path: str) -> None:
        """Note that the entry of `path` has changed, for the next barrier."""
        if isinstance(path, Below) and path.names:
            self._note(path.parent)
        else:
            self._note(os.path.dirname(path))

    def note_all(self) -> None:
        """Note every directory there is: a process that died may have changed any of them."""
        for directory, _ in walk(self.root):
            self._note(directory)

    @staticmethod
    def _forget(temporary: Below) -> None:
        try:
            osops.unlink(temporary)
        except OSError:
            pass  # it is overwritten by the next attempt


def _slice(byte_range: ByteRequest) -> slice:
    match byte_range:
        case RangeByteRequest(start, end):
            return slice(start, end)
        case OffsetByteRequest(offset):
            return slice(offset, None)
        case SuffixByteRequest(suffix):
            return slice(-suffix if suffix else None, None)
    raise TypeError(f"not a range of bytes: {byte_range!r}")


class KeptObjects:
    """Old versions of objects under numbers, for as long as a transaction may need them.

    Parameters
    ----------
    store
        Whose objects they are.
    directory
        Where they are kept, on the same file system.
    """

    def __init__(self, store: FileStore, directory: Below) -> None:
        self._store = store
        self.directory = directory
        self._last: int | None = None
        self._books = Lock()

    def keep(self, key: str) -> int:
        """Keep the object as it is now; return its number, or 0 where there is none.

        Durable after `barrier`.
        """
        path = self._store.path(key)
        try:
            fd = osops.open_file(path, write=True)
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise StorageError(error.errno, f"cannot open: {error.strerror}", path) from error
        try:
            barrier(fd, path=path)  # another program may have written it, and not seen to that
        finally:
            osops.close(fd)
        number = self._next()
        try:
            osops.link(path, self.path(number))
        except OSError as error:
            raise StorageError(
                error.errno, f"cannot keep the old version: {error.strerror}", path
            ) from error
        return number

    def _next(self) -> int:
        with self._books:
            if self._last is None:
                self._last = max(self._numbers(), default=0)
            self._last += 1
            return self._last

    def barrier(self) -> None:
        """Return when what was kept is durable."""
        try:
            osops.fsync_directory(self.directory)
        except OSError as error:
            raise PoisonedError(
                error.errno,
                f"a barrier failed ({error.strerror}); close the group, repair the medium and open "
                "it again",
                self.directory,
            ) from error

    def path(self, number: int) -> Below:
        """Return the path of a kept object."""
        return self.directory / str(number)

    def read(self, number: int) -> bytes:
        """Return a kept object."""
        try:
            return read_file(self.path(number))
        except FileNotFoundError as error:
            raise SnapshotExpiredError(
                "what this handle was reading has been replaced by later commits: call refresh() "
                "on the group to read the last one"
            ) from error
        except OSError as error:
            path = self.path(number)
            raise StorageError(error.errno, f"cannot read: {error.strerror}", path) from error

    def put_back(self, number: int, key: str) -> None:
        """Bring back the object that `keep` returned a number for; durable after a barrier.

        Number 0 stands for no object; of a key that ends in "/" nothing is left below it.
        """
        if not number:
            (self._store.remove_tree if key.endswith("/") else self._store.remove)(key)
            return
        path, kept = self._store.path(key), self.path(number)
        temporary = path + NEW
        self._store.note(path)
        try:
            old, now = status(kept), status(path)
            if old is None:
                raise DamagedError(
                    f"{kept} is missing, though the journal counts on it: restore the group from "
                    "a backup"
                )
            if now is not None and os.path.samestat(now, old):
                return  # rename does nothing between two names of one file
            self._store.make_directory(path.parent)
            if status(temporary) is not None:
                osops.unlink(temporary)
            osops.link(kept, temporary)
            osops.rename(temporary, path)
        except OSError as error:
            raise StorageError(error.errno, f"cannot put back: {error.strerror}", path) from error

    def clear(self) -> None:
        """Forget all of them; a failure leaves files that harm nothing."""
        for number in self._numbers():
            try:
                osops.unlink(self.path(number))
            except OSError:
                pass

    def _numbers(self) -> list[int]:
        with suppress(FileNotFoundError, NotADirectoryError):
            return [int(name) for name in entries(self.directory) if name.isdecimal()]
        return []

"""``zarr:/file.zip`` - a whole hierarchy in one file, which is written once.

A zip archive has its table of contents at the end, so adding to one overwrites the table, and a
crash before there is a new one loses everything. Therefore:

1. A new archive is written under a temporary name beside its own.
2. What is written again, or deleted, leaves the table of contents. Its bytes stay in the file.
3. When the group closes, the archive is made durable and gets its name. Until then there is none.
4. An archive that has its name is never changed.
"""

from __future__ import annotations

import errno
import os
import re
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import MemoryStore, ZipStore

from pmarray._formats.metadata import Checkpoint, GroupMetadata
from pmarray._system import osops
from pmarray._system.beneath import exists
from pmarray._system.files import MAX_UNBACKED_BYTES, MIN_BACKED, barrier
from pmarray.backends.zarr.store import ZarrBackend
from pmarray.errors import DamagedError, PMArrayError, ReadOnlyError, StorageError

__all__ = ["ArchiveStore", "ZipBackend"]

_UNFINISHED: set[zipfile.ZipFile] = set()
"""Python closes a file that nobody can reach, and may do so before the group that is dropped with
it is closed, and still has to write to it."""


class ArchiveStore(ZipStore):
    """zarr-python's store, in which objects can be replaced and deleted, and errors are ours.

    Parameters
    ----------
    path
        The file.
    new
        Whether it is to be written, and is empty; otherwise it is read only.
    """

    supports_deletes = True

    def __init__(self, path: str, *, new: bool = False) -> None:
        super().__init__(path, mode="w" if new else "r")
        with self._errors("open"):
            osops.close(osops.open_file(path))  # a FIFO would be waited for
            self._sync_open()
        if new:
            _UNFINISHED.add(self._zf)

    def with_read_only(self, read_only: bool = False) -> Self:
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)  # the same open file, and the same lock
        view._read_only = read_only
        return view

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        with self._errors("read"):
            self._refuse_bomb(key)
            return await super().get(key, prototype, byte_range)

    def _refuse_bomb(self, key: str) -> None:
        """An object that is compressed once more, by the archive, is held to what files are."""
        info = self._zf.NameToInfo.get(key)
        if info is not None and info.compress_size > os.stat(self.path).st_size:
            raise DamagedError(f"{key} in {self.path} is longer than the archive")
        if info is not None and info.file_size > max(
            MAX_UNBACKED_BYTES, MIN_BACKED * info.compress_size
        ):
            raise DamagedError(
                f"{key} in {self.path} has {info.file_size} bytes, compressed to "
                f"{info.compress_size}: unpack it, and pack it without compression"
            )

    async def set(self, key: str, value: Buffer) -> None:
        with self._errors("write"), self._lock:
            self._forget(key)
            await super().set(key, value)

    async def delete(self, key: str) -> None:
        self._check_writable()
        with self._lock:
            self._forget(key)

    async def delete_dir(self, prefix: str) -> None:
        self._check_writable()
        with self._lock:
            for key in self._zf.namelist():
                if not prefix or key.startswith(f"{prefix.rstrip('/')}/"):
                    self._forget(key)

    def _forget(self, key: str) -> None:
        """Take an object off the table of contents; step 2."""
        info = self._zf.NameToInfo.pop(key, None)
        if info is not None:
            self._zf.filelist.remove(info)

    def finish(self) -> None:
        """Write the table of contents, and make the file durable."""
        with self._errors("write"):
            self.close()
            fd = osops.open_file(str(self.path), write=True)
            try:
                barrier(fd, path=str(self.path))
            finally:
                osops.close(fd)

    def close(self) -> None:
        _UNFINISHED.discard(self._zf)
        super().close()

    def disconnect(self) -> None:
        """In a forked child: nothing that Python still does to the file may reach it."""
        if self._zf.fp is not None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, self._zf.fp.fileno())
            os.close(nowhere)

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except PMArrayError:
            raise
        except OSError as error:
            text = f"cannot {what}: {error.strerror}"
            raise StorageError(error.errno, text, str(self.path)) from error
        except (MemoryError, GeneratorExit):
            raise
        except Exception as error:  # whatever arbitrary bytes lead to in zipfile
            raise DamagedError(
                f"{self.path} is damaged, or no zip archive: {error}; restore it from a backup"
            ) from error


class ZipBackend(ZarrBackend):
    """One group in a zip archive."""

    shared = False

    def __init__(self, path: str, *, writable: bool) -> None:
        self._path = path
        self._new: ArchiveStore | None = None
        self._exists = exists(path)
        store: Any = ArchiveStore(path) if self._exists else MemoryStore()
        super().__init__(path, store, writable=writable)

    def load(self) -> Checkpoint | None:
        if not self._exists and self._new is None:
            return None  # and no file is made for saying so
        return super().load()

    def lock(self) -> None:
        if self._exists:
            raise ReadOnlyError(
                f"{self._path} is complete, and an archive is written only once: copy it into a "
                "directory, with pmarray.copy, to change the copy"
            )
        if self._new is not None:
            return
        directory, name = os.path.split(self._path)
        temporary = os.path.join(directory, f".{name}-{uuid.uuid4().hex[:8]}")
        try:
            osops.close(osops.open_file(temporary, write=True, create=True))
        except OSError as error:
            raise StorageError(
                error.errno, f"cannot create: {error.strerror}", self._path
            ) from error
        self._store = self._new = ArchiveStore(temporary, new=True)  # 1

    def orphans(self, metadata: GroupMetadata, /) -> list[str]:
        """Archives beside this one that nobody has finished: by a crash, or not yet."""
        directory, name = os.path.split(self._path)
        unfinished = re.compile(rf"\.{re.escape(name)}-[0-9a-f]{{8}}")
        return sorted(
            os.path.join(directory, one)
            for one in os.listdir(directory)
            if unfinished.fullmatch(one)
        )

    def settle(self) -> None:
        if self._new is None:
            return
        temporary = str(self._new.path)
        self._new.finish()  # 3
        try:
            osops.link(temporary, self._path)  # which overwrites nothing, as a rename would
            osops.unlink(temporary)
            osops.fsync_directory(os.path.dirname(self._path))
        except FileExistsError as error:
            raise StorageError(
                errno.EEXIST,
                f"somebody has made a file of this name; what was written here is in {temporary}",
                self._path,
            ) from error
        except OSError as error:
            text = f"cannot create: {error.strerror}; what was written is in {temporary}"
            raise StorageError(error.errno, text, self._path) from error
        finally:
            self._new = None
            self._store = MemoryStore()

    def close(self) -> None:
        self._store.close()
        if self._new is not None:  # not everything could be written
            osops.unlink(str(self._new.path))
            self._new = None

    def abandon(self) -> None:
        if isinstance(self._store, ArchiveStore):
            self._store.disconnect()

"""``memmap:/dir`` - a directory of ``.npy`` files on any file system; a bare path means the same.

::

    dir/
      pmarray.json          metadata, the authority; replaced in one durable step
      lock                  locked by the one writer; its process id, and the readers' counter
      journal               before-images and commits, once there was a transaction
      data/000001.npy       one file an array, numbered, never renamed
      array.npy             a symbolic link to the data file of the array "array"

A data file is a valid ``.npy``: a header of one block, then the items. Its header is a
convenience for other programs, rewritten at `flush`; shapes are those of the metadata.

Data are written with direct I/O where the file system has it and the chunks are whole blocks,
through the page cache otherwise, and one file only ever one of the two ways. They are read through
the page cache, which the kernel keeps coherent with direct writes. Files are never stored to
through a mapping, since the kernel may write a dirty page at any moment.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from pmarray._formats.metadata import ArrayMetadata, Checkpoint, GroupMetadata
from pmarray._geometry.layout import BLOCK_BYTES
from pmarray._system import osops
from pmarray._system.beneath import Below, entries, is_directory, status
from pmarray._system.counter import Counter, await_readers
from pmarray._system.files import occupied_nbytes, read_file, replace_durably
from pmarray._system.lockfile import LockFile
from pmarray._url import URL, whole_path
from pmarray.backends.files import npyfile
from pmarray.backends.files.region import FileRegion, if_there, make_journal_file
from pmarray.errors import DamagedError, ForeignDataError, StorageError, URLError

__all__ = ["MemmapBackend", "open_backend"]

METADATA_NAME = "pmarray.json"
LOCK_NAME = "lock"
DATA_NAME = "data"
JOURNAL_NAME = "journal"


class MemmapBackend:
    """One group in a directory."""

    can_create = True
    has_journal = True

    def __init__(
        self, directory: str, *, writable: bool, direct: bool = True, sparse: bool = False
    ) -> None:
        self.directory = directory
        self._writable = writable
        self._direct = direct
        self._sparse = sparse
        self._metadata_path = self._path(METADATA_NAME)
        self._lock = LockFile(self._path(LOCK_NAME), directory)
        self._counter: Counter | None = None
        """Of a reader."""

    # -- metadata -------------------------------------------------------------------------------

    def load(self) -> Checkpoint | None:
        try:
            data = read_file(self._metadata_path)
        except FileNotFoundError:
            return self.load() if self._was_made_meanwhile() else None
        except NotADirectoryError as error:
            raise ForeignDataError(f"{self.directory} is not a directory") from error
        except OSError as error:
            text = f"cannot open: {error.strerror}"
            raise StorageError(error.errno, text, self._metadata_path) from error
        return Checkpoint.from_bytes(data, self._metadata_path)

    def _was_made_meanwhile(self) -> bool:
        """Whether there is a group by now; raises where the directory is something else.

        Without metadata it may only hold what a crash during creation leaves.
        """
        try:
            found = set(entries(self.directory))
        except FileNotFoundError:
            return False
        except NotADirectoryError as error:
            raise ForeignDataError(
                f"{self.directory} is a file, and not a .npy file; a group is a directory"
            ) from error
        ours = {LOCK_NAME, DATA_NAME, METADATA_NAME + ".new"}
        data = self._path(DATA_NAME)
        if found - ours or (DATA_NAME in found and (not is_directory(data) or entries(data))):
            if METADATA_NAME in entries(self.directory):
                return True  # another process has made it since, and gone on
            some = ", ".join(sorted(found)[:4])
            holds = f"{self.directory} holds {some} but no {METADATA_NAME}"
            if found & {"zarr.json", ".zgroup", ".zarray"}:
                raise ForeignDataError(
                    f"{holds}: it is a Zarr hierarchy, open it as 'zarr:{self.directory}'"
                )
            raise ForeignDataError(
                f"{holds}: it is no group, and nothing was changed; choose another directory"
            )
        return False

    def save(self, checkpoint: Checkpoint, /) -> None:
        replace_durably(self._metadata_path, checkpoint.to_bytes())

    def admit(self, array: ArrayMetadata, /) -> None:
        pass

    def stamp(self) -> object:
        # Every save is a new file: its number may come again, but not with the same time.
        found = status(self._metadata_path)
        if found is None:
            raise StorageError(
                errno.ENOENT,
                "the metadata are gone: the group was moved or deleted; open it where it is now",
                self._metadata_path,
            )
        return found.st_ino, found.st_mtime_ns, found.st_size

    def open_journal(self, *, create: bool) -> FileRegion | None:
        path = self._path(JOURNAL_NAME)

        def region() -> FileRegion:
            return self._region(path, 0, writable=self._writable, aligned=True)

        if not create:
            return if_there(region)
        make_journal_file(path)
        return region()

    # -- the lock -------------------------------------------------------------------------------

    def lock(self) -> None:
        self._make_directories()
        if self._lock.acquire() and status(self._metadata_path) is not None:
            await_readers()
        try:
            self._lock.advance()
        except BaseException:
            self._lock.release()
            raise

    def advance(self) -> None:
        self._lock.advance()

    def counter(self) -> Counter | None:
        if self._counter is None or self._counter.lost:
            try:
                self._counter = Counter(self._path(LOCK_NAME))
            except OSError:
                self._counter = None
        return self._counter

    def _make_directories(self) -> None:
        """Make the group's directories, durably, with whatever parents are missing.

        Also those that are there already, as long as there are no metadata: a process may have
        died between making one and making it durable.
        """
        made = []
        path = directory = os.path.abspath(self.directory)
        data = self._path(DATA_NAME)
        while not os.path.isdir(path):
            made.append(path)
            path = os.path.dirname(path)
        if status(data) is None:
            made.insert(0, data)
        unsure = []
        if status(self._metadata_path) is None:
            unsure = [directory, os.path.dirname(directory)]
        try:
            for path in reversed(made):
                try:
                    osops.mkdir(path)
                except FileExistsError:
                    continue  # another process was faster
            for path in dict.fromkeys([*map(os.path.dirname, made), *unsure]):
                osops.fsync_directory(path)
        except OSError as error:
            raise StorageError(
                error.errno, f"cannot make a directory: {error.strerror}", path
            ) from error

    # -- regions --------------------------------------------------------------------------------

    def create(self, file_id: int, nbytes: int, /, *, aligned: bool) -> FileRegion:
        path = self.data_path(file_id)
        try:
            if status(path) is not None:
                osops.unlink(path)  # left by a crash: no metadata named it
            fd = osops.open_file(path, write=True, create=True)
            try:
                osops.fallocate(fd, 0, BLOCK_BYTES)
            finally:
                osops.close(fd)
            region = self._region(path, BLOCK_BYTES, writable=True, aligned=aligned)
            try:
                region.reserve(nbytes)
                osops.fsync_directory(self._path(DATA_NAME))
            except BaseException:
                region.close()
                raise
        except StorageError:
            self._remove_quietly(path)
            raise
        except OSError as error:
            self._remove_quietly(path)
            raise StorageError(error.errno, f"cannot create: {error.strerror}", path) from error
        return region

    def open(self, file_id: int, nbytes: int, /, *, aligned: bool) -> FileRegion:
        path = self.data_path(file_id)
        try:
            region = self._region(path, BLOCK_BYTES, writable=self._writable, aligned=aligned)
        except StorageError as error:
            if error.errno != errno.ENOENT:
                raise
            raise DamagedError(f"{path} is missing, though {METADATA_NAME} names it") from error
        if region.capacity < nbytes:
            region.close()
            raise DamagedError(
                f"{path} is truncated: it holds {region.capacity} bytes of data, "
                f"{METADATA_NAME} expects {nbytes}"
            )
        return region

    def _region(self, path: Below, offset: int, *, writable: bool, aligned: bool) -> FileRegion:
        """Open the bytes of a file from `offset` on."""
        # A journal has its room before it is written to: what makes a rollback must not fail.
        return FileRegion(
            path,
            offset,
            writable=writable,
            aligned=aligned and self._direct,
            sparse=self._sparse and offset > 0,
        )

    def remove(self, file_id: int, /) -> None:
        self._remove_quietly(self.data_path(file_id))

    def remove_orphans(self, metadata: GroupMetadata, /) -> None:
        for path in self.orphans(metadata):
            self._remove_quietly(path)

    def orphans(self, metadata: GroupMetadata, /) -> list[Below]:
        names = {f"{file_id:06d}.npy" for file_id in metadata.file_ids}
        data = self._path(DATA_NAME)
        return [
            data / entry
            for entry in (entries(data) if is_directory(data) else ())
            if entry not in names and entry.removesuffix(".npy").isdigit()
        ]

    def _remove_quietly(self, path: Below) -> None:
        try:
            osops.unlink(path)
        except OSError:
            pass  # the space is lost until somebody deletes the file; nothing refers to it

    def publish(self, names: Mapping[str, int], /) -> None:
        """Link ``name.npy`` to the data files; links are no authority and need no barrier."""
        wanted = {f"{name}.npy": f"{DATA_NAME}/{i:06d}.npy" for name, i in names.items()}
        try:
            for entry in entries(self.directory):
                path = self._path(entry)
                if entry.endswith(".npy") and os.path.islink(path):
                    if wanted.get(entry) == os.readlink(path):
                        del wanted[entry]
                    elif os.readlink(path).startswith(DATA_NAME + "/"):
                        osops.unlink(path)
            for entry, target in wanted.items():
                if status(self._path(entry)) is None:
                    osops.symlink(target, self._path(entry))
        except OSError as error:
            raise StorageError(
                error.errno, f"cannot link: {error.strerror}", self.directory
            ) from error

    def close(self) -> None:
        self._counter = None
        self._lock.release()

    def refuse_lost_lock(self) -> None:
        self._lock.refuse_lost()

    def abandon(self) -> None:
        self._lock.abandon()

    def occupied_nbytes(self, name: str, array: ArrayMetadata, /) -> int:
        # What is reserved ahead is not the array's.
        return min(array.layout.nbytes, occupied_nbytes(self.data_path(array.file_id)))

    def _path(self, name: str) -> Below:
        return Below(self.directory) / name

    def data_path(self, file_id: int) -> Below:
        """Return the path of a data file."""
        return self._path(f"{DATA_NAME}/{file_id:06d}.npy")


def open_backend(url: URL, *, writable: bool) -> MemmapBackend | npyfile.NpyFileBackend:
    """Open ``memmap:/dir``, or the one file ``memmap:/dir/x.npy``.

    ``?direct=no`` writes through the page cache also where direct I/O would work. ``?sparse=yes``
    reserves no room on the disk for what is not written yet.
    """
    options = {"direct": "yes", "sparse": "no", **url.options}
    if len(options) > 2 or not set(options.values()) <= {"yes", "no"}:
        raise URLError(f"memmap: takes ?direct=yes or no and ?sparse=yes or no, got {url.options}")
    if not url.path:
        raise URLError("memmap: needs a directory, as in 'memmap:./run'")
    # Whole, since files are opened later too, when the process may have moved elsewhere.
    path = whole_path(url.path)
    if path.endswith(".npy") and not os.path.isdir(path):
        return npyfile.NpyFileBackend(path, writable=writable)
    return MemmapBackend(
        path,
        writable=writable,
        direct=options["direct"] == "yes",
        sparse=options["sparse"] == "yes",
    )

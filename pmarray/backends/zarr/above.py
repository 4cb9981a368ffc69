"""The lock of a group in a directory, for who writes to one of its arrays by the array's own name.

``zarr:/dir/x`` and ``zarr:/dir#x`` are the same array, and only one of them may be written to;
``zarr:/dir/y`` beside it is another.
"""

from __future__ import annotations

import errno
import os

from pmarray._formats.metadata import parse_json
from pmarray._system import osops
from pmarray._system.beneath import Below, status
from pmarray._system.lockfile import LockFile
from pmarray.backends.zarr.files import FileStore
from pmarray.errors import ConflictError, StorageError

__all__ = ["LockAbove"]

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class LockAbove:
    """The lock of the group that an array lies in, if it lies in one.

    Parameters
    ----------
    directory
        Of the array.
    session
        What a group calls the directory of its writer.
    """

    def __init__(self, directory: str, session: str) -> None:
        # By whatever name it was opened, there is one place where it lies.
        self._group = os.path.dirname(os.path.realpath(directory))
        self._session = Below(self._group) / session
        self._lock = LockFile(self._session / "lock", self._group)

    def acquire(self) -> None:
        """Take it; where nothing can be made in the group's directory, nobody else can either.

        Raises
        ------
        GroupLockedError
            Somebody is writing to the group.
        ConflictError
            Somebody was, and has died.
        """
        files = FileStore(self._group, read_only=False)
        try:
            if parse_json(files.read("zarr.json") or b"{}")["node_type"] != "group":
                return
        except (ValueError, KeyError, TypeError):
            return
        while True:
            try:
                files.make_directory(self._session)
                self._lock.acquire(shared=True)  # others may write to other arrays
                break
            except (OSError, StorageError) as error:
                if error.errno in _FORBIDDEN:
                    return
                if error.errno != errno.ENOENT:
                    raise  # else a writer that ended has just removed it
        if status(self._session / "pmarray.json") is not None:
            self._lock.release()
            raise ConflictError(
                f"a writer of the group {self._group} has died: open the group for writing, which "
                "recovers it, before you write to its arrays by names of their own"
            )

    def refuse_lost(self) -> None:
        """See `LockFile`."""
        self._lock.refuse_lost()

    def abandon(self) -> None:
        """See `LockFile`."""
        self._lock.abandon()

    def release(self) -> None:
        """Give it back, with all that was made for it."""
        if self._lock.held:
            self._lock.release(remove=True)
            try:
                osops.rmdir(self._session)
            except OSError:
                pass  # another writer has come

"""``icechunk:/dir``, ``icechunk:s3://bucket/prefix`` - Zarr arrays in an Icechunk repository.

Icechunk versions a whole Zarr hierarchy: every commit is a snapshot, and a branch is a line of
them. Its commit is ours: what was written since the last one appears in one step, at `flush` or at
the end of a transaction, for every reader that opens the group or refreshes it afterwards. Readers
stay on the snapshot that they opened. There is no lock: several processes write at a time, and
what they commit is rebased on what the others have committed meanwhile, unless both have written
the same chunk, or the same metadata; then the second one gets `ConflictError`.

``?branch=name`` works on another branch than main; ``?tag=name`` and ``?snapshot=id`` open what
once was, to read.

Two commits at one instant are kept apart by the storage; in a local directory, where Icechunk's
cannot do that, by a lock for as long as a commit takes, which other programs do not know.

Durable is what the storage makes durable. Icechunk does not call fsync in a local directory, so
that a commit there survives the death of the process, and not a power cut. An object store has
kept what it has acknowledged.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import icechunk
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from pmarray._formats.metadata import ArrayMetadata, Checkpoint
from pmarray._system.beneath import exists
from pmarray._system.lockfile import LockFile
from pmarray._url import URL, whole_path
from pmarray.backends._history import HistoryEntry
from pmarray.backends.zarr import translation as zarr_format
from pmarray.backends.zarr.chunks import ZarrChunks
from pmarray.backends.zarr.remote import RemoteStore
from pmarray.backends.zarr.store import ZarrBackend
from pmarray.errors import (
    ConflictError,
    ForeignDataError,
    GroupExistsError,
    GroupLockedError,
    GroupNotFoundError,
    ReadOnlyError,
    StorageError,
    URLError,
)
from pmarray.locks import Lock

__all__ = ["IcechunkBackend", "open_backend"]

_OPTIONS = frozenset({"branch", "tag", "snapshot"})
_PATIENCE_S = 60.0
_FIRST_FILES = frozenset({f"{kind}/1CECHNKREP0F1RSTCMT0" for kind in ("snapshots", "transactions")})
"""What Icechunk writes first of all; the branch, or file `repo`, makes it a repository."""

if "ICECHUNK_LOG" not in os.environ:
    # It warns on stderr at each opening of a directory; what it warns of is in our own hands.
    icechunk.set_logs_filter("icechunk=error")


class _SessionStore(RemoteStore):
    """The store of the session of the moment: each commit ends one."""

    def _with_store(self, store: Store) -> _SessionStore:
        return _SessionStore(store, self._where)

    @contextmanager
    def _errors(self, what: str, key: str = "") -> Iterator[None]:
        with _errors(self._where, f"cannot {what} {key}" if key else f"cannot {what}"):
            yield

    def move_to(self, session: icechunk.Session) -> None:
        self._store = session.store


class _Chunks(ZarrChunks):
    """The chunks of an array whose metadata Icechunk must have before it takes a chunk.

    Until a commit saves the array's own, they never say less than before: chunks that it has lost
    by shrinking are deleted then, and Icechunk deletes none outside of the array.
    """

    def grow(self, array_shape: tuple[int, ...], /) -> None:
        reached = zip(self._metadata.shape, array_shape, strict=False)
        self._metadata = self._metadata.update_shape(tuple(max(extents) for extents in reached))
        for key, data in zarr_format.documents(self._metadata).items():
            buffer = default_buffer_prototype().buffer.from_bytes(data)
            sync(self._store.set(f"{self._path}/{key}" if self._path else key, buffer))


class IcechunkBackend(ZarrBackend):
    """One group in an Icechunk repository."""

    commits = True
    shared = False  # a session of the repository is this writer's own
    survives_fork = False  # the threads of Icechunk do not

    def __init__(
        self,
        url: URL,
        storage: icechunk.Storage,
        directory: str | None,
        config: icechunk.RepositoryConfig,
        *,
        writable: bool,
    ) -> None:
        self._url = str(url)
        self._storage = storage
        self._directory = directory
        self._config = config
        self._at: dict[str, str] = {
            name: url.options[name] for name in ("tag", "snapshot") if name in url.options
        }
        self._branch = url.options.get("branch", "main")
        self._repository: icechunk.Repository | None = None
        self._session: icechunk.Session | None = None
        self._base: str | None = None
        """The snapshot that the session started from."""
        self._merged = False
        with _errors(self._url):
            if icechunk.Repository.exists(storage):
                self._repository = icechunk.Repository.open(storage, config)
        empty = icechunk.Repository.create(icechunk.in_memory_storage())
        super().__init__(
            self._url,
            _SessionStore(empty.readonly_session("main").store, self._url),
            writable=writable,
        )

    # -- metadata -------------------------------------------------------------------------------

    def load(self) -> Checkpoint | None:
        if self._repository is None:
            return None
        if self._session is None or self._session.read_only:
            self._move_to(self._readonly(self._repository))
        return super().load()

    def _readonly(self, repository: icechunk.Repository) -> icechunk.Session:
        with _errors(self._url):
            try:
                if "snapshot" in self._at:
                    return repository.readonly_session(snapshot_id=self._at["snapshot"])
                if "tag" in self._at:
                    return repository.readonly_session(tag=self._at["tag"])
                return repository.readonly_session(branch=self._branch)
            except icechunk.IcechunkError as error:
                at = self._at or {"branch": self._branch}
                raise GroupNotFoundError(f"{self._url} has no {at}: {_text(error)}") from error

    def _move_to(self, session: icechunk.Session) -> None:
        self._session = session
        self._base = session.snapshot_id
        store = self._store
        assert isinstance(store, _SessionStore)
        store.move_to(session)
        self._published.clear()

    def save(self, checkpoint: Checkpoint, /) -> None:
        with _errors(self._url):
            super().save(checkpoint)
        self._commit("pmarray: flush")

    def _commit(self, message: str) -> None:
        session, repository = self._session, self._repository
        assert session is not None
        assert repository is not None
        if not session.has_uncommitted_changes:
            return
        base = self._base
        with _errors(self._url), self._turn():
            try:
                found = session.commit(message, rebase_with=icechunk.ConflictDetector())
            except (icechunk.ConflictError, icechunk.RebaseFailedError) as error:
                raise ConflictError(
                    f"another writer has committed to the same chunks or metadata of {self._url} "
                    f"({_text(error)}): call discard() to go on from what it left, without what "
                    "this group has written since its last commit"
                ) from error
            parent = next(iter(repository.ancestry(snapshot_id=found))).parent_id
        self._merged = parent != base
        self._move_to(repository.writable_session(self._branch))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Commit one after another where the storage cannot see to that itself."""
        if self._directory is None:
            yield
            return
        lock = LockFile(os.path.join(self._directory, "pmarray.lock"), self._directory)
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                lock.acquire()
                break
            except GroupLockedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
        try:
            yield
        finally:
            lock.release()

    def merged(self) -> Checkpoint | None:
        """Return what is there now if the last commit was rebased on those of others."""
        if not self._merged:
            return None
        self._merged = False
        return self.load()

    def has_changes(self) -> bool:
        """Whether something waits for a commit."""
        with _errors(self._url):
            return self._session is not None and self._session.has_uncommitted_changes

    def roll_back(self) -> None:
        """Forget what was written since the last commit."""
        if self._repository is not None and self._session is not None:
            with _errors(self._url):
                self._move_to(self._repository.writable_session(self._branch))

    def stamp(self) -> object:
        return self._base

    def _ours(self, checkpoint: Checkpoint) -> dict[str, Any]:
        # Nothing that changes with every commit: two writers would always be in conflict.
        return {"uuid": checkpoint.metadata.uuid}

    # -- writers --------------------------------------------------------------------------------

    def lock(self) -> None:
        """Begin to write; there is no lock to take."""
        if self._at:
            raise ReadOnlyError(
                f"{self._url} is a snapshot of the past: open a branch to write, with ?branch="
            )
        super().lock()
        with _errors(self._url):
            self._repository = self._repository or self._make_repository()
            try:
                session = self._repository.writable_session(self._branch)
            except icechunk.IcechunkError as error:
                raise GroupNotFoundError(
                    f"{self._url} has no branch {self._branch!r} ({_text(error)}): make it with "
                    "group.create_branch"
                ) from error
        self._move_to(session)

    def _make_repository(self) -> icechunk.Repository:
        """Create it, or open the one that another process has created meanwhile."""
        place = self._directory
        before = os.listdir(place) if place is not None and os.path.isdir(place) else []
        try:
            return icechunk.Repository.open_or_create(self._storage, self._config)
        except icechunk.IcechunkError as error:
            if not before or icechunk.Repository.exists(self._storage):
                raise
            assert place is not None
            raise ForeignDataError(
                f"{place} holds what is left of a repository whose making was cut short: delete "
                "it, and open it again"
                if _files_below(place) <= _FIRST_FILES
                else f"{place} holds files, and no repository that Icechunk knows: name an empty "
                "directory, or restore the repository from a backup"
            ) from error

    def create_chunks(self, name: str, array: ArrayMetadata, /) -> ZarrChunks:
        chunks = super().create_chunks(name, array)
        chunks.grow(array.shape)
        return chunks

    def _strangers(self, name: str) -> tuple[str, ...]:
        (node,) = self._read([f"{name}/zarr.json"])  # there is nothing without one
        return () if node is None else self._listing().entries(name)

    def _chunks(self, path: str, array: ArrayMetadata) -> ZarrChunks:
        return _Chunks(self._store, path, array)

    def history(self) -> Iterator[HistoryEntry]:
        """Yield the commits of the branch, latest first."""
        if self._repository is None:
            return
        with _errors(self._url):
            session = self._readonly(self._repository)
            for one in self._repository.ancestry(snapshot_id=session.snapshot_id):
                yield HistoryEntry(one.id, one.parent_id, one.written_at, one.message)

    def create_tag(self, name: str) -> None:
        """Give the last commit a name for good."""
        self._name_snapshot(name, "create_tag")

    def create_branch(self, name: str) -> None:
        """Begin a branch at the last commit."""
        self._name_snapshot(name, "create_branch")

    def _name_snapshot(self, name: str, method: str) -> None:
        if self._repository is None:
            raise GroupNotFoundError(f"there is no repository at {self._url} yet")
        session, kind = self._readonly(self._repository), method.removeprefix("create_")
        with _errors(self._url):
            if name in (self._repository.list_tags() | self._repository.list_branches()):
                raise GroupExistsError(
                    f"{self._url} has a tag or a branch {name!r} already: give the {kind} another "
                    "name"
                )
            getattr(self._repository, method)(name, session.snapshot_id)

    def close(self) -> None:
        self._session = None


@contextmanager
def _errors(url: str, what: str = "Icechunk refused") -> Iterator[None]:
    """Turn what Icechunk raises into our errors: its own are no `OSError`.

    A fault in its core is not even an `Exception`, and would pass by everybody who catches those.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, icechunk.IcechunkError) and not _is_panic(error):
            raise
        raise StorageError(
            _errno(error),
            f"{what} ({_text(error)}); what was not committed is still in memory: repair the "
            "storage, then flush again or read again",
            url,
        ) from error


def _errno(error: BaseException) -> int:
    """The number of the system's error, which Icechunk has in its text alone."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else errno.EIO


def _files_below(directory: str) -> set[str]:
    return {
        os.path.relpath(os.path.join(at, name), directory)
        for at, _, names in os.walk(directory)
        for name in names
    }


def _is_panic(error: BaseException) -> bool:
    # The class cannot be imported.
    return type(error).__name__ == "PanicException" and not isinstance(error, Exception)


def _text(error: BaseException) -> str:
    """The first line that says something; the rest is a trace of another language."""
    lines = [line.strip(" x|\N{MULTIPLICATION SIGN}") for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)


_MEMORY: dict[str, icechunk.Storage] = {}
_MEMORY_LOCK = Lock()


def open_backend(url: URL, *, writable: bool) -> IcechunkBackend:
    """Open ``icechunk:/dir``, ``icechunk:memory://name`` or ``icechunk:s3://bucket/prefix``."""
    path = url.path
    directory: str | None = None
    config = icechunk.RepositoryConfig.default()
    if path.startswith("memory://"):
        unknown = set(url.options) - _OPTIONS
        with _MEMORY_LOCK:
            storage = _MEMORY.setdefault(path, icechunk.in_memory_storage())
    elif path.startswith("s3://"):
        s3 = {"region", "endpoint", "anonymous", "max_retries"}
        unknown = set(url.options) - _OPTIONS - s3
        bucket, _, prefix = path.removeprefix("s3://").partition("/")
        endpoint = url.options.get("endpoint")
        anonymous = url.options.get("anonymous", "no") == "yes"
        tries = 1 + _count(url.options.get("max_retries", "10"))
        config.storage = icechunk.StorageSettings(
            retries=icechunk.StorageRetriesSettings(max_tries=tries)
        )
        storage = icechunk.s3_storage(
            bucket=bucket,
            prefix=prefix or None,
            region=url.options.get("region"),
            endpoint_url=endpoint,
            allow_http=bool(endpoint and endpoint.startswith("http://")),
            force_path_style=endpoint is not None,
            anonymous=anonymous or None,
            from_env=None if anonymous else True,
        )
    elif "://" in path:
        raise URLError(f"icechunk: takes a directory, memory:// or s3://, not {path!r}")
    else:
        if not path:
            raise URLError("icechunk: needs a directory, as in 'icechunk:./run'")
        unknown = set(url.options) - _OPTIONS
        directory = whole_path(path)
        if exists(directory) and not os.path.isdir(directory):
            raise ForeignDataError(f"{directory} is a file; a repository is a directory")
        if not writable and not os.path.isdir(directory):
            raise GroupNotFoundError(f"there is no group at {url}")  # opening would make one
        with _errors(str(url)):
            storage = icechunk.local_filesystem_storage(directory)
    if unknown:
        raise URLError(f"icechunk: does not know the options {', '.join(sorted(unknown))}")
    return IcechunkBackend(url, storage, directory, config, writable=writable)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise URLError(f"max_retries={text}: give a number")
    return int(text)

"""Notes what passes through `pmarray._system.osops`, and really happens in a real directory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pmarray._system import osops, pmem
from tests.crash.events import (
    Barrier,
    DirectoryBarrier,
    Entries,
    Event,
    Mark,
    Persist,
    Resize,
    RigError,
    Store,
    Write,
)
from tests.crash.mappings import Mappings, Place
from tests.crash.simdisk import ROOT, Disk

__all__ = ["LEFT_OUT", "Recorder"]

LEFT_OUT = object()
"""What a barrier returns that `mutation` has left out; it is not noted."""


class Recorder:
    """A context manager: inside it every change below `root` is noted, on whatever thread.

    The functions of `_system.osops` are replaced by ones that make the real call and note it when
    it has succeeded; so recorders can be put over a fault injector, and calls elsewhere pass. What
    was there before is taken for durable, unless it is given.

    Calls that make, change or look up names take turns, each with its note: a thread that finds a
    name which another one has just made finds it here too. Writes and barriers overlap as they do.

    What is stored to mapped memory without a call is noted at the next call, when it begins or is
    over: as pending, until it is persisted.

    Parameters
    ----------
    root
        An existing directory.
    disk
        What is there, and what of it is pending.
    """

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self.root = os.path.realpath(root)
        self.before = Disk.scan(Path(self.root)) if disk is None else disk
        self.events: list[Event] = []
        self.races: list[str] = []
        """Buffers that changed while they were being written: what reached the disk is unknown."""
        self._lock = threading.RLock()
        self._clock = 0
        # Directories by number, entries by name: what the running program sees.
        self._names: dict[int, dict[str, int | str]] = {ROOT: {}}
        numbers = {"": ROOT}
        for path, entry, is_directory in self.before.newest_tree():
            parent, _, name = path.rpartition("/")
            self._names[numbers[parent]][name] = entry
            if is_directory:
                assert isinstance(entry, int)
                numbers[path] = entry
                self._names[entry] = {}
        self._next_inode = self.before.last_inode + 1
        self._descriptors: dict[int, int] = {}
        self._mappings = Mappings()
        self._resolved: dict[str, str] = {}
        self._saved: dict[str, Any] = {}

    def __enter__(self) -> Self:
        for name in osops.__all__:
            wrapper = getattr(self, f"_on_{name}", None)
            if wrapper is not None:
                real = self._saved[name] = getattr(osops, name)
                setattr(osops, name, _bind(wrapper, real))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for name, real in self._saved.items():
            setattr(osops, name, real)
        with self._lock:
            self._look()
        if kind is None and self.races:
            raise RigError(f"a buffer changed while it was being written: {self.races[0]}")

    def start_after(self, clock: int) -> Self:
        """Go on from another recorder's clock, so that the events of both can be strung."""
        self._clock = clock
        return self

    @property
    def clock(self) -> int:
        """The last stamp given."""
        return self._clock

    def mark(self, label: str, value: Any = None) -> None:
        """Note what the program knows at this moment, for example that a commit is durable."""
        stamp = self._stamp()
        self._note(lambda end: Mark(stamp, end, label, value))

    # -- books ------------------------------------------------------------------------------------

    def _stamp(self) -> int:
        with self._lock:
            self._look()
            self._clock += 1
            return self._clock

    def _note(self, make: Callable[[int], Event]) -> None:
        with self._lock:
            self._look()
            self._clock += 1
            self.events.append(make(self._clock))

    def _look(self) -> None:
        """Note what was stored to mapped memory without a call; the caller holds the lock."""
        for inode, offset, data in self._mappings.stores():
            self._clock += 2
            self.events.append(Store(self._clock - 1, self._clock, inode, offset, data))

    def _locate(self, path: str) -> tuple[int, str] | None:
        """Return the directory and the name of a path; None if it is not below the root.

        The caller holds the lock, until its call has been made and noted.
        """
        parent = self._resolve(os.path.dirname(os.path.abspath(path)))
        if parent != self.root and not parent.startswith(self.root + "/"):
            return None
        return self._directory(parent), os.path.basename(path)

    def _resolve(self, directory: str) -> str:
        """Follow symbolic links on the way to a directory, which are not expected to change."""
        found = self._resolved.get(directory)
        if found is None:
            found = self._resolved[directory] = os.path.realpath(directory)
        return found

    def _directory(self, path: str) -> int:
        inode = ROOT
        for name in path[len(self.root) :].split("/"):
            if name:
                entry = self._names[inode].get(name)
                if not isinstance(entry, int) or entry not in self._names:
                    raise RigError(f"{path} was made behind the recorder's back")
                inode = entry
        return inode

    def _file(self, path: str) -> int:
        """Return the number of a file; the caller holds the lock."""
        place = self._locate(os.path.realpath(path))
        if place is None:
            raise RigError(f"{path} is not below {self.root}")
        entry = self._names[place[0]].get(place[1])
        if not isinstance(entry, int):
            raise RigError(f"{path} was made behind the recorder's back")
        return entry

    def _change(
        self,
        start: int,
        parent: int,
        changes: Mapping[str, int | str | None],
        *,
        new_file: int | None = None,
        new_directory: int | None = None,
    ) -> None:
        for name, entry in changes.items():
            if entry is None:
                self._names[parent].pop(name, None)
            else:
                self._names[parent][name] = entry
        if new_directory is not None:
            self._names[new_directory] = {}
        self._clock += 1
        self.events.append(
            Entries(start, self._clock, parent, tuple(changes.items()), new_file, new_directory)
        )

    def _new_inode(self) -> int:
        self._next_inode += 1
        return self._next_inode - 1

    # -- the calls --------------------------------------------------------------------------------

    # Names are looked up when the call has succeeded: one that fails may be about anything.

    def _on_open_file(self, real: Any, path: str, **options: bool) -> int:
        with self._lock:
            start = self._stamp()
            descriptor = int(real(path, **options))
            place = self._locate(os.path.realpath(path) if os.path.islink(path) else path)
            if place is None:
                return descriptor
            parent, name = place
            entry = self._names[parent].get(name)
            if options.get("create", False):
                entry = self._new_inode()
                self._change(start, parent, {name: entry}, new_file=entry)
            if not isinstance(entry, int):
                raise RigError(f"{path} was made behind the recorder's back")
            self._descriptors[descriptor] = entry
        return descriptor

    def _on_open_device(self, real: Any, path: str, **options: bool) -> int:
        return self._on_open_file(real, path, **options)

    def _on_close(self, real: Any, fd: int) -> None:
        with self._lock:
            self._descriptors.pop(fd, None)
        real(fd)

    def _on_pwritev(self, real: Any, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        inode = self._descriptors.get(fd)
        if inode is None:
            return int(real(fd, buffers, offset))
        data = b"".join(buffers)
        with self._lock:
            start = self._stamp()
            call = self._mappings.begin([(inode, offset, len(data))])
        done = 0
        try:
            done = int(real(fd, buffers, offset))
        except OSError as error:
            # A write that failed half-way; only the fault injector knows how far it came.
            done = getattr(error, "written", 0)
            raise
        finally:
            with self._lock:
                if done:
                    self._note(lambda end: Write(start, end, inode, offset, data[:done]))
                    self._mappings.learn(inode, offset, np.frombuffer(data[:done], np.uint8))
                self._mappings.end(call)
        if b"".join(buffers) != data:
            self.races.append(f"{len(data)} bytes at {offset} of file {inode}")
        return done

    def _on_fdatasync(self, real: Any, fd: int) -> None:
        self._barrier(real, fd)

    def _on_fsync(self, real: Any, fd: int) -> None:
        self._barrier(real, fd)

    def _barrier(self, real: Any, fd: int) -> None:
        inode = self._descriptors.get(fd)
        start = self._stamp()
        failed, done = True, None
        try:
            done = real(fd)
            failed = False
        finally:
            if inode is not None and done is not LEFT_OUT:
                self._note(lambda end: Barrier(start, end, inode, failed))

    def _on_fsync_directory(self, real: Any, path: str) -> None:
        resolved = self._resolve(os.path.abspath(path))
        inside = resolved == self.root or resolved.startswith(self.root + "/")
        with self._lock:
            is_there = inside and os.path.isdir(resolved)
            inode = self._directory(resolved) if is_there else 0
            start = self._stamp()
        failed, done = True, None
        try:
            done = real(path)
            failed = False
        finally:
            if is_there and done is not LEFT_OUT:
                self._note(lambda end: DirectoryBarrier(start, end, inode, failed))

    def _on_ftruncate(self, real: Any, fd: int, nbytes: int) -> None:
        inode = self._descriptors.get(fd)
        with self._lock:  # or somebody might look beyond the end
            start = self._stamp()
            real(fd, nbytes)
            if inode is not None:
                self._mappings.resized(inode)
                self._note(lambda end: Resize(start, end, inode, nbytes, grow_only=False))

    def _on_fallocate(self, real: Any, fd: int, offset: int, nbytes: int) -> None:
        inode = self._descriptors.get(fd)
        with self._lock:
            start = self._stamp()
            real(fd, offset, nbytes)
            if inode is not None:
                self._mappings.resized(inode)
                self._note(lambda end: Resize(start, end, inode, offset + nbytes, grow_only=True))

    def _on_map_shared(
        self,
        real: Any,
        fd: int,
        pieces: Sequence[tuple[int, int]],
        *,
        write: bool,
        **options: Any,
    ) -> pmem.Mapping:
        with self._lock:
            mapping: pmem.Mapping = real(fd, pieces, write=write, **options)
            inode = self._descriptors.get(fd)
            if inode is not None:
                self._mappings.add(fd, inode, mapping, pieces, writable=write)
        return mapping

    def _on_store(self, real: Any, memory: NDArray[np.uint8], data: NDArray[np.uint8]) -> None:
        stored = data.copy()
        with self._lock:
            places = self._mappings.find(memory)
            start = self._stamp()
            call = self._mappings.begin(places)
        done = LEFT_OUT
        try:
            done = real(memory, data)
        except BaseException:
            with self._lock:
                self._mappings.end(call)  # whatever it has stored is found like any other store
            raise
        with self._lock:
            at = 0
            for inode, offset, nbytes in places:
                piece = stored[at : at + nbytes]
                event = partial(Store, start, inode=inode, offset=offset, data=piece.tobytes())
                self._note(event)
                self._mappings.learn(inode, offset, piece)
                at += nbytes
            self._mappings.end(call)
            if done is not LEFT_OUT:
                self._persisted(self._stamp(), places)

    def _on_persist(self, real: Any, memory: NDArray[np.uint8]) -> None:
        with self._lock:
            places = self._mappings.find(memory)
            start = self._stamp()
        if real(memory) is not LEFT_OUT:
            self._persisted(start, places)

    def _persisted(self, start: int, places: Sequence[Place]) -> None:
        for inode, offset, nbytes in places:
            self._note(partial(Persist, start, inode=inode, offset=offset, nbytes=nbytes))

    def _on_rename(self, real: Any, source: str, target: str) -> None:
        with self._lock:
            start = self._stamp()
            real(source, target)
            old, new = self._locate(source), self._locate(target)
            if old is None and new is None:
                return
            if old is None or new is None or old[0] != new[0]:
                raise RigError("renames from one directory to another are not modelled")
            names = self._names[old[0]]
            entry = names.get(old[1])
            if entry != names.get(new[1]):  # of two names of one file, rename leaves both
                self._change(start, old[0], {old[1]: None, new[1]: entry})

    def _on_link(self, real: Any, source: str, target: str) -> None:
        with self._lock:
            start = self._stamp()
            real(source, target)
            place = self._locate(target)
            if place is not None:
                self._change(start, place[0], {place[1]: self._file(source)})

    def _on_symlink(self, real: Any, target: str, path: str) -> None:
        with self._lock:
            start = self._stamp()
            real(target, path)
            place = self._locate(path)
            if place is not None:
                self._change(start, place[0], {place[1]: target})

    def _on_unlink(self, real: Any, path: str) -> None:
        self._removed(real, path)

    def _on_rmdir(self, real: Any, path: str) -> None:
        self._removed(real, path)

    def _removed(self, real: Any, path: str) -> None:
        with self._lock:
            start = self._stamp()
            real(path)
            place = self._locate(path)
            if place is not None:
                self._change(start, place[0], {place[1]: None})

    def _on_mkdir(self, real: Any, path: str) -> None:
        with self._lock:
            start = self._stamp()
            real(path)
            place = self._locate(path)
            if place is not None:
                inode = self._new_inode()
                self._change(start, place[0], {place[1]: inode}, new_directory=inode)


def _bind(wrapper: Callable[..., Any], real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        return wrapper(real, *arguments, **options)

    return call

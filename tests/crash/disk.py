"""A disk on which the power can fail at any moment.

`Recorder` stands between the library and the operating system (`pmarray._osops`): every
state-changing call is carried out for real and written down. `Disk` replays what was written down
up to some point and says what a power cut there could leave behind.

What may be lost
----------------
1. A write to a file is durable once an fsync or fdatasync of that file began after it had ended.
   Of the writes since, any subset may have reached the medium, in any order.
2. Such a write may be torn: any subset of its 4096-, 512- or 8-byte units may have reached the
   medium. A sector of it may hold garbage instead.
3. A change of length is durable like a write; until then, the file may have either length.
4. Creating, renaming or unlinking an entry is durable once its directory was fsynced. Of the
   changes since, any subset may have reached the medium. A rename is one change. An fsync of a
   file does not make its entry durable.

This is harsher than any one file system: ext4, for one, orders the changes of a directory.
"""

from __future__ import annotations

import copy
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pmarray import _osops

__all__ = ["Disk", "Event", "Image", "Recorder"]

_TEARS = (4096, 512, 8)


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened, in the order of completion."""

    kind: str
    """write, length, sync, link, unlink, rename, syncdir, mkdir or mark."""
    file: int = -1
    """Which file, by a number of our own."""
    where: str = ""
    """The directory and name, relative to the root; or the label of a mark."""
    offset: int = 0
    """Of a write; the new length for `length`; the value of a mark."""
    data: bytes = b""
    """Of a write; the target of a symbolic link."""
    site: str = ""
    """Where in the library the call stands."""


class Recorder:
    """Records what the library does below `root`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root, Recorder(root).recording() as events:
    ...     fd = _osops.open_file(root + "/x", write=True, create=True)
    ...     _osops.close(fd)
    >>> [event.kind for event in events]
    ['link']
    """

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)
        self.events: list[Event] = []
        self._lock = threading.RLock()
        self._files: dict[int, int] = {}  # inode: file
        self._open: dict[int, int] = {}  # descriptor: file
        self._next = 0

    def mark(self, label: str, value: int = 0) -> None:
        """Write down that the program has come to this point."""
        with self._lock:
            self.events.append(Event("mark", where=label, offset=value))

    @contextmanager
    def recording(self) -> Iterator[list[Event]]:
        """Stand between the library and the system for the length of the block."""
        names = [name for name in _osops.__all__ if hasattr(self, f"_on_{name}")]
        real = {name: getattr(_osops, name) for name in names}

        def wrap(name: str) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                with self._lock:
                    return getattr(self, f"_on_{name}")(real[name], *args, **kwargs)

            return call

        for name in names:
            setattr(_osops, name, wrap(name))
        try:
            yield self.events
        finally:
            for name in names:
                setattr(_osops, name, real[name])

    def _add(self, kind: str, **values: Any) -> None:
        self.events.append(Event(kind, site=f"{kind} in {_site()}", **values))

    def _relative(self, path: str) -> str:
        return (
            os.path.relpath(os.path.realpath(os.path.dirname(path)), self.root)
            + "/"
            + (os.path.basename(path))
        )

    def _file(self, fd: int, *, new: bool) -> int:
        inode = os.fstat(fd).st_ino
        if new or inode not in self._files:
            self._files[inode] = self._next
            self._next += 1
        return self._files[inode]

    def _on_open_file(self, real: Any, path: str, **flags: bool) -> int:
        fd: int = real(path, **flags)
        create = flags.get("create", False)
        self._open[fd] = self._file(fd, new=create)
        if create:
            self._add("link", file=self._open[fd], where=self._relative(path))
        return fd

    def _on_pwritev(self, real: Any, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        data = b"".join(bytes(buffer) for buffer in buffers)
        done: int = real(fd, buffers, offset)
        if fd in self._open:
            self._add("write", file=self._open[fd], offset=offset, data=data[:done])
        return done

    def _on_ftruncate(self, real: Any, fd: int, nbytes: int) -> None:
        real(fd, nbytes)
        self._add("length", file=self._open[fd], offset=nbytes)

    def _on_fallocate(self, real: Any, fd: int, offset: int, nbytes: int) -> None:
        before = os.fstat(fd).st_size
        real(fd, offset, nbytes)
        if offset + nbytes > before:
            self._add("length", file=self._open[fd], offset=offset + nbytes)

    def _on_fdatasync(self, real: Any, fd: int) -> None:
        real(fd)
        self._add("sync", file=self._open[fd])

    _on_fsync = _on_fdatasync

    def _on_fsync_directory(self, real: Any, path: str) -> None:
        real(path)
        self._add("syncdir", where=os.path.relpath(os.path.realpath(path), self.root))

    def _on_rename(self, real: Any, source: str, target: str) -> None:
        real(source, target)
        before = self._relative(source).encode()
        self._add("rename", where=self._relative(target), data=before)

    def _on_symlink(self, real: Any, target: str, path: str) -> None:
        real(target, path)
        self._add("link", where=self._relative(path), data=target.encode())

    def _on_unlink(self, real: Any, path: str) -> None:
        real(path)
        self._add("unlink", where=self._relative(path))

    def _on_mkdir(self, real: Any, path: str) -> None:
        real(path)
        self._add("mkdir", where=self._relative(path))


def _site() -> str:
    """The two innermost places in the library from which the call came.

    Functions called ``barrier`` only pass the call on and are skipped.
    """
    places: list[str] = []
    frame = sys._getframe(1)
    while frame is not None and len(places) < 2:
        name = frame.f_code.co_filename
        ours = "/pmarray/" in name and "/tests/" not in name
        if ours and frame.f_code.co_name != "barrier":
            places.append(f"{os.path.basename(name)}:{frame.f_code.co_name}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(places)


Entry = int | str  # a file, or the target of a symbolic link


@dataclass(slots=True)
class Image:
    """What a power cut left: files by path, with their contents."""

    directories: frozenset[str]
    entries: dict[str, bytes | str]

    def write(self, root: str) -> None:
        """Make it real below `root`, which is emptied."""
        _empty(root)
        for directory in sorted(self.directories):
            full = os.path.join(root, directory)
            if os.path.isdir(os.path.dirname(full)):  # else its parent did not make it
                os.makedirs(full, exist_ok=True)
        for path, contents in self.entries.items():
            full = os.path.join(root, path)
            if not os.path.isdir(os.path.dirname(full)):
                continue  # its directory did not make it
            if isinstance(contents, str):
                os.symlink(contents, full)
            else:
                with open(full, "wb") as file:
                    file.write(contents)


def _empty(root: str) -> None:
    os.makedirs(root, exist_ok=True)
    for entry in os.scandir(root):
        if entry.is_dir(follow_symlinks=False):
            _empty(entry.path)
            os.rmdir(entry.path)
        else:
            os.unlink(entry.path)


@dataclass(slots=True)
class _File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Event] = field(default_factory=list)

    def sync(self) -> None:
        for event in self.pending:
            _apply(self.durable, event)
        self.pending.clear()


def _apply(contents: bytearray, event: Event, data: bytes | None = None) -> None:
    if event.kind == "length":
        del contents[event.offset :]
        contents.extend(bytes(event.offset - len(contents)))
        return
    data = event.data if data is None else data
    if len(contents) < event.offset + len(data):
        contents.extend(bytes(event.offset + len(data) - len(contents)))
    contents[event.offset : event.offset + len(data)] = data


def _subsets(n: int, rng: random.Random, most: int) -> Iterator[list[bool]]:
    """All subsets of n changes if they are few; else none, all, single ones, and random ones."""
    if 2**n <= most:
        for bits in range(2**n):
            yield [bool(bits >> i & 1) for i in range(n)]
        return
    yield [False] * n
    yield [True] * n
    for _ in range(most - 2):
        one = rng.randrange(n)
        match rng.randrange(4):
            case 0:  # the newest of them alone is most likely to be missed
                yield [i != n - 1 - one // 2 for i in range(n)]
            case 1:
                yield [i == one for i in range(n)]
            case _:
                likely = rng.random()
                yield [rng.random() < likely for _ in range(n)]


class Disk:
    """What is on the medium for certain, and what may be, after some of the events.

    Parameters
    ----------
    ignore
        Barriers at this site do nothing: for asking whether anybody would notice.
    """

    def __init__(self, ignore: str | None = None) -> None:
        self._ignore = ignore
        self._files: dict[int, _File] = {}
        self._entries: dict[str, Entry] = {}
        self._directories: set[str] = {"."}
        self._pending: list[Event] = []
        self._linked: dict[str, Entry] = {}  # as the running system sees it
        self._barriers = 0
        self._yielded: set[tuple[int, ...]] = set()

    def survive(self, root: str, recorder: Recorder) -> Disk:
        """The process dies and the system lives on: write what it sees, and go on with it.

        Return a disk in the same state, for what `recorder` will see happen to the files below
        `root`, which are as the running system has them, durable or not.
        """
        disk = copy.deepcopy(self)
        disk._yielded.clear()
        everything = [
            *self._pending,
            *(event for file in self._files.values() for event in file.pending),
        ]
        self._image([True] * len(everything), everything, None, random.Random(0)).write(root)
        for path, entry in self._linked.items():
            if isinstance(entry, int):
                recorder._files[os.stat(os.path.join(root, path)).st_ino] = entry
        recorder._next = max(self._files, default=-1) + 1
        return disk

    def load(self, root: str, recorder: Recorder) -> None:
        """Begin with what is in a directory, all of it durable; known to `recorder` by inode."""
        for directory, _, names in os.walk(root):
            relative = os.path.relpath(directory, root)
            self._directories.add(relative)
            for name in names:
                path = os.path.join(directory, name)
                where = f"{relative}/{name}"
                if os.path.islink(path):
                    self._entries[where] = self._linked[where] = os.readlink(path)
                    continue
                fd = os.open(path, os.O_RDONLY)
                number = recorder._file(fd, new=True)
                os.close(fd)
                with open(path, "rb") as file:
                    self._files[number] = _File(bytearray(file.read()))
                self._entries[where] = self._linked[where] = number

    def advance(self, event: Event) -> None:
        """Let one event happen."""
        kind = event.kind
        if kind in ("sync", "syncdir") and self._ignore is not None and event.site == self._ignore:
            return
        if kind in ("sync", "syncdir"):
            self._barriers += 1
            self._yielded.clear()
        if kind in ("write", "length"):
            self._files.setdefault(event.file, _File()).pending.append(event)
        elif kind == "sync":
            self._files.setdefault(event.file, _File()).sync()
        elif kind == "syncdir":
            mine = [e for e in self._pending if os.path.dirname(e.where) == event.where]
            for one in mine:
                self._change(self._entries, self._directories, one)
            self._pending = [e for e in self._pending if e not in mine]
        elif kind != "mark":
            if kind == "link" and event.file >= 0:
                self._files.setdefault(event.file, _File())
            if kind == "rename":
                # What moves is what the running system finds under the old name.
                event = Event(
                    kind,
                    self._number(self._linked[event.data.decode()]),
                    event.where,
                    data=event.data,
                    site=event.site,
                )
            self._change(self._linked, set(), event)
            self._pending.append(event)

    @staticmethod
    def _number(entry: Entry) -> int:
        assert isinstance(entry, int)
        return entry

    @staticmethod
    def _change(entries: dict[str, Entry], directories: set[str], event: Event) -> None:
        if event.kind == "mkdir":
            directories.add(os.path.normpath(event.where))
        elif event.kind == "unlink":
            entries.pop(event.where, None)
        elif event.kind == "rename":
            entries.pop(event.data.decode(), None)
            entries[event.where] = event.file
        else:
            entries[event.where] = event.data.decode() if event.file < 0 else event.file

    @property
    def units(self) -> int:
        """How many changes are in doubt."""
        return len(self._pending) + sum(len(file.pending) for file in self._files.values())

    def images(self, rng: random.Random, most: int) -> Iterator[Image]:
        """Yield what a power cut now could leave: all subsets if they are few, else a sample.

        Besides: torn and garbled writes, sampled.
        """
        changes: list[Event] = [
            *self._pending,
            *(event for file in self._files.values() for event in file.pending),
        ]
        for kept in _subsets(len(changes), rng, most):
            # What has been yielded before, at an earlier event, is not built again.
            key = (
                self._barriers,
                *(id(event) for event, keep in zip(changes, kept, strict=True) if keep),
            )
            if key not in self._yielded:
                self._yielded.add(key)
                yield self._image(kept, changes, None, rng)
        writes = [i for i, event in enumerate(changes) if event.kind == "write" and event.data]
        for _ in range(min(most // 2, 4 * len(writes))):
            kept = [rng.random() < 0.7 for _ in changes]
            torn = rng.choice(writes)
            kept[torn] = True
            yield self._image(kept, changes, torn, rng)

    def _image(
        self, kept: list[bool], changes: list[Event], torn: int | None, rng: random.Random
    ) -> Image:
        entries = dict(self._entries)
        directories = set(self._directories)
        contents: dict[int, bytearray] = {}
        for i, event in enumerate(changes):
            if not kept[i]:
                continue
            if event.kind in ("write", "length"):
                if event.file not in contents:
                    contents[event.file] = bytearray(self._files[event.file].durable)
                data = None
                if i == torn:
                    data = self._tear(event, contents[event.file], rng)
                _apply(contents[event.file], event, data)
            else:
                self._change(entries, directories, event)
        found: dict[str, bytes | str] = {}
        for path, entry in entries.items():
            if isinstance(entry, str):
                found[path] = entry
            else:
                found[path] = bytes(contents.get(entry, self._files[entry].durable))
        return Image(frozenset(directories), found)

    @staticmethod
    def _tear(event: Event, before: bytearray, rng: random.Random) -> bytes:
        old = bytes(before[event.offset : event.offset + len(event.data)])
        old += bytes(len(event.data) - len(old))
        unit = rng.choice(_TEARS)
        result = bytearray(event.data)
        pieces = range(0, len(result), unit)
        if rng.random() < 0.2:
            at = rng.choice(range(0, len(result), 512))
            size = min(512, len(result) - at)
            result[at : at + size] = rng.randbytes(size)
        elif rng.random() < 0.4:
            cut = rng.choice(pieces)  # only the beginning arrived
            result[cut:] = old[cut:]
        else:
            for at in pieces:
                if rng.random() < 0.5:
                    result[at : at + unit] = old[at : at + unit]
        return bytes(result)

"""The simulated disk: of all that a program did, what is durable, and what may yet be lost.

What a power cut may leave
--------------------------
1. *Writes.* A write is pending until an fsync or fdatasync of its file that began after the write
   was over. Any subset of the pending writes of a file may have reached the medium, of one file
   before another's or after, whatever their order was.
2. *Tearing.* A pending write may have reached the medium in part: any subset of its units of
   8, 512 or 4096 bytes. A unit holds one of the values it has had since it was last durable, so
   that of two pending writes to one unit the older may be found. A disk writes 512 bytes in one
   step or none; 8 is what memory promises, and the harder test.
3. *Garbage.* A 512-byte sector with a pending write may hold neither the old nor the new.
4. *Sizes.* A file's length is not durable before its next fsync or fdatasync, whether it was
   changed by a write beyond the end, by fallocate or by a truncation. Changes of length take
   effect in their order. Bytes that a length covers and no write reached are zeros; bytes that a
   truncation cut off do not come back.
5. *Names.* A name that was made, removed or replaced is pending until an fsync of its directory
   that began afterwards. Every pending change of a name is lost or kept on its own; a rename is
   one change: the old name gone and the new one there, or neither. Nothing else makes a name
   durable: an fsync of the file does not. What has no name cannot be found. A second name of a
   file (a hard link) is a name like any other, in its directory and pending on its own; what is
   durable or pending of the file's content is so under both. A directory that is made or removed
   is a name of its parent; what is below one that is lost is lost with it.
6. *Barriers that fail* make nothing durable, then or ever: what was pending may be gone, and a
   second barrier that succeeds does not bring it back (the kernel may call such pages clean).
7. *In flight.* A call that was going on when the power failed may have had its effect, or part of
   it, and a barrier that was going on none.
8. *Persistent memory*, which is mapped, is stored to. A store is pending like a write, for the
   processor may evict a cache line at any time, and tears at 8 bytes; memory has no sectors, and
   no garbage is left in them. A `Persist` makes durable what was stored before it began, in whole
   lines of 64 bytes. It does nothing for what a system call has written there: that takes an
   fsync, since the file system may not have it in its books. For stores it has (MAP_SYNC), except
   for the file's length, which rule 4 is about: what was stored beyond the durable length and
   persisted is lost with the length, and found again with it. An fsync covers stores too.

What a killed process leaves
----------------------------
9. Everything it did is there for the next process, and what was pending is pending still: a power
   cut later may take it away. That is another thing than a power cut, and tried as well.

Not modelled: renames from one directory to another; a medium that loses what was durable.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.crash.events import (
    Barrier,
    DirectoryBarrier,
    Entries,
    Entry,
    Event,
    Mark,
    Persist,
    Resize,
    RigError,
    Store,
    Write,
)
from tests.crash.pages import Content, write_pages
from tests.crash.pages import cut as cut_pages

__all__ = ["ROOT", "Directory", "Disk", "File", "Tree", "walk"]

ROOT = 1
"""The number of the directory that the program works in; it is durable itself."""
_LINE_BYTES = 64

Tree = tuple[tuple[str, int | str, bool], ...]
"""Path, entry, and whether it is a directory, of every name, parents first."""


@dataclass(slots=True, eq=False)
class Pending:
    """A change that is not durable yet, and, when `doomed`, never will be."""

    event: Write | Resize | Entries
    doomed: bool = False
    settled: bool = False
    """A store that was persisted, to where a truncation before it may yet have been lost."""


def resized(size: int, event: Resize) -> int:
    """Return the length after a change of length."""
    return max(size, event.nbytes) if event.grow_only else event.nbytes


def apply_change(pages: dict[int, int], size: int, event: Write | Resize) -> int:
    """Carry out a change on a table; return the new length."""
    if isinstance(event, Write):
        write_pages(pages, event.offset, event.data)
        return max(size, event.offset + len(event.data))
    if event.nbytes < size and not event.grow_only:
        kept = cut_pages(pages, event.nbytes)
        pages.clear()
        pages.update(kept)
    return resized(size, event)


@dataclass(slots=True)
class File:
    """The durable content of a file, and what is pending, in order."""

    size: int = 0
    pages: Mapping[int, int] = field(default_factory=dict)
    """Never changed in place, so that states can share it."""
    pending: tuple[Pending, ...] = ()

    def make_durable(self, began: int) -> None:
        """Rules 1 and 4: a barrier began then, and has succeeded."""
        covered = [p for p in self.pending if not p.doomed and p.event.end < began]
        if not covered:
            return
        pages, size = dict(self.pages), self.size
        for one in covered:
            assert not isinstance(one.event, Entries)
            size = apply_change(pages, size, one.event)
        kept: list[Pending] = []
        for i, one in enumerate(self.pending):
            if one in covered:
                continue
            later = [p.event for p in self.pending[i + 1 :] if p in covered]
            kept.extend(_without_overwritten(one, later))
        self.pages, self.size, self.pending = pages, size, tuple(kept)

    def persist(self, event: Persist) -> None:
        """Rule 8: these lines have been written back."""
        low = event.offset // _LINE_BYTES * _LINE_BYTES
        high = -(-(event.offset + event.nbytes) // _LINE_BYTES) * _LINE_BYTES
        pages = dict(self.pages)
        kept: list[Pending] = []
        shortest = 1 << 62
        for one in self.pending:
            change = one.event
            if isinstance(change, Resize) and not change.grow_only:
                shortest = min(shortest, change.nbytes)
            if (
                not isinstance(change, Store)
                or change.end >= event.start
                or change.offset >= high
                or change.offset + len(change.data) <= low
                or one.doomed
                or one.settled
            ):
                kept.append(one)
                continue
            start, stop = change.offset, change.offset + len(change.data)
            first, last = max(low, start), min(high, stop)
            data = change.data[first - start : last - start]
            kept = [left for older in kept for left in _outside(older, first, last)]
            if last <= shortest:
                write_pages(pages, first, data)
            else:
                kept.append(Pending(replace(change, offset=first, data=data), settled=True))
            kept.extend(_pieces(one, [(start, first), (last, stop)]))
        self.pages, self.pending = pages, tuple(kept)

    def doom(self, began: int) -> None:
        """Rule 6: a barrier that began then has failed."""
        self.pending = tuple(
            replace(p, doomed=True) if p.event.end < began else p for p in self.pending
        )

    def newest(self) -> Content:
        """Return what a running program sees."""
        pages, size = dict(self.pages), self.size
        for one in self.pending:
            assert not isinstance(one.event, Entries)
            size = apply_change(pages, size, one.event)
        return Content.of(pages, size)


def _pieces(one: Pending, spans: Iterable[tuple[int, int]]) -> Iterator[Pending]:
    """Yield what is left of a pending write."""
    event = one.event
    assert isinstance(event, Write)
    for start, stop in spans:
        if start < stop:
            data = event.data[start - event.offset : stop - event.offset]
            yield replace(one, event=replace(event, offset=start, data=data))


def _outside(one: Pending, low: int, high: int) -> Iterator[Pending]:
    """Yield what is left of a pending change when these bytes have become durable after it."""
    event = one.event
    if not isinstance(event, Write) or event.offset >= high:
        yield one
        return
    start, stop = event.offset, event.offset + len(event.data)
    if stop <= low:
        yield one
        return
    if stop <= high and not isinstance(
        event, Store
    ):  # it may have made the file longer, in one step
        yield replace(one, event=replace(event, offset=stop, data=b""))
    yield from _pieces(one, [(start, min(low, stop)), (max(start, high), stop)])


def _without_overwritten(one: Pending, later: list[Write | Resize | Entries]) -> Iterator[Pending]:
    """Yield what is left of a doomed change when later ones have become durable."""
    if isinstance(one.event, Resize):
        if not any(isinstance(event, Resize) for event in later):
            yield one
        return
    assert isinstance(one.event, Write)
    left = [(one.event.offset, one.event.offset + len(one.event.data))]
    for event in later:
        low, high = (
            (event.offset, event.offset + len(event.data))
            if isinstance(event, Write)
            else (event.nbytes, 1 << 62)
            if isinstance(event, Resize) and not event.grow_only
            else (0, 0)
        )
        left = [
            span
            for start, stop in left
            for span in ((start, min(stop, low)), (max(start, high), stop))
            if span[0] < span[1]
        ]
    yield from _pieces(one, left)


@dataclass(slots=True)
class Directory:
    """The durable names of a directory, and the pending changes, in order."""

    entries: Mapping[str, int | str] = field(default_factory=dict)
    pending: tuple[Pending, ...] = ()

    def make_durable(self, began: int) -> None:
        """Rule 5: an fsync began then, and has succeeded."""
        covered = [p for p in self.pending if not p.doomed and p.event.end < began]
        names = {name for p in covered for name, _ in _changes(p)}
        self.entries = with_changes(self.entries, covered)
        self.pending = tuple(
            p
            for p in self.pending
            if p not in covered and not (p.doomed and any(name in names for name, _ in _changes(p)))
        )

    def doom(self, began: int) -> None:
        """Rule 6."""
        self.pending = tuple(
            replace(p, doomed=True) if p.event.end < began else p for p in self.pending
        )


def _changes(one: Pending) -> tuple[tuple[str, Entry], ...]:
    assert isinstance(one.event, Entries)
    return one.event.changes


def with_changes(
    entries: Mapping[str, int | str], pending: Iterable[Pending]
) -> dict[str, int | str]:
    """Return the names of a directory after some of its pending changes."""
    result = dict(entries)
    for one in pending:
        for name, entry in _changes(one):
            if entry is None:
                result.pop(name, None)
            else:
                result[name] = entry
    return result


def walk(names: Mapping[int, Mapping[str, int | str]]) -> Tree:
    """List what can be found from the root."""
    found: list[tuple[str, int | str, bool]] = []
    stack = [("", ROOT)]
    while stack:
        prefix, inode = stack.pop()
        for name, entry in sorted(names[inode].items()):
            is_directory = isinstance(entry, int) and entry in names
            found.append((prefix + name, entry, is_directory))
            if is_directory:
                assert isinstance(entry, int)
                stack.append((f"{prefix}{name}/", entry))
    return tuple(sorted(found))


class Disk:
    """Durable and pending state of everything under one directory; events move it on."""

    def __init__(self) -> None:
        self.files: dict[int, File] = {}
        self.directories: dict[int, Directory] = {ROOT: Directory()}

    @classmethod
    def scan(cls, root: Path) -> Disk:
        """Take what is in a real directory for durable."""
        disk = cls()
        next_inode = ROOT + 1
        numbers: dict[tuple[int, int], int] = {}  # of files that have several names

        def visit(path: Path, inode: int) -> None:
            nonlocal next_inode
            entries: dict[str, int | str] = {}
            for child in sorted(path.iterdir()):
                if child.is_symlink():
                    entries[child.name] = os.readlink(child)
                    continue
                found = child.stat()
                number = numbers.setdefault((found.st_dev, found.st_ino), next_inode)
                entries[child.name] = number
                if number != next_inode:
                    continue
                next_inode += 1
                if child.is_dir():
                    visit(child, number)
                else:
                    pages: dict[int, int] = {}
                    data = child.read_bytes()
                    write_pages(pages, 0, data)
                    disk.files[number] = File(len(data), pages)
            disk.directories[inode] = Directory(entries)

        visit(root, ROOT)
        return disk

    @classmethod
    def holding(cls, tree: Tree, contents: Mapping[int, Content]) -> Disk:
        """Take an image for durable."""
        disk = cls()
        names: dict[int, dict[str, int | str]] = {ROOT: {}}
        numbers = {"": ROOT}
        for path, entry, is_directory in tree:
            parent, _, name = path.rpartition("/")
            names[numbers[parent]][name] = entry
            if isinstance(entry, int):
                if is_directory:
                    numbers[path] = entry
                    names.setdefault(entry, {})
                else:
                    disk.files[entry] = File(contents[entry].size, contents[entry].pages)
        disk.directories = {inode: Directory(entries) for inode, entries in names.items()}
        return disk

    def copy(self) -> Disk:
        """Return a state that goes its own way."""
        result = Disk()
        result.files = {i: replace(f) for i, f in self.files.items()}
        result.directories = {i: replace(d) for i, d in self.directories.items()}
        return result

    @property
    def last_inode(self) -> int:
        """The highest number in use."""
        return max(ROOT, *self.files, *self.directories)

    def apply(self, event: Event) -> None:
        """Move on by one event."""
        match event:
            case Write(inode=inode) | Resize(inode=inode):
                file = self.files[inode]
                file.pending = (*file.pending, Pending(event))
            case Barrier(inode=inode):
                file = self.files[inode]
                file.doom(event.start) if event.failed else file.make_durable(event.start)
            case Persist(inode=inode):
                self.files[inode].persist(event)
            case Entries(parent=parent):
                if event.new_file is not None:
                    self.files[event.new_file] = File()
                if event.new_directory is not None:
                    self.directories[event.new_directory] = Directory()
                directory = self.directories[parent]
                directory.pending = (*directory.pending, Pending(event))
            case DirectoryBarrier(inode=inode):
                names = self.directories[inode]
                names.doom(event.start) if event.failed else names.make_durable(event.start)
            case Mark():
                pass
            case _:
                raise RigError(f"no rule for {event}")

    def begin(self, event: Event) -> None:
        """Rule 7: an event has begun and is not over; only changes can have an effect."""
        if isinstance(event, Write | Resize | Entries):
            self.apply(event)

    def newest_tree(self) -> Tree:
        """List the names that a running program sees."""
        return walk({i: with_changes(d.entries, d.pending) for i, d in self.directories.items()})

    def newest(self) -> tuple[Tree, dict[int, Content]]:
        """Return what a running program sees."""
        tree = self.newest_tree()
        return tree, {
            entry: self.files[entry].newest()
            for _, entry, is_directory in tree
            if isinstance(entry, int) and not is_directory
        }

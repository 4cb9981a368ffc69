"""A file system in memory that notes every change and barrier, for programs of any language.

What the kernel sends is what is noted: a write when it is made, the dirty pages of a mapping when
they are written back, and an fsync after the pages that it covers. The page cache is in its usual
mode (no `direct_io`, no cache of writes), so that `write` comes through at once, byte for byte.

The program must be another process: a C library that holds the lock of the interpreter while it
writes would otherwise wait for itself.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests import machine
from tests.crash.events import (
    Barrier,
    DirectoryBarrier,
    Entries,
    Entry,
    Event,
    Mark,
    Resize,
    RigError,
    Write,
)
from tests.crash.images import Image
from tests.crash.pages import Content, write_pages
from tests.crash.simdisk import ROOT, Disk, walk

if TYPE_CHECKING:

    class _Operations:
        """The methods that mfusepy calls; it has no types."""
else:
    try:
        from mfusepy import Operations as _Operations
    except (ImportError, OSError):  # the package, or libfuse itself
        _Operations = object

__all__ = ["MARK", "FileSystem", "mounted", "why_not"]

MARK = "user.mark"
"""The extended attribute of the root through which the program says where it is."""
_BLOCK_BYTES = 4096
_BLOCKS = 1 << 20


def why_not() -> str | None:
    """Say why nothing can be mounted here; None if it can."""
    if machine.taken("fuse") or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is not there, or not for us"
    try:
        import mfusepy  # noqa: F401
    except (ImportError, OSError) as error:
        return f"mfusepy or libfuse is missing: {error}"
    if shutil.which("fusermount3") is None and shutil.which("fusermount") is None:
        return "fusermount3, of the package fuse3, is missing"
    return None


class FileSystem(_Operations):
    """Files, names, and a record of what was done to them."""

    use_ns = True

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.before = Disk()
        """What is durable when the record begins; set by the mark "prepared"."""
        self._data: dict[int, bytearray] = {}
        self._names: dict[int, dict[str, int | str]] = {ROOT: {}}
        self._inodes = self._clock = ROOT

    # -- the record -------------------------------------------------------------------------------

    def _stamps(self) -> tuple[int, int]:
        # One thread serves the kernel, so that no two events overlap.
        self._clock += 2
        return self._clock - 1, self._clock

    def newest(self) -> Image:
        """Return what a running program sees."""
        tree = walk(self._names)
        contents = {}
        for inode, data in self._data.items():
            pages: dict[int, int] = {}
            write_pages(pages, 0, bytes(data))
            contents[inode] = Content.of(pages, len(data))
        return Image.of(tree, contents)

    def _take_for_durable(self) -> None:
        image = self.newest()
        self.before = Disk.holding(image.tree, image.contents)
        self.events.clear()

    def check(self) -> None:
        """Raise if the record does not lead to what is there."""
        disk = self.before.copy()
        for event in self.events:
            disk.apply(event)
        if Image.of(*disk.newest()).key != self.newest().key:
            raise RigError("the record is not what happened")

    # -- names ------------------------------------------------------------------------------------

    def _place(self, path: str) -> tuple[int, str]:
        """Return the directory that a path is in, and its last name."""
        parent = ROOT
        *directories, name = path.strip("/").split("/")
        for directory in directories:
            entry = self._names[parent].get(directory)
            if not isinstance(entry, int) or entry not in self._names:
                raise OSError(errno.ENOENT, path)
            parent = entry
        return parent, name

    def _entry(self, path: str) -> int | str:
        if path == "/":
            return ROOT
        parent, name = self._place(path)
        entry = self._names[parent].get(name)
        if entry is None:
            raise OSError(errno.ENOENT, path)
        return entry

    def _change(
        self,
        parent: int,
        *changes: tuple[str, Entry],
        new_file: int | None = None,
        new_directory: int | None = None,
    ) -> None:
        for name, entry in changes:
            if entry is None:
                self._names[parent].pop(name, None)
            else:
                self._names[parent][name] = entry
        self.events.append(Entries(*self._stamps(), parent, changes, new_file, new_directory))

    def _new_inode(self) -> int:
        self._inodes += 1
        return self._inodes

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        parent, name = self._place(path)
        inode = self._new_inode()
        self._data[inode] = bytearray()
        self._change(parent, (name, inode), new_file=inode)
        return inode

    def mkdir(self, path: str, mode: int) -> int:
        parent, name = self._place(path)
        inode = self._new_inode()
        self._names[inode] = {}
        self._change(parent, (name, inode), new_directory=inode)
        return 0

    def symlink(self, target: str, source: str) -> int:
        parent, name = self._place(target)
        self._change(parent, (name, source))
        return 0

    def readlink(self, path: str) -> str:
        entry = self._entry(path)
        if isinstance(entry, int):
            raise OSError(errno.EINVAL, path)
        return entry

    def link(self, target: str, source: str) -> int:
        parent, name = self._place(target)
        self._change(parent, (name, self._entry(source)))
        return 0

    def rename(self, old: str, new: str) -> int:
        entry = self._entry(old)
        (parent, name), (target, new_name) = self._place(old), self._place(new)
        if parent != target:
            raise OSError(errno.EXDEV, "the disk has no rule for this rename")
        if name != new_name:
            self._change(parent, (name, None), (new_name, entry))
        return 0

    def unlink(self, path: str) -> int:
        parent, name = self._place(path)
        self._change(parent, (name, None))
        return 0

    def rmdir(self, path: str) -> int:
        entry = self._entry(path)
        if isinstance(entry, int) and self._names.get(entry):
            raise OSError(errno.ENOTEMPTY, path)
        return self.unlink(path)

    def readdir(self, path: str, fh: int) -> list[str]:
        entry = self._entry(path)
        assert isinstance(entry, int)
        return [".", "..", *self._names[entry]]

    def getattr(self, path: str | None, fh: int | None = None) -> dict[str, Any]:
        entry = fh if path is None and fh is not None else self._entry(path or "/")
        if isinstance(entry, str):
            return {"st_mode": stat.S_IFLNK | 0o777, "st_nlink": 1, "st_size": len(entry)}
        if entry in self._names:
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2, "st_ino": entry}
        size = len(self._data[entry])
        return {
            "st_mode": stat.S_IFREG | 0o644,
            "st_nlink": 1,
            "st_size": size,
            "st_blocks": -(-size // 512),
            "st_blksize": _BLOCK_BYTES,
            "st_ino": entry,
            "st_uid": os.getuid(),
            "st_gid": os.getgid(),
        }

    def chmod(self, path: str, mode: int) -> int:
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        return 0

    def utimens(self, path: str, times: Any = None) -> int:
        return 0

    def access(self, path: str, amode: int) -> int:
        self._entry(path)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        return {
            "f_bsize": _BLOCK_BYTES,
            "f_frsize": _BLOCK_BYTES,
            "f_blocks": _BLOCKS,
            "f_bfree": _BLOCKS,
            "f_bavail": _BLOCKS,
            "f_namemax": 255,
        }

    # -- files ------------------------------------------------------------------------------------

    def open(self, path: str, flags: int) -> int:
        entry = self._entry(path)
        assert isinstance(entry, int)
        if flags & os.O_TRUNC:
            self._resize(entry, 0)
        return entry

    def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes:
        return bytes(self._data[fh][offset : offset + size])

    def write(self, path: str | None, data: bytes, offset: int, fh: int) -> int:
        held = self._data[fh]
        if len(held) < offset:
            held.extend(bytes(offset - len(held)))
        held[offset : offset + len(data)] = data
        self.events.append(Write(*self._stamps(), fh, offset, data))
        return len(data)

    def _resize(self, inode: int, nbytes: int, *, grow_only: bool = False) -> None:
        held = self._data[inode]
        if not grow_only:
            del held[nbytes:]
        held.extend(bytes(max(0, nbytes - len(held))))
        self.events.append(Resize(*self._stamps(), inode, nbytes, grow_only))

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        entry = self._entry(path)
        assert isinstance(entry, int)
        self._resize(entry, length)
        return 0

    def fallocate(self, path: str | None, mode: int, offset: int, size: int, fh: int) -> int:
        if mode:
            raise OSError(errno.EOPNOTSUPP, "no holes")
        self._resize(fh, offset + size, grow_only=True)
        return 0

    def fsync(self, path: str | None, datasync: int, fh: int) -> int:
        self.events.append(Barrier(*self._stamps(), fh, failed=False))
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        entry = self._entry(path)
        assert isinstance(entry, int)
        self.events.append(DirectoryBarrier(*self._stamps(), entry, failed=False))
        return 0

    def setxattr(self, path: str, name: str, value: Any, options: int, position: int = 0) -> int:
        if name != MARK:
            raise OSError(errno.ENOTSUP, name)
        label, number = bytes(value).decode().split()
        if label == "prepared":
            self._take_for_durable()
        else:
            self.events.append(Mark(*self._stamps(), label, int(number)))
        return 0


@contextmanager
def mounted(system: FileSystem, place: Path) -> Iterator[None]:
    """Mount a file system on an empty directory, on a thread of its own."""
    import mfusepy

    def serve() -> None:
        mfusepy.FUSE(
            system, str(place), foreground=True, nothreads=True, hard_remove=True, fsname="crash"
        )

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    until = time.monotonic() + 10
    while not os.path.ismount(place):
        if time.monotonic() > until or not server.is_alive():
            raise RigError("the file system was not mounted")
        time.sleep(0.01)
    try:
        yield
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(place)], check=True, capture_output=True)
        server.join(10)
        if server.is_alive():
            raise RigError("the file system is still in use")

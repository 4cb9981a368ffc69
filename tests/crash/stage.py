"""Puts images into a real directory, changing only what differs from the image before."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pmarray.backends.files.memmap import LOCK_NAME
from tests.crash.events import RigError
from tests.crash.images import Image
from tests.crash.pages import PAGE_BYTES, Content, page_bytes
from tests.crash.simdisk import Disk

__all__ = ["Stage"]

_EMPTY = Image.of((), {})
_NOTHING = Content(0, {}, 0)


class Stage:
    """One directory that shows one image after another.

    Parameters
    ----------
    path
        An empty directory, best in memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shown = _EMPTY
        self._count = 0

    def show(self, image: Image) -> Disk:
        """Make the directory equal to `image`; return the disk of which all of it is durable."""
        old = {path: (entry, is_directory) for path, entry, is_directory in self._shown.tree}
        new = {path: (entry, is_directory) for path, entry, is_directory in image.tree}
        linked = _linked(self._shown) | _linked(image)
        for path in sorted(old, reverse=True):
            before, after = old[path], new.get(path)
            if (
                after is None
                or before[1] != after[1]
                or isinstance(before[0], str) != isinstance(after[0], str)
                or (isinstance(before[0], str) and before[0] != after[0])
                or path in linked
            ) and not (before[1] and after is not None and after[1]):
                (self.path / path).rmdir() if before[1] else (self.path / path).unlink()
                del old[path]
        first: dict[int, str] = {}
        for path, (entry, is_directory) in new.items():
            place = self.path / path
            if is_directory:
                if path not in old:
                    place.mkdir()
            elif isinstance(entry, str):
                if path not in old:
                    place.symlink_to(entry)
            elif entry in first:
                place.hardlink_to(self.path / first[entry])
            else:
                first[entry] = path
                shown = old.get(path)
                current = (
                    self._shown.contents[shown[0]]
                    if shown is not None and isinstance(shown[0], int)
                    else None
                )
                _write(place, current, image.contents[entry])
        self._shown = image
        self._count += 1
        if self._count % 500 == 1:
            self.compare(image)
        return Disk.holding(image.tree, image.contents)

    def moved_on(self, disk: Disk) -> None:
        """Note what the directory holds now, after a program has worked in it."""
        self._shown = Image.of(*disk.newest())

    def compare(self, image: Image) -> None:
        """Raise if the directory is not what it is thought to be."""
        found = sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*"))
        if found != [path for path, _, _ in image.tree]:
            raise RigError(f"{self.path} holds {found}, not {[p for p, _, _ in image.tree]}")
        first: dict[int, Path] = {}
        for path, entry, is_directory in image.tree:
            place = self.path / path
            if isinstance(entry, str):
                if os.readlink(place) != entry:
                    raise RigError(f"{place} leads to {os.readlink(place)}, not {entry}")
            elif not is_directory:
                data, expected = place.read_bytes(), image.contents[entry].to_bytes()
                if place.name == LOCK_NAME:
                    data, expected = _uncounted(data), _uncounted(expected)
                if data != expected:
                    raise RigError(f"{place} does not hold what passed through the seam")
                if not place.samefile(first.setdefault(entry, place)):
                    raise RigError(f"{place} is not {first[entry]} under a second name")

    def compare_with(self, disk: Disk) -> None:
        """Raise if the directory is not what `disk` says: something went past the seam."""
        self.compare(Image.of(*disk.newest()))

    def clear(self) -> None:
        """Empty the directory, whatever is in it."""
        shutil.rmtree(self.path)
        self.path.mkdir()
        self._shown = _EMPTY


def _linked(image: Image) -> set[str]:
    """Return the paths of files that have several."""
    paths: dict[int, list[str]] = {}
    for path, entry, is_directory in image.tree:
        if isinstance(entry, int) and not is_directory:
            paths.setdefault(entry, []).append(path)
    return {path for several in paths.values() if len(several) > 1 for path in several}


def _write(place: Path, current: Content | None, wanted: Content) -> None:
    if current is not None and (current.size, current.mark) == (wanted.size, wanted.mark):
        return
    fd = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        old = current or _NOTHING
        if old.size != wanted.size:
            os.ftruncate(fd, wanted.size)
        # Pages beyond a shorter length are gone; a longer one shows zeros there.
        for index, _ in old.pages.items() - wanted.pages.items():
            if index not in wanted.pages and index * PAGE_BYTES < wanted.size:
                length = min(PAGE_BYTES, wanted.size - index * PAGE_BYTES)
                os.pwrite(fd, bytes(length), index * PAGE_BYTES)
        for index, number in wanted.pages.items() - old.pages.items():
            length = min(PAGE_BYTES, wanted.size - index * PAGE_BYTES)
            os.pwrite(fd, page_bytes(number)[:length], index * PAGE_BYTES)
    finally:
        os.close(fd)


def _uncounted(data: bytes) -> bytes:
    """Leave out of a lock file the readers' counter: it is for processes that run."""
    return data[:64] + bytes(len(data[64:72])) + data[72:]

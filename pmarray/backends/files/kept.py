"""A mapping of a data file that is kept for reading: its pages cost once.

Nothing is stored through it. A load from a page that cannot be had would kill the process
(SIGBUS), and Python can have no handler for that. So every page is asked for before the first
load from it:

1. The bytes are read by system call. Here a medium that fails, and a file that somebody has cut,
   are errors as anywhere else.
2. Their pages, which are in memory now, are mapped by ``madvise(MADV_POPULATE_READ)``. What
   cannot be mapped (it was cut this instant, or memory is short) is left to system calls.
3. That they were asked for is noted, and not done again. What a handle of ours writes has to be
   asked for again: a direct write takes pages out of memory.

Where a few pages are wanted that are in memory already, step 2 is taken for those around them that
are there, too: who reads here and there comes again, and each step costs as much as many pages.

Before each copy the length of the file is asked for, since whoever cuts it does not say so; a
handle of ours does not cut a file that is mapped (`FileRegion.announce`). Two windows remain:
between that question and the end of the copy, or of what is computed here, for a program that is
not ours and cuts the file (before single items it is asked only every 4 ms, `_storage.near`); and
a page that the kernel has taken back since step 2, where the medium fails at its second read.
"""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pmarray._geometry.reach import Reach
from pmarray._system.descriptor import Descriptor
from pmarray._system.files import read_fully
from pmarray._system.filesystems import read_ahead_nbytes
from pmarray._system.populating import can_populate, populate_read
from pmarray._system.residency import is_resident, is_told, residents

__all__ = ["KeptMapping"]

_PAGE = mmap.PAGESIZE
_READ_BYTES = 1 << 20
_FEW_PAGES = 16
_WINDOW_PAGES = (2 << 20) // _PAGE
"""What is looked at around a few pages."""
_FAULT_PAGES = 16
"""What a fault maps at most, `fault_around_bytes` unless told."""
_LOOKS = 4
"""How many stretches are looked at again, though they may be known."""
_LOOK_BYTES = 64 << 10
"""How much of each."""
_MOST_MISSES = 3
"""After so many pages that were not in memory, nobody looks whether the next one is."""
_FAR_BYTES = 1 << 20
"""A system that reads so far ahead keeps its device busy by itself."""
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
_END = os.SEEK_END


class KeptMapping:
    """The first bytes of a file, mapped.

    Parameters
    ----------
    fd
        The file; a descriptor of its own is kept as long as this is.
    path
        For errors.
    offset
        Where the items begin; all other offsets are counted from there.
    nbytes
        How many bytes of items to map; the file has them.

    Raises
    ------
    OSError
        There can be no such mapping.
    """

    def __init__(self, fd: int, path: str, offset: int, nbytes: int) -> None:
        self._path = path
        self.offset = offset
        """Of the first item in the file."""
        self._nbytes = offset + nbytes
        if not can_populate():
            raise OSError("there is no MADV_POPULATE_READ")
        # Whoever reads without the group's lock goes on when the file is closed.
        self._descriptor = Descriptor.duplicate(fd)
        self._fd = self._descriptor.fileno()
        self._map = mmap.mmap(fd, self._nbytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        # Whoever reads in long runs does so by system call; and a fault reads no megabytes.
        self._map.madvise(mmap.MADV_RANDOM)
        self._all = np.frombuffer(self._map, np.uint8)
        self._address: int = self._all.ctypes.data
        self.memory: NDArray[np.uint8] = self._all[offset:]
        """The items' bytes, read-only; to be read after `ask` only."""
        self.known = bytearray(-(-self._nbytes // _PAGE))
        """For each page whether it was asked for."""
        self._known_pages = np.frombuffer(self.known, np.bool_)
        self.budget_bytes = 0
        """How much of what is read in long runs stays mapped; it counts as the process's."""
        self._count = 0
        """How many; more or less, where threads read side by side."""
        self._tells_residents = bool(_NOWAIT)
        self._windows = is_told(self._fd)
        """Whether what lies around a few pages can be looked at."""
        self.reads_ahead = read_ahead_nbytes(os.fstat(fd).st_dev) >= _FAR_BYTES
        """Whether `fetch` is the best way to have bytes come from the medium."""

    def reaches(self, stop: int) -> bool:
        """Whether the file has so many bytes."""
        return os.lseek(self._fd, 0, _END) >= stop

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` by system call, and know the pages that were in memory."""
        start = self.offset + offset
        there = self._read_resident(start, out) if out.nbytes >= _PAGE else 0
        first, stop = -(-start // _PAGE), (start + there) // _PAGE  # whole pages
        if (
            first < stop
            and self._count * _PAGE + there <= self.budget_bytes
            and self.known.find(0, first, stop) >= 0
        ):
            self._populate(first, stop)
        read_fully(self._fd, out[there:], start + there, path=self._path)

    def _read_resident(self, start: int, out: memoryview) -> int:
        """Read what can be had without waiting for the medium; return how many bytes."""
        if not self._tells_residents:
            return 0
        try:
            return os.preadv(self._fd, [out], start, _NOWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            self._tells_residents = False  # a file system that cannot tell
            return 0

    def ask(self, reach: Reach) -> bool:
        """Return when the bytes of `reach` can be loaded; false where they cannot.

        Raises
        ------
        DamagedError
            The file ends before that.
        StorageError
            The medium cannot be read.
        """
        start, step, nbytes = self.offset + reach.start, reach.step, reach.nbytes
        if not self.reaches(self.offset + reach.stop):
            self._read(self.offset + reach.stop - 1, self.offset + reach.stop)
        if reach.stretches == 1 or step - nbytes <= _PAGE:
            return self._ask_run(start // _PAGE, (self.offset + reach.stop - 1) // _PAGE + 1)
        if step % _PAGE == 0:
            first, width = start // _PAGE, (start % _PAGE + nbytes - 1) // _PAGE + 1
            every = step // _PAGE
            pages = self._known_pages[first : first + (reach.stretches - 1) * every + width]
            if all(pages[i::every][: reach.stretches].all() for i in range(width)):
                return True
        return self._ask_pages(start + step * np.arange(reach.stretches), nbytes)

    def ask_each(self, offsets: NDArray[np.int64], nbytes: int) -> bool:
        """The same for stretches of `nbytes` bytes at `offsets`."""
        stop = self.offset + int(offsets.max()) + nbytes
        if not self.reaches(stop):
            self._read(stop - 1, stop)
        return self._ask_pages(self.offset + offsets, nbytes)

    def ask_item(self, offset: int, nbytes: int) -> bool:
        """The same for one item."""
        start = self.offset + offset
        stop = start + nbytes
        if not self.reaches(stop):
            self._read(stop - 1, stop)
        first, last = start // _PAGE, (stop - 1) // _PAGE
        if self.known.find(0, first, last + 1) >= 0:
            return self._ask_run(first, last + 1)
        return True

    def knows(self, offset: int, nbytes: int) -> bool:
        """Whether the bytes of one item were asked for before; they may be gone again."""
        first, last = (
            (self.offset + offset) // _PAGE,
            (self.offset + offset + nbytes - 1) // _PAGE,
        )
        return self.known.find(0, first, last + 1) < 0

    def show(self, reach: Reach) -> bool:
        """Whether the bytes of `reach` can be loaded, and all of them are in memory already.

        Where the system does not tell what is in memory, nothing is.
        """
        if not self._windows or not self.reaches(self.offset + reach.stop):
            return False
        # Of what was known the kernel may have taken pages back: a look at some of it shows that,
        # and a page that it does not show is read when it is loaded.
        start, nbytes = self._address + self.offset + reach.start, min(reach.nbytes, _LOOK_BYTES)
        for i in range(0, reach.stretches, -(-reach.stretches // _LOOKS)):
            if not is_resident(start + i * reach.step, nbytes):
                return False
        first = (self.offset + reach.start) // _PAGE
        if self.known.find(0, first, (self.offset + reach.stop - 1) // _PAGE + 1) < 0:
            return True
        unknown = self._unknown_of(self._page_runs(reach))
        for first, stop in unknown:
            if not is_resident(self._address + first * _PAGE, (stop - first) * _PAGE):
                return False
        return all(self._populate(first, stop) for first, stop in unknown)

    def fetch(self, reach: Reach) -> None:
        """Have bytes come into memory in order, while the system reads ahead, and ask for them.

        What goes wrong is told by who asks for them again.
        """
        if not self.reaches(self._nbytes):
            return
        for first, stop in self._page_runs(reach).tolist():
            # Whole windows: of pages that begin in the middle of one, little is read ahead.
            low = first // _WINDOW_PAGES * _WINDOW_PAGES
            high = min(-(-stop // _WINDOW_PAGES) * _WINDOW_PAGES, len(self.known))
            start, nbytes = low * _PAGE, min(high * _PAGE, self._nbytes) - low * _PAGE
            self._map.madvise(mmap.MADV_SEQUENTIAL, start, nbytes)
            self._populate(low, high)
            self._map.madvise(mmap.MADV_RANDOM, start, nbytes)

    def _page_runs(self, reach: Reach) -> NDArray[np.int64]:
        """Return where the pages of `reach` begin and end, with those between near stretches.

        Shape (runs, 2).
        """
        start, step, nbytes = self.offset + reach.start, reach.step, reach.nbytes
        if reach.stretches == 1 or step - nbytes <= _FEW_PAGES * _PAGE:
            return np.array([[start // _PAGE, (self.offset + reach.stop - 1) // _PAGE + 1]])
        starts = start + step * np.arange(reach.stretches)
        return np.stack([starts // _PAGE, (starts + (nbytes - 1)) // _PAGE + 1], axis=1)

    def _unknown_of(self, runs: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Return those of some runs of pages of which not all are known."""
        if len(runs) == 1:
            known = self.known.find(0, *runs[0].tolist()) < 0
            return [] if known else [tuple(runs[0].tolist())]
        first, stop = runs[:, :1], runs[:, 1:]
        pages = first + np.arange(int((stop - first).max()))
        known = self._known_pages[np.minimum(pages, stop - 1)].all(axis=1)
        return [(low, high) for low, high in runs[~known].tolist()]

    def expect(self, reach: Reach) -> None:
        """Hint that the bytes of `reach` are wanted soon, and what lies between."""
        os.posix_fadvise(
            self._fd,
            self.offset + reach.start,
            reach.stop - reach.start,
            os.POSIX_FADV_WILLNEED,
        )

    def let_go(self, reach: Reach) -> None:
        """Give up the pages of `reach`: they count as the process's."""
        runs = self._page_runs(reach).tolist()
        # Around each end the kernel has mapped what was there, which is much of many short runs.
        beside = _FAULT_PAGES if len(runs) > 1 else 0
        for first, stop in runs:
            low, high = max(0, first - beside), min(len(self.known), stop + beside)
            self._forget(low, high)
            nbytes = min(high * _PAGE, self._nbytes) - low * _PAGE
            self._map.madvise(mmap.MADV_DONTNEED, low * _PAGE, nbytes)

    def _ask_pages(self, starts: NDArray[np.int64], nbytes: int) -> bool:
        """Ask for the pages of stretches that begin at these bytes of the file."""
        firsts, lasts = starts // _PAGE, (starts + nbytes - 1) // _PAGE
        unknown = np.zeros(0, np.int64)
        for i in range((nbytes - 2) // _PAGE + 2):
            pages = np.minimum(firsts + i, lasts)
            there = self._known_pages[pages]
            if not there.all():
                unknown = np.union1d(unknown, pages[~there])
        if not unknown.size:
            return True
        runs = [
            (int(run[0]), int(run[-1]) + 1)
            for run in np.split(unknown, np.flatnonzero(np.diff(unknown) != 1) + 1)
        ]
        asked, runs, misses = runs, [], 0
        for run in asked:
            if misses > _MOST_MISSES or not self._ask_window(*run):
                misses += 1
                runs.append(run)
        # All requests first: one after another would leave the medium idle in between.
        for first, stop in runs:
            nbytes = (stop - first) * _PAGE
            os.posix_fadvise(self._fd, first * _PAGE, nbytes, os.POSIX_FADV_WILLNEED)
        return all(self._ask_unknown(first, stop) for first, stop in runs)

    def _ask_run(self, first: int, stop: int) -> bool:
        """Ask for the pages from `first` to `stop`, as far as they are not known."""
        return self._ask_window(first, stop) or self._ask_unknown(first, stop)

    def _ask_window(self, first: int, stop: int) -> bool:
        """The same of a few pages in memory, and of those around them that are there, too."""
        if self.known.find(0, first, stop) < 0:
            return True
        if (
            not self._windows
            or stop - first > _FEW_PAGES
            or self._count * _PAGE >= self.budget_bytes
        ):
            return False
        low = first // _WINDOW_PAGES * _WINDOW_PAGES
        high = min(-(-stop // _WINDOW_PAGES) * _WINDOW_PAGES, len(self.known))
        there = residents(self._all[low * _PAGE : high * _PAGE])
        if not there[first - low : stop - low].all():
            return False
        absent = low + np.flatnonzero(~there)
        before, after = absent[absent < first], absent[absent >= stop]
        return self._populate(
            int(before[-1]) + 1 if before.size else low, int(after[0]) if after.size else high
        )

    def _ask_unknown(self, first: int, stop: int) -> bool:
        for low, high in self._unknown(first, stop):
            self._read(low * _PAGE, min(high * _PAGE, self._nbytes))  # 1
            if not self._populate(low, high):
                return False
        return True

    def _populate(self, first: int, stop: int) -> bool:
        """Map pages that are in memory, and know them from now on; false where that fails."""
        if first >= stop:
            return True
        start = first * _PAGE
        if not populate_read(self._address + start, min(stop * _PAGE, self._nbytes) - start):  # 2
            return False
        self._count += stop - first - self.known.count(1, first, stop)
        self._known_pages[first:stop] = True  # 3
        return True

    def _forget(self, first: int, stop: int) -> None:
        self._count -= self.known.count(1, first, stop)
        self._known_pages[first:stop] = False

    def is_crowded(self) -> bool:
        """Whether too many pages of items are known: they count as the process's."""
        return self._count * _PAGE > self.budget_bytes + self.offset

    def _unknown(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        known = self._known_pages[first:stop]
        edges = np.flatnonzero(np.diff(known)) + 1
        bounds = [0, *edges.tolist(), stop - first]
        for low, high in itertools.pairwise(bounds):
            if not known[low]:
                yield first + low, first + high

    def _read(self, start: int, stop: int) -> None:
        """Have the kernel fetch what is not in memory."""
        scratch = memoryview(bytearray(min(stop - start, _READ_BYTES)))
        for at in range(start, stop, _READ_BYTES):
            read_fully(self._fd, scratch[: stop - at], at, path=self._path)

    def written(self, offset: int, nbytes: int) -> None:
        """Note that bytes have been written: their pages have to be asked for again."""
        first = (self.offset + offset) // _PAGE
        self._forget(first, -(-(self.offset + offset + nbytes) // _PAGE))

"""One piece of an array after another: several requests under way while a piece is worked on.

Reductions, products, copies in one layout, and loops over `PMArray.read_each` read by this;
elementwise functions do not. The pieces that follow are *arriving*: threads of ours read them into
buffers of their own (`_storage.arriving`), so that the device has many requests, the computation
has a processor, and each waits for the other no longer than it must.

1. Pieces are asked for in their order, as many as find room in the memory allowed and, but for
   two, in `config.read_ahead`. That begins with two, and doubles whenever a piece had to be waited
   for. While everything is in memory nothing is asked for: to read it here is the least work.
2. A piece is handed over with the group's lock, if nothing has happened to the array since it was
   asked for; else it is read then and there, as if nobody had asked. Where that happens twice, as
   beside a busy writer, nothing is asked for any more.
3. Buffers belong to one reading, and are used again for later pieces. If it ends early, what has
   not begun never does, and what has is waited for. Where an exception tears that wait as well,
   the last reads end in memory that they alone still have.
4. What would find room in a quarter of the free memory is read through the system's cache, for who
   comes next; more than that goes past it.
"""

from __future__ import annotations

import math
import mmap
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pmarray._array.stored import StoredArray
from pmarray._config import config
from pmarray._sizes import available_memory_bytes
from pmarray._storage.ahead import blocks_read
from pmarray._storage.arriving import Arrival
from pmarray._storage.items import Axes, Storage
from pmarray._system.crew import readers
from pmarray._system.uninterrupted import Task
from pmarray.errors import LayoutError

__all__ = ["is_at_hand", "read_pieces"]

AnyArray = NDArray[Any]

_SMALL_BYTES = 1 << 20
"""Less than this is read before threads have begun."""
_LARGE_BYTES = 64 << 20
"""What is less finds room in the system's cache, or should."""
_SHARE_OF_FREE = 4
_MOST_VAIN = 2


def read_pieces(array: StoredArray, pieces: Iterable[Axes], nbytes: int) -> Iterator[AnyArray]:
    """Read pieces of an array; each must be done with when the next is asked for.

    Parameters
    ----------
    pieces
        One ascending slice an axis with its ends, of any step; of an array without axes, none.
    nbytes
        What all buffers may take; there is one all the same.

    Yields
    ------
    numpy.ndarray
        The items, in memory that is used again; with strides of any size, contiguous along the
        axis along which the array's are. It may be written to.
    """
    whole = [tuple(slice(o.start, o.stop, o.step or 1) for o in piece) for piece in pieces]
    reading = _Reading(array, whole, nbytes)
    try:
        for number in range(len(reading.pieces)):
            yield reading.take(number)
    finally:
        reading.end()


def is_at_hand(array: StoredArray) -> bool:
    """Whether what is looked at of an array is in the system's cache: then a mapping is fast."""
    if not array.size:
        return True
    with array._turn():
        array._admit()
        arrival = array._storage.arriving(tuple(slice(0, n, 1) for n in array.shape))
    return arrival is None or arrival.is_at_hand()


class _Coming(NamedTuple):
    """A piece that threads are reading."""

    storage: Storage
    arrival: Arrival
    buffer: AnyArray
    tasks: list[Task[None]]


class _Reading:
    """The pieces that are on their way, and the buffers for them."""

    def __init__(self, array: StoredArray, pieces: list[Axes], nbytes: int) -> None:
        self._array = array
        self.pieces = pieces
        self._nbytes = nbytes
        self._coming: deque[_Coming | None] = deque()
        """Of the pieces that follow, those that were looked at; None where one is not arriving."""
        self._next = 0
        """The first piece that was not looked at."""
        self._free: list[AnyArray] = []
        self._held = 0
        """Bytes of all buffers."""
        self._current: AnyArray | None = None
        self._depth = 2
        self._vain = 0
        """How often what had arrived was not right."""
        self._blocks = blocks_read()
        self._comes_from_device = False
        total = sum(map(self._size, pieces))
        if len(pieces) < 2 or total < _SMALL_BYTES:
            self._next = len(pieces)
        else:
            self._comes_from_device = not is_at_hand(array)
        self._direct = total > _LARGE_BYTES and total > available_memory_bytes() // _SHARE_OF_FREE

    def _size(self, piece: Axes) -> int:
        return _count(piece) * self._array.itemsize

    def take(self, number: int) -> AnyArray:
        """Return a piece: the one after that which was taken last."""
        if self._current is not None:
            self._free.append(self._current)
            self._current = None
        if not self._coming:
            self._ask()
        coming = self._coming.popleft() if self._coming else None
        block = None if coming is None else self._landed(coming)
        if block is None:
            self._next = max(self._next, number + 1)
            block = self._read(self.pieces[number])
            self._look()
        self._ask()
        return block

    def _look(self) -> None:
        """Find out whether pieces come from a device: it pays to ask for those that follow."""
        if not self._comes_from_device:
            before, self._blocks = self._blocks, blocks_read()
            self._comes_from_device = self._blocks != before

    def _landed(self, coming: _Coming) -> AnyArray | None:
        """Wait for a piece that is arriving; None where it has to be read anew."""
        if not all(task.over for task in coming.tasks):
            self._depth *= 2
        for task in coming.tasks:
            task.wait()
        self._current = coming.buffer
        array = self._array
        with array._turn():
            array._admit()
            if (
                array._storage is coming.storage
                and not any(task.error for task in coming.tasks)
                and coming.arrival.is_right()
            ):
                return coming.arrival.block(coming.buffer.data)
        self._vain += 1
        return None  # whatever went wrong, it will say so to who reads it now

    def _read(self, piece: Axes) -> AnyArray:
        """Read a piece with the group's lock."""
        array = self._array
        if self._current is None:
            self._current = self._buffer(self._size(piece), needed=True)
        elif len(self._current) < self._size(piece):
            self._held -= len(self._current)
            self._current = self._buffer(self._size(piece), needed=True)
        shape = [len(range(one.start, one.stop, one.step)) for one in piece]
        order: Literal["F", "C"] = "F" if array.layout == "col" else "C"
        block: AnyArray = np.ndarray(shape, array.dtype, self._current, order=order)
        with array._turn():
            array._admit()
            if any(one.stop > n for one, n in zip(piece, array.shape, strict=True)):
                raise LayoutError(f"{array!r} has shrunk while it was read")
            array._storage.read(piece or (slice(0, 1, 1),), block if piece else block.reshape(1))
        return block

    def _ask(self) -> None:
        """Have pieces that follow read, as far as there is room for them."""
        array = self._array
        ahead = sum(0 if one is None else one.arrival.nbytes for one in self._coming)
        if not self._comes_from_device or not config.read_ahead:
            return
        while self._next < len(self.pieces) and len(self._coming) < self._depth:
            piece = self.pieces[self._next]
            size = self._size(piece)
            # Of two that come, the second keeps the device busy while the first one ends.
            if len(self._coming) > 1 and ahead + size > config.read_ahead:
                return
            with array._turn():
                array._admit()
                storage = array._storage
                arrival = None
                if (
                    size
                    and self._vain < _MOST_VAIN
                    and all(one.stop <= n for one, n in zip(piece, array.shape, strict=True))
                ):
                    arrival = storage.arriving(piece)
                if arrival is None:
                    if self._coming:
                        return  # it is looked at again when its turn comes
                    storage.expect(piece)  # the system may have it read
                    self._coming.append(None)
                    self._next += 1
                    return
                buffer = self._buffer(arrival.nbytes, needed=False)
                if buffer is None:
                    if not self._coming:  # there is room for one piece at a time
                        storage.expect(piece)  # the system may have it read
                        self._coming.append(None)
                        self._next += 1
                    return
                coming = _Coming(storage, arrival, buffer, [])
                self._coming.append(coming)
                self._next += 1
            for call in arrival.calls(buffer.data, direct=self._direct):
                task = Task(call)
                coming.tasks.append(task)  # before it begins: it is waited for
                readers.start(task)
            ahead += arrival.nbytes

    def _buffer(self, nbytes: int, *, needed: bool) -> Any:
        """Return memory that begins on a page; None where that would be more than is allowed."""
        nbytes = -(-max(nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        for i, one in enumerate(self._free):
            if len(one) >= nbytes:
                return self._free.pop(i)
        while self._free and self._held + nbytes > self._nbytes:
            self._held -= len(self._free.pop())  # too small: the pieces have grown
        if self._held + nbytes > self._nbytes and not needed:
            return None
        buffer = _memory(nbytes)
        self._held += nbytes
        return buffer

    def end(self) -> None:
        """Take back what has not begun, and wait for the rest."""
        tasks = [task for one in self._coming if one is not None for task in one.tasks]
        for task in tasks:
            task.give_up()
        for task in tasks:
            task.wait()
        self._coming.clear()


def _memory(nbytes: int) -> AnyArray:
    """Return memory that begins on a page.

    It comes from where NumPy has its own: what was used a moment ago is used again, and costs no
    faults.
    """
    memory = np.empty(nbytes + mmap.PAGESIZE, np.uint8)
    start = -memory.ctypes.data % mmap.PAGESIZE
    return memory[start : start + nbytes]


def _count(piece: Axes) -> int:
    return math.prod(len(range(one.start, one.stop, one.step)) for one in piece)

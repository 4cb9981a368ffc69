"""One piece of an array after another: several requests under way while a piece is worked on.

Reductions, products, copies in one layout, and loops over `PMArray.read_each` read by this;
elementwise functions do not. The pieces that follow are *arriving*: threads of ours read them into
buffers of their own (`_storage.arriving`), so that the device has many requests, the computation
has a processor, and each waits for the other no longer than it must. What is in memory already is
looked at where it lies, by who only looks (`show_pieces`).

1. Pieces are asked for in their order, as many as find room in the memory allowed and, but for
   two, in `config.read_ahead`. That begins with two, and doubles whenever a piece had to be waited
   for. While everything is in memory nothing is asked for: to look at it, or to copy it here, is
   the least work.
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
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pmarray._array.stored import StoredArray
from pmarray._available import available_memory_bytes
from pmarray._config import config
from pmarray._storage.ahead import blocks_read
from pmarray._storage.arriving import Arrival
from pmarray._storage.items import Axes, Shown, Storage
from pmarray._system.crew import readers
from pmarray._system.uninterrupted import Task
from pmarray.errors import LayoutError

__all__ = ["Sight", "is_at_hand", "read_pieces", "show_pieces"]

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
    reading = _Reading(array, pieces, nbytes)
    try:
        for number in range(len(reading.pieces)):
            yield reading.take(number)
    finally:
        reading.end()


def show_pieces(array: StoredArray, pieces: Iterable[Axes], nbytes: int) -> Iterator[Sight]:
    """Show pieces of an array one after another to who only looks; see `read_pieces`.

    What is in memory is not copied.
    """
    reading = _Reading(array, pieces, nbytes, looks=True)
    try:
        for number in range(len(reading.pieces)):
            yield reading.show(number)
    finally:
        reading.end()


class Sight:
    """A piece to look at, until the next one is asked for.

    Parameters
    ----------
    block
        The items in memory of their own, if they are there.
    shown
        The items where they lie, if they can be looked at there.
    read
        Returns them in memory of their own.
    """

    __slots__ = ("_block", "_read", "_shown")

    def __init__(
        self,
        block: AnyArray | None,
        shown: Shown | None = None,
        read: Callable[[], AnyArray] | None = None,
    ) -> None:
        if shown is not None and shown.is_right is None:
            block, shown = shown.block, None  # it is right for as long as it is looked at
        self._block = block
        self._shown = shown
        self._read = read

    @property
    def block(self) -> AnyArray:
        """The items, read-only perhaps; copied where others' commits might change them."""
        if self._block is None:
            assert self._read is not None
            self._block = self._read()
        return self._block

    def seen_by(self, look: Callable[[AnyArray], AnyArray]) -> Sight:
        """The same piece, looked at another way."""
        block, shown, read = self._block, self._shown, self._read
        return Sight(
            None if block is None else look(block),
            None if shown is None else shown._replace(block=look(shown.block)),
            None if read is None else lambda: look(read()),
        )

    def looks(self) -> Iterator[AnyArray]:
        """Yield the items, and once more where what was seen was not what should be.

        What was made of the first ones then is to be made anew: nothing else may have changed.
        """
        shown = self._shown
        if shown is not None and shown.is_right is not None:
            yield shown.block
            if shown.is_right():
                return
        yield self.block


def is_at_hand(array: StoredArray) -> bool:
    """Whether what is looked at of an array is in the system's cache."""
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
    buffer: AnyArray | None
    """None where they come in place."""
    tasks: list[Task[None]]


class _Reading:
    """The pieces that are on their way, and the buffers for them."""

    def __init__(
        self, array: StoredArray, pieces: Iterable[Axes], nbytes: int, *, looks: bool = False
    ) -> None:
        self._array = array
        self._looks = looks
        self.pieces = pieces = [
            tuple(slice(o.start, o.stop, o.step or 1) for o in piece) for piece in pieces
        ]
        self._shown: Shown | None = None
        """The piece that is looked at where it lies."""
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
        self._total = total

    @cached_property
    def _direct(self) -> bool:
        """Whether it goes past the system's cache."""
        large = self._total > _LARGE_BYTES
        return large and self._total > available_memory_bytes() // _SHARE_OF_FREE

    def _size(self, piece: Axes) -> int:
        return _count(piece) * self._array.itemsize

    def take(self, number: int) -> AnyArray:
        """Return a piece: the one after that which was taken last."""
        block = self._next_landed(number)
        if block is None:
            block = self._read(self.pieces[number])
            self._look()
        self._ask()
        return block

    def show(self, number: int) -> Sight:
        """The same for who only looks: where it lies, if that can be."""
        landed, piece = self._next_landed(number), self.pieces[number]
        shown = self._where_it_lies(piece) if landed is None else None
        if shown is None and landed is None:
            landed = self._read(piece)
            self._look()
        self._ask()
        return Sight(landed, shown, partial(self._read, piece))

    def _next_landed(self, number: int) -> AnyArray | None:
        """Return the next piece if it has arrived; waits for one that is on its way."""
        self._end_sight()
        if self._current is not None:
            self._free.append(self._current)
            self._current = None
        if not self._coming:
            self._ask()
        coming = self._coming.popleft() if self._coming else None
        block = None if coming is None else self._landed(coming)
        if block is None:
            self._next = max(self._next, number + 1)
        return block

    def _where_it_lies(self, piece: Axes) -> Shown | None:
        array = self._array
        if not self._size(piece):
            return None
        with array._turn():
            self._admit(piece)
            shown = self._shown = array._storage.shown(piece or (slice(0, 1, 1),))
        if shown is None or piece:
            return shown
        return shown._replace(block=shown.block.reshape(()))

    def _admit(self, piece: Axes) -> None:
        array = self._array
        array._admit()
        if any(one.stop > n for one, n in zip(piece, array.shape, strict=True)):
            raise LayoutError(f"{array!r} has shrunk while it was read")

    def _end_sight(self) -> None:
        shown, self._shown = self._shown, None
        if shown is not None:
            shown.done()

    def _look(self) -> None:
        """Find out whether pieces come from a device: it pays to ask for those that follow."""
        if not self._comes_from_device:
            before, self._blocks = self._blocks, blocks_read()
            self._comes_from_device = self._blocks != before

    def _landed(self, coming: _Coming) -> AnyArray | None:
        """Wait for a piece that is arriving; None where it has to be read anew, or is in place."""
        if coming.buffer is None:
            for task in coming.tasks:
                task.wait()
            return None
        if not all(task.over for task in coming.tasks):
            self._depth = min(2 * self._depth, len(self.pieces))
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
            self._admit(piece)
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
                if self._looks and not self._direct and arrival.in_place is not None:
                    # One at a time, in order: beyond it, the system reads ahead.
                    if not self._coming:
                        self._bring(storage, arrival, None, [arrival.in_place])
                    return
                buffer = self._buffer(arrival.nbytes, needed=False)
                if buffer is None:
                    if not self._coming:  # there is room for one piece at a time
                        storage.expect(piece)  # the system may have it read
                        self._coming.append(None)
                        self._next += 1
                    return
            self._bring(storage, arrival, buffer, arrival.calls(buffer.data, direct=self._direct))
            ahead += arrival.nbytes

    def _bring(
        self,
        storage: Storage,
        arrival: Arrival,
        buffer: AnyArray | None,
        calls: Iterable[Callable[[], None]],
    ) -> None:
        """Have threads do what makes the next piece arrive."""
        coming = _Coming(storage, arrival, buffer, [])
        self._coming.append(coming)
        self._next += 1
        for call in calls:
            task = Task(call)
            coming.tasks.append(task)  # before it begins: it is waited for
            readers.start(task)

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
        self._end_sight()
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

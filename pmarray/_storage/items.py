"""How one array's items are reached, in memory (`_storage.mapped`) or through a cache.

Storages take canonical selections and blocks (`_selection.basic.Selection`), so that the array
above does not know which it has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pmarray._cache.lull import Lull
from pmarray._cache.source import CommittedStorage
from pmarray._dtypes import DType
from pmarray._geometry.layout import Layout
from pmarray._selection.fancy import FancySelection
from pmarray._storage.arriving import Arrival
from pmarray._storage.dead import DeadBytes
from pmarray._storage.near import Near
from pmarray.backends._protocols import Region, ReservesUnfilled

__all__ = [
    "Axes",
    "Items",
    "Loan",
    "Shown",
    "Storage",
    "as_array",
    "make_room",
    "nothing",
]

AnyArray = NDArray[Any]
Axes = tuple[slice, ...]


class Loan:
    """A writable block that belongs to the storage, until `done` or `failed` ends the loan."""

    __slots__ = ("__weakref__", "block", "done", "failed")

    def __init__(
        self, block: AnyArray, done: Callable[[], None], failed: Callable[[], None]
    ) -> None:
        self.block = block
        """The items, with the shape of the selection; unspecified contents."""
        self.done = done
        """The items have been written."""
        self.failed = failed
        """The items have not, or not all; old values where they can be had."""


class Shown(NamedTuple):
    """Items where they lie; what other threads write meanwhile may be seen, or not."""

    block: AnyArray
    """Read-only, with the shape of the selection."""
    done: Callable[[], None]
    """Nobody looks at them any more."""
    is_right: Callable[[], bool] | None = None
    """Tells, after a look, whether what was seen is what should be; None where it always is."""


class Items(Protocol):
    """The items of one array, or of a view of one."""

    layout: Layout
    near: Near | None = None
    """Reads what is at hand; set by `come_near`, and to be asked first."""

    @property
    def run_nbytes(self) -> int:
        """Adjacent bytes that are read as fast as a few of them."""
        return 1

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """The unit of caching."""

    def read(self, axes: Axes, out: AnyArray, /) -> None:
        """Copy the selected items into `out`."""

    def item(self, position: tuple[int, ...], offset: int, /) -> Any:
        """Return the item at a position, `offset` bytes from the start; or None: `read` it."""

    def come_near(self, lull: Lull, /) -> None:
        """Set `near`, where items can be read without a turn as long as a lull lasts."""
        return

    def expect(self, axes: Axes, /) -> None:
        """Take a hint that items are wanted soon; what cannot use it does nothing."""

    def held(self, axes: Axes, order: Literal["F", "C"], /) -> AnyArray | None:
        """Copy items, at least one, that are in memory, in one piece; None where they are not."""
        return None

    def deferred(self, axes: Axes, /) -> Callable[[AnyArray], bool] | None:
        """Return what reads at least one item later without the group's lock, if that is right.

        It is given the block to fill, and returns false where it has not.
        """
        return None

    def arriving(self, axes: Axes, /) -> Arrival | None:
        """Return what reads items, at least one, beside everything else; None where it is no gain.

        Called with the group's lock.
        """
        return None

    def shown(self, axes: Axes, /) -> Shown | None:
        """Return items, at least one, where they lie; None where they are to be copied.

        Called with the group's lock; who looks at them needs none.
        """
        return None

    def gather(self, selection: FancySelection, out: AnyArray, /) -> bool:
        """Read what an advanced index selects into a block; False where it has to be piecewise."""
        return False

    def write(self, axes: Axes, values: AnyArray, /) -> None:
        """Copy `values`, broadcast to the selection, into the selected items."""

    def lend(self, axes: Axes, /) -> Loan:
        """Lend the memory of a contiguous selection itself."""

    def pin(self, axes: Axes, /) -> Loan:
        """Lend the memory for reading only: it stays where it is and holds the items."""

    def view(self) -> AnyArray | None:
        """Return the whole as a read-only array without copying, if possible."""

    def forget(self, axes: Axes, /) -> None:
        """Take it that nobody wants the selected items; a medium that gains nothing does not."""


class Storage(Items, Protocol):
    """The items of one array, and what its group does with them."""

    dead: DeadBytes
    """What was forgotten."""

    @property
    def holds_fill(self) -> bool:
        """Whether items that were never written hold the fill value."""

    def cached(self) -> list[tuple[tuple[int, ...], int, int]] | None:
        """Return index, valid bytes and bytes not yet landed of each chunk in the cache.

        None of what needs no cache: its items are in memory.
        """

    def unchanged_stamp(self) -> tuple[int, ...] | None:
        """Tell this state of the medium from all others; None where that cannot be."""
        return None

    @property
    def memory(self) -> AnyArray | None:
        """The items themselves, where loads and stores are the way to them."""
        return None

    def share(self, view: AnyArray, /) -> AnyArray | None:
        """Return a view of the items' own memory writable; None where that is the cache's."""

    def shows(self, values: AnyArray, /) -> bool:
        """Whether an array in memory may show items of this storage, and change with them."""

    def set_shape(self, shape: tuple[int, ...], /) -> list[Axes] | None:
        """Change the shape in place; return None where that cannot be without copying.

        Otherwise return the blocks of new items that do not hold the fill value yet.
        """

    def make_durable(self, ndim: int, /) -> None:
        """Return when what was flushed from the cache is durable, and described for others."""

    def begin(self) -> None:
        """A transaction begins: be ready to go back to this moment."""

    def seal(self) -> dict[CommittedStorage, int]:
        """The transaction ends: return a mark for the commit, or nothing if it touched nothing."""

    def roll_back(self, layout: Layout, /) -> None:
        """Go back to the moment of `begin`, with this layout; the cache has forgotten its part."""

    def retire(self) -> None:
        """The array is deleted, unless that is rolled back: nothing is to be written any more."""

    def trim(self) -> None:
        """Give back space that was reserved ahead of need."""

    def discard(self) -> None:
        """Drop everything that is cached, written or not, and release the handles."""

    def close(self) -> None:
        """Release the handles; the caller has flushed."""


def as_array(buffer: Any, layout: Layout, dtype: DType, shape: tuple[int, ...]) -> AnyArray:
    if 0 in shape:
        return np.empty(shape, dtype)  # nothing to point at, perhaps not even a buffer
    return np.ndarray(shape, dtype, buffer, strides=layout.strides)


def make_room(region: Region, unfilled: ReservesUnfilled | None, nbytes: int) -> int:
    """Make a region as long as that; return up to where it may hold something else than zeros.

    `unfilled` is the same region, where it can.
    """
    if unfilled is None:
        region.reserve(nbytes)
        return 0
    unfilled.reserve_unfilled(nbytes)
    return region.capacity


def nothing() -> None:
    """End a loan that needs no ending."""

"""The arrays of a group by name: what its metadata say, and the handles that are open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import DTypeLike

from pmarray._array.home import Home
from pmarray._dtypes import DType, parse_dtype
from pmarray._formats.metadata import ArrayMetadata, GroupMetadata
from pmarray._formats.npy import write_header
from pmarray._geometry.layout import Layout, Order, parse_layout, parse_shape, refuse_unaddressable
from pmarray._geometry.spans import SpanSet
from pmarray._group.kinds import StorageMaker
from pmarray._group.session import Session
from pmarray._storage.items import Storage
from pmarray._url import check_name
from pmarray.array import PMArray
from pmarray.errors import (
    ArrayExistsError,
    ArrayNotFoundError,
    DamagedError,
    ForeignDataError,
    LayoutError,
    SnapshotExpiredError,
)

__all__ = ["Catalog", "NewArray", "OwnAttributes"]


class NewArray(NamedTuple):
    """An array that is to be created, as its caller describes it."""

    shape: tuple[int, ...]
    dtype: DType
    order: Order | None
    fill_value: Any
    chunks: str | int | tuple[int, ...]
    """The unit of caching and writing; see `Group.create`."""
    options: Mapping[str, Any]
    """How a chunk store stores it."""

    @classmethod
    def parse(
        cls,
        name: str,
        shape: int | tuple[int, ...],
        dtype: DTypeLike | None,
        layout: str | None,
        order: str | None,
        fill_value: Any,
        chunks: str | int | tuple[int, ...],
        options: Mapping[str, Any],
    ) -> NewArray:
        """Return what a user asks for; what cannot be is refused."""
        check_name(name)
        kind = parse_dtype("float64" if dtype is None else dtype)
        extents = parse_shape(shape)
        refuse_unaddressable(extents, kind.itemsize)
        plan = Layout.plan(extents, kind.itemsize, parse_layout(layout, order) or "row")
        fill = np.zeros((), kind)
        try:
            if type(fill_value) is int and kind.kind in "iu":
                low, high = np.iinfo(kind).min, np.iinfo(kind).max
                if not low <= fill_value <= high:  # which older NumPys would take modulo 2**n
                    raise OverflowError(f"it has numbers from {low} to {high}")
            if type(fill_value) is not int or fill_value:
                fill[()] = fill_value  # as text, 0 would be the character
            write_header(plan, kind, ndim=len(extents))
        except (ValueError, TypeError, OverflowError) as error:
            raise LayoutError(
                f"cannot create {name!r} of dtype {kind} with fill_value={fill_value!r}: {error}"
            ) from error
        return cls(extents, kind, plan.order, fill[()], chunks, options)


class Catalog:
    """The arrays and attributes of a group.

    Methods are called with the session's lock, admitted, and those that change something as work
    that is not torn (`Session.do`).

    Parameters
    ----------
    session
        The group's.
    home
        What the handles of its arrays are given as their group.
    write_cache
        Whether writes go through the cache also where the medium itself is memory.
    """

    def __init__(self, session: Session, home: Home, *, write_cache: bool) -> None:
        self._session = session
        self._home = home
        self._write_cache = write_cache
        self.metadata = session.committer.saved.metadata
        """As this handle sees them; replaced as a whole, never changed."""
        self.arrays: dict[str, PMArray] = {}
        """The handles that are open."""
        self.removed: list[int] = []
        """Files that go with the next commit or flush."""

    def __contains__(self, name: object) -> bool:
        return name in self.metadata.arrays

    # -- creating -------------------------------------------------------------------------------

    def create(self, name: str, new: NewArray) -> PMArray:
        """Create an array; what its items hold before they are written is for the caller to see."""
        session = self._session
        check_name(name)
        if not session.is_writer:  # becoming the writer makes files, for nothing where this raises
            self.plan(name, new)
        session.begin_writing()
        session.note_change()
        self.refuse_fixed("use a directory to hold several arrays")
        if name in self:
            raise ArrayExistsError(
                f"{session.url} has an array {name!r} already; open it, or delete it first"
            )
        array = self.plan(name, new)
        self._make_way(name)
        storage = self._storage(name, array, new.chunks, new=True)
        self.metadata = self.metadata._replace(
            next_file_id=array.file_id + 1,
            arrays={**self.metadata.arrays, name: array},
        )
        return self._handle(name, array, storage, new.chunks)

    def create_filled(self, name: str, new: NewArray) -> PMArray:
        """Create an array whose items hold the fill value."""
        result = self.create(name, new)
        if not result._storage.holds_fill and result.size:
            result[...] = new.fill_value
        return result

    def plan(self, name: str, new: NewArray) -> ArrayMetadata:
        """Describe a new array, or raise where there can be none like it; nothing is made."""
        refuse_unaddressable(new.shape, new.dtype.itemsize)
        plan = Layout.plan(new.shape, new.dtype.itemsize, new.order or "row")
        array = ArrayMetadata(
            self.metadata.next_file_id,
            new.shape,
            new.dtype,
            plan.order,
            plan.line_stride,
            np.asarray(new.fill_value, new.dtype).tobytes(),
        )
        session = self._session
        return session.kind.plan(
            name, array, new.chunks, session.cache.memory.max_chunk_bytes, new.options
        )

    def _make_way(self, name: str) -> None:
        """What a deleted array has left under this name goes now, if need be with a way back."""
        session = self._session
        if not session.kind.stores_by_name:
            return
        session.cache.settle()
        number = session.cache.transaction
        had_array = name in session.committer.in_force.arrays
        if number is None:
            if had_array and not session.kind.commits_itself:
                session.flush()  # its deletion is durable before its chunks go
                session.note_change()
        elif images := session.kind.images_of_name(name, had_array=had_array):
            session.committer.keep(number, images)

    def _handle(
        self,
        name: str,
        array: ArrayMetadata,
        storage: Storage,
        chunks: str | int | tuple[int, ...],
    ) -> PMArray:
        result = self.arrays[name] = PMArray(self._home, name, array, storage)
        result._chunks = chunks
        return result

    # -- opening --------------------------------------------------------------------------------

    def get(self, name: str, chunks: str | int | tuple[int, ...] = "auto") -> PMArray:
        """Return an array; it is opened where it is not."""
        array = self.metadata.arrays.get(name)
        if array is None:
            raise self._not_found(name)
        result = self.arrays.get(name)
        if result is not None:
            return result
        return self._session.do(lambda: self._open(name, array, chunks))

    def refused(self) -> list[str]:
        """Return the names of arrays that are there and cannot be opened."""
        return sorted(self._session.kind.refused())

    def _not_found(self, name: str) -> ForeignDataError | ArrayNotFoundError:
        if why := self._session.kind.refused().get(name):
            return ForeignDataError(why)
        names = ", ".join(sorted(self.metadata.arrays)) or "no arrays"
        return ArrayNotFoundError(f"no array {name!r} in {self._session.url}; it holds {names}")

    def _open(
        self, name: str, array: ArrayMetadata, chunks: str | int | tuple[int, ...]
    ) -> PMArray:
        result = self._handle(name, array, self._storage(name, array, chunks, new=False), chunks)
        if self._session.transaction is not None:
            self._session.transaction.join(result)
        return result

    def _storage(self, name: str, array: ArrayMetadata, chunks: Any, *, new: bool) -> Storage:
        session = self._session
        try:
            return session.kind.storage(self._maker(), name, array, chunks, new=new)
        except DamagedError:
            if session.snapshot is not None and not session.snapshot.is_latest():
                raise SnapshotExpiredError(
                    f"an array of {session.url} was deleted since this handle read the last "
                    "commit: call refresh()"
                ) from None
            raise

    def _maker(self) -> StorageMaker:
        session = self._session
        in_place = session.is_writer and not self._write_cache
        return StorageMaker(session.cache, session.snapshot, session.committer.keep, in_place)

    # -- deleting -------------------------------------------------------------------------------

    def refuse_to_delete(self, name: str) -> None:
        """Refuse where there is no such array, or none can be deleted."""
        self.refuse_fixed("it cannot be deleted here")
        if name not in self:
            self.get(name)  # raises, and says what there is

    def delete(self, name: str) -> None:
        """Delete an array; its file goes with the next commit or flush."""
        arrays = dict(self.metadata.arrays)
        # Not opened for this: what is damaged can be deleted, and replaced by mode="w".
        result = self.arrays.get(name)
        if result is not None:
            result._refuse_loans("delete", pins=True)
            del self.arrays[name]
            result._detach()
        self.removed.append(arrays.pop(name).file_id)
        self.metadata = self.metadata._replace(arrays=arrays)

    def remove_deleted(self) -> None:
        """Delete the files that arrays have given up."""
        while self.removed:
            self._session.backend.remove(self.removed.pop())

    # -- moving on ------------------------------------------------------------------------------

    def adopt(self, metadata: GroupMetadata) -> None:
        """Move on to these metadata, and to what the backend has of their arrays now."""
        self.metadata = metadata
        for name, array in list(self.arrays.items()):
            now = metadata.arrays.get(name)
            if now is None or now.file_id != array._array.file_id:
                del self.arrays[name]
                array._detach()
            else:
                array._adopt(now, self._storage(name, now, array._chunks, new=False))

    def begin_anew(self) -> None:
        """In a forked child: the storages are the parent's."""
        self.removed = []
        for array in self.arrays.values():
            array._storage = cast(Storage, _Left())

    def forget_changes(self) -> None:
        """Go back to the metadata that are durable; what was deleted since stays."""
        if self._session.is_writer:
            self.metadata = self._session.committer.saved.metadata
            self.removed.clear()

    # -- what arrays ask of it ------------------------------------------------------------------

    def state_of(self, array: ArrayMetadata) -> tuple[object, ...] | None:
        """What an array's committed state is told by; None while this handle may change it."""
        session = self._session
        if session.is_writer:
            return None
        transaction = session.committer.saved.transaction
        return self.metadata.uuid, transaction, array.file_id, repr(session.backend.stamp())

    def occupied_nbytes(self, name: str) -> int | None:
        """Return what an array takes on the medium; None where that cannot be told."""
        return self._session.kind.occupied_nbytes(name, self.metadata.arrays[name])

    def refuse_fixed(self, why: str) -> None:
        """Refuse what a group that is one array cannot have."""
        if not self._session.kind.can_create:
            raise ForeignDataError(f"{self._session.url} is one array, and no group: {why}")

    def note_dead(self) -> bool:
        """Have the metadata say what is dead; return whether more is than they said before."""
        more = False
        for name, array in self.arrays.items():
            before, dead = array._array.dead, array._storage.dead.spans
            if dead != before:
                known = SpanSet.of(before)
                more = more or not all(known.covers(*span) for span in dead)
                array._array = array._array._replace(dead=dead)
                self.update(name, array._array)
        return more

    def admit_shape(self, array: ArrayMetadata) -> None:
        """Refuse an array that the backend cannot have."""
        self._session.backend.admit(array)

    def update(self, name: str, array: ArrayMetadata) -> None:
        """Note what has become of an array."""
        self.metadata = self.metadata._replace(arrays={**self.metadata.arrays, name: array})

    def new_file(
        self, array: ArrayMetadata, shape: tuple[int, ...]
    ) -> tuple[ArrayMetadata, Storage]:
        """Make a file for the same array in another shape; nothing refers to it yet."""
        self.refuse_fixed("its one array cannot move to another file")
        plan = Layout.plan(shape, array.dtype.itemsize, array.order)
        moved = array._replace(
            file_id=self.metadata.next_file_id,
            shape=shape,
            line_stride=plan.line_stride,
            dead=(),
        )
        storage = self._session.kind.moved(self._maker(), moved)
        self.metadata = self.metadata._replace(next_file_id=moved.file_id + 1)
        return moved, storage

    def discard_file(self, array: ArrayMetadata) -> None:
        """Delete a file that nothing refers to."""
        self._session.backend.remove(array.file_id)

    def replace_array(self, name: str, old: ArrayMetadata, new: ArrayMetadata) -> None:
        """Give an array another file; the old one goes when the metadata are durable."""
        self.removed.append(old.file_id)
        self.update(name, new)

    def retire(self, storage: Storage) -> None:
        """Release what a deleted or moved array had, or keep it while there is a way back."""
        if self._session.transaction is None:
            storage.discard()
        else:
            storage.retire()
            self._session.transaction.retired.append(storage)


class OwnAttributes:
    """The group itself as the owner of attributes; see `Attributes`."""

    def __init__(self, session: Session, catalog: Catalog) -> None:
        self._catalog = catalog
        self._turn = session.turn
        self._admit = session.admit
        self._admit_writer = session.admit_writer
        self._do = session.do
        self._refuse_fixed = catalog.refuse_fixed

    @property
    def _attributes(self) -> Mapping[str, Any]:
        return self._catalog.metadata.attrs

    def _replace_attributes(self, attrs: dict[str, Any]) -> None:
        self._catalog.metadata = self._catalog.metadata._replace(attrs=attrs)


class _Left:
    """What an array of the parent has in a child: closing the real one may wait for its threads."""

    def close(self) -> None:
        pass

    retire = discard = close

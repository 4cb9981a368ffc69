"""What a backend promises, as tests: subclass one of these suites for yours, and run it by pytest.

A suite asks the backend for what it can do, and skips the tests of what it does not claim.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn
from unittest import SkipTest

import numpy as np
from numpy.typing import NDArray

from pmarray._formats.metadata import ArrayMetadata, Checkpoint, GroupMetadata
from pmarray._geometry.layout import Layout
from pmarray.backends._protocols import (
    ChunkBackend,
    Chunks,
    KeepsImages,
    Measures,
    Publishes,
    Region,
    RegionBackend,
    RemovesOrphans,
)
from pmarray.errors import GroupLockedError

__all__ = ["ChunksTests", "RegionTests"]

_ROUNDS = 40


def _skip(backend: object, what: str) -> NoReturn:
    raise SkipTest(f"{type(backend).__name__} {what}")


def _can(backend: object, capability: Any) -> bool:
    return isinstance(backend, capability)


class _BackendTests(ABC):
    """What all backends promise."""

    excludes_writers = True
    """Whether a second writer is refused; those of an object store cannot."""

    @abstractmethod
    def open(self, place: Path, *, writable: bool) -> Any:
        """Return a new handle of the group at `place`, an empty directory of the test's own."""

    def _save(self, backend: Any, metadata: GroupMetadata) -> None:
        backend.save(Checkpoint(metadata))

    def test_what_is_saved_is_loaded_by_others(self, tmp_path: Path) -> None:
        """The last `save` is what any other handle loads."""
        backend = self.open(tmp_path, writable=True)
        try:
            assert backend.load() is None
            backend.lock()
            for step in range(3):
                metadata = GroupMetadata(uuid=str(uuid.uuid4()), attrs={"step": step})
                self._save(backend, metadata)
                other = self.open(tmp_path, writable=False)
                try:
                    loaded = other.load()
                    assert loaded is not None
                    assert loaded.metadata.attrs == {"step": step}
                finally:
                    other.close()
        finally:
            backend.close()

    def test_each_save_has_a_stamp_of_its_own(self, tmp_path: Path) -> None:
        """Readers tell by the stamp that there is something new."""
        backend = self.open(tmp_path, writable=True)
        try:
            if not backend.has_journal:
                _skip(backend, "has no journal, whose readers need it")
            backend.load()
            backend.lock()
            seen = []
            for step in range(3):
                self._save(backend, GroupMetadata(uuid=str(uuid.uuid4()), attrs={"step": step}))
                seen.append(backend.stamp())
                assert backend.stamp() == seen[-1]
            assert all(one != other for one, other in pairwise(seen))
        finally:
            backend.close()

    def test_there_is_one_writer(self, tmp_path: Path) -> None:
        """The lock is given to one handle at a time."""
        first, second = (self.open(tmp_path, writable=True) for _ in range(2))
        try:
            first.load()
            if not self.excludes_writers:
                _skip(first, "lets several writers in")
            first.lock()
            self._save(first, GroupMetadata(uuid=str(uuid.uuid4())))
            second.load()
            try:
                second.lock()
            except GroupLockedError:
                pass
            else:
                raise AssertionError("a second writer was let in")
            first.close()
            second.lock()  # now it may
        finally:
            first.close()
            second.close()

    def test_a_journal_is_made_when_it_is_asked_for(self, tmp_path: Path) -> None:
        """The journal is a region like any other."""
        backend = self.open(tmp_path, writable=True)
        try:
            if not backend.has_journal:
                _skip(backend, "has no journal")
            backend.load()
            backend.lock()
            self._save(backend, GroupMetadata(uuid=str(uuid.uuid4())))
            assert backend.open_journal(create=False) is None
            journal = backend.open_journal(create=True)
            assert journal is not None
            region_keeps_what_is_written(journal, 3 * _step(journal))
            journal.close()
            found = backend.open_journal(create=False)
            assert found is not None
            found.close()
        finally:
            backend.close()


def _one_axis(file_id: int, nbytes: int) -> ArrayMetadata:
    layout = Layout.plan((nbytes,), 1, "row")
    return ArrayMetadata(
        file_id, (nbytes,), np.dtype("uint8"), layout.order, layout.line_stride, b"\0"
    )


class RegionTests(_BackendTests):
    """For backends that keep one region of bytes an array.

    Examples
    --------
    >>> import pmarray.testing
    >>> from pmarray.backends.files.memmap import MemmapBackend
    >>> class TestMemmap(pmarray.testing.RegionTests):
    ...     def open(self, place, *, writable):
    ...         return MemmapBackend(str(place / "group"), writable=writable)
    """

    def _made(self, place: Path) -> Any:
        backend = self.open(place, writable=True)
        assert isinstance(backend, RegionBackend)
        backend.load()
        backend.lock()
        self._save(backend, GroupMetadata(uuid=str(uuid.uuid4())))
        return backend

    def test_a_region_is_bytes(self, tmp_path: Path) -> None:
        """What is written is read, and new bytes are zeros."""
        backend = self._made(tmp_path)
        try:
            region = backend.create(1, 0, aligned=True)
            region_keeps_what_is_written(region, 5 * _step(region))
            region.close()
        finally:
            backend.close()

    def test_what_is_durable_is_found_by_others(self, tmp_path: Path) -> None:
        """Another handle of the region reads the same bytes."""
        backend = self._made(tmp_path)
        try:
            region = backend.create(7, 8192, aligned=True)
            data = np.arange(8192, dtype=np.uint8)
            region.write(0, [data.data])
            region.barrier()
            again = backend.open(7, 8192, aligned=True)
            out = np.empty(8192, np.uint8)
            again.read_into(0, out.data)
            np.testing.assert_array_equal(out, data)
            again.close()
            region.close()
        finally:
            backend.close()

    def test_what_no_metadata_name_is_an_orphan(self, tmp_path: Path) -> None:
        """It is told, and removed, and nothing else is."""
        backend = self._made(tmp_path)
        try:
            if not _can(backend, RemovesOrphans):
                _skip(backend, "removes nothing that a crash could leave")
            for file_id in (1, 2):
                backend.create(file_id, 4096, aligned=True).close()
            metadata = GroupMetadata(
                uuid=str(uuid.uuid4()), next_file_id=3, arrays={"x": _one_axis(1, 16)}
            )
            assert len(backend.orphans(metadata)) == 1
            backend.remove_orphans(metadata)
            assert not backend.orphans(metadata)
            backend.open(1, 16, aligned=False).close()  # the other one is there
        finally:
            backend.close()

    def test_what_an_array_takes_is_measured(self, tmp_path: Path) -> None:
        """More when it has been written to, and no more than it has items and padding."""
        backend = self._made(tmp_path)
        try:
            if not _can(backend, Measures):
                _skip(backend, "does not measure")
            region = backend.create(1, 1 << 20, aligned=True)
            array = _one_axis(1, 1 << 20)
            before = backend.occupied_nbytes("x", array)
            region.write(0, [np.ones(1 << 20, np.uint8).data])
            region.barrier()
            region.close()
            # A file system may compress.
            assert before <= backend.occupied_nbytes("x", array) <= 1 << 20
            assert backend.occupied_nbytes("x", array) > 0
        finally:
            backend.close()

    def test_names_lead_to_the_files(self, tmp_path: Path) -> None:
        """Other programs find files, and a name may change."""
        backend = self._made(tmp_path)
        try:
            if not _can(backend, Publishes):
                _skip(backend, "has no files for other programs")
            backend.create(1, 4096, aligned=True).close()
            assert Path(backend.data_path(1)).is_file()
            backend.publish({"x": 1})
            backend.publish({"y": 1})  # renamed
        finally:
            backend.close()

    def test_what_was_removed_makes_room_for_another(self, tmp_path: Path) -> None:
        """A new region has nothing of one that was removed."""
        backend = self._made(tmp_path)
        try:
            region = backend.create(1, 4096, aligned=True)
            region.write(0, [np.full(4096, 7, np.uint8).data])
            region.close()
            backend.remove(1)
            region = backend.create(2, 4096, aligned=True)
            out = np.full(4096, 9, np.uint8)
            region.read_into(0, out.data)
            assert not out.any(), "a new region is zeros"
            region.close()
        finally:
            backend.close()


def _step(region: Region) -> int:
    return max(4096, region.block_bytes)


def region_keeps_what_is_written(region: Region, nbytes: int) -> None:
    """Compare a region with a bytearray, through writes of whole blocks, growth and cutting."""
    rng = np.random.default_rng(nbytes)
    block = _step(region)
    region.reserve(nbytes)
    assert region.capacity >= nbytes
    model = np.zeros(nbytes, np.uint8)
    for round_ in range(_ROUNDS):
        start = int(rng.integers(0, model.size // block)) * block
        stop = int(rng.integers(start // block + 1, model.size // block + 1)) * block
        data = rng.integers(0, 256, stop - start, np.uint8)
        cut = int(rng.integers(0, data.size // block + 1)) * block
        pieces: Sequence[memoryview] = [
            aligned(data[:cut]).data,
            aligned(data[cut:]).data,
        ]
        region.write(start, [piece for piece in pieces if piece.nbytes])
        model[start:stop] = data
        if round_ % 10 == 9:
            region.barrier()
            grown = np.zeros(model.size + block, np.uint8)
            grown[: model.size] = model
            model = grown
            region.reserve(model.size)
            region.will_read(0, model.size)
        first = int(rng.integers(0, model.size))
        out = np.empty(int(rng.integers(1, model.size - first + 1)), np.uint8)
        region.read_into(first, out.data)
        np.testing.assert_array_equal(out, model[first : first + out.size])
    view = region.view(model.size)
    if view is not None:
        assert not view.flags.writeable
        np.testing.assert_array_equal(view, model)


def aligned(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a copy at a page boundary, as the cache's buffers are."""
    room = np.empty(data.size + 4096, np.uint8)
    start = -room.ctypes.data % 4096
    room[start : start + data.size] = data
    return room[start : start + data.size]


class ChunksTests(_BackendTests):
    """For backends that keep chunks as objects of their own.

    Examples
    --------
    >>> import pmarray.testing
    >>> from pmarray.backends.zarr.local import LocalZarrBackend
    >>> class TestLocalZarr(pmarray.testing.ChunksTests):
    ...     def open(self, place, *, writable):
    ...         return LocalZarrBackend(str(place / "group"), writable=writable)
    """

    def _made(self, place: Path) -> tuple[Any, ArrayMetadata, Chunks, GroupMetadata]:
        backend = self.open(place, writable=True)
        assert isinstance(backend, ChunkBackend)
        backend.load()
        backend.lock()
        metadata = GroupMetadata(uuid=str(uuid.uuid4()))
        self._save(backend, metadata)
        layout = Layout.plan((6, 4), 8, "row")
        dtype = np.dtype("float64")
        described = ArrayMetadata(
            1, (6, 4), dtype, layout.order, layout.line_stride, np.array(7.0).tobytes()
        )
        array = backend.plan("x", described, (2, 4), 1 << 20, {})
        chunks = backend.create_chunks("x", array)
        metadata = GroupMetadata(uuid=metadata.uuid, next_file_id=2, arrays={"x": array})
        self._save(backend, metadata)
        return backend, array, chunks, metadata

    def test_chunks_are_kept_replaced_and_deleted(self, tmp_path: Path) -> None:
        """Chunks are a mapping whose missing items are the fill value."""
        backend, array, chunks, metadata = self._made(tmp_path)
        try:
            rng = np.random.default_rng(0)
            model: dict[tuple[int, ...], Any] = {}
            fill = np.full(chunks.shape, 7.0)
            for _ in range(_ROUNDS):
                chunk = (int(rng.integers(0, 3)), 0)
                if rng.random() < 0.3:
                    chunks.delete(chunk)
                    model.pop(chunk, None)
                else:
                    model[chunk] = rng.normal(size=chunks.shape)
                    chunks.write(chunk, model[chunk])
                for one in np.ndindex(3, 1):
                    out = np.empty(chunks.shape)
                    chunks.read_into(one, out)
                    np.testing.assert_array_equal(out, model.get(one, fill))
            backend.barrier()
            self._save(backend, metadata)
            other = self.open(tmp_path, writable=False)
            try:
                other.load()
                found = other.open_chunks("x", array)
                for one in np.ndindex(3, 1):
                    out = np.empty(chunks.shape)
                    found.read_into(one, out)
                    np.testing.assert_array_equal(out, model.get(one, fill))
            finally:
                other.close()
        finally:
            backend.close()

    def test_chunks_that_were_lost_can_be_deleted_when_the_array_has_grown_again(
        self, tmp_path: Path
    ) -> None:
        """An array that shrinks and grows before its metadata are saved loses what it had."""
        backend, _, chunks, metadata = self._made(tmp_path)
        try:
            last = np.full(chunks.shape, 3.0)
            chunks.write((2, 0), last)
            backend.barrier()
            self._save(backend, metadata)
            chunks.grow((4, 4))  # after it had 2 rows
            chunks.delete((2, 0))
            chunks.grow((6, 4))
            chunks.read_into((2, 0), last)
            np.testing.assert_array_equal(last, np.full(chunks.shape, 7.0))
            backend.barrier()
            self._save(backend, metadata)
        finally:
            backend.close()

    def test_what_an_array_takes_is_measured(self, tmp_path: Path) -> None:
        """More when chunks have been written."""
        backend, array, chunks, _ = self._made(tmp_path)
        try:
            if not _can(backend, Measures):
                _skip(backend, "does not measure")
            before = backend.occupied_nbytes("x", array)
            chunks.write((0, 0), np.random.default_rng(0).normal(size=chunks.shape))
            backend.barrier()
            assert before < backend.occupied_nbytes("x", array)
        finally:
            backend.close()

    def test_each_chunk_has_a_key(self, tmp_path: Path) -> None:
        """No two chunks are one object."""
        backend, _, chunks, _ = self._made(tmp_path)
        try:
            assert len({chunks.key((i, 0)) for i in range(3)}) == 3
        finally:
            backend.close()

    def test_a_before_image_brings_a_chunk_back(self, tmp_path: Path) -> None:
        """Also one that was not there: it is deleted."""
        backend, _, chunks, _ = self._made(tmp_path)
        try:
            if not _can(backend, KeepsImages):
                _skip(backend, "keeps no before-images")
            old = np.arange(8.0).reshape(chunks.shape)
            chunks.write((1, 0), old)
            backend.barrier()
            images = [chunks.before_image((1, 0)), chunks.before_image((2, 0))]  # one is not there
            backend.images_kept()
            for i in (1, 2):
                chunks.write((i, 0), old + 1)
            target = backend.images()
            for image in images:
                assert image is not None
                target.write(image[0], [memoryview(image[1])])
            target.barrier()
            target.close()
            for i, expected in ((1, old), (2, np.full(chunks.shape, 7.0))):
                out = np.empty(chunks.shape)
                chunks.read_into((i, 0), out)
                np.testing.assert_array_equal(out, expected)
            backend.committed()
        finally:
            backend.close()

    def test_what_was_not_saved_can_be_forgotten(self, tmp_path: Path) -> None:
        """Where the backend commits itself."""
        backend, array, chunks, _ = self._made(tmp_path)
        try:
            if not backend.commits:
                _skip(backend, "does not commit by itself")
            chunks.write((0, 0), np.zeros(chunks.shape))
            assert backend.has_changes()
            backend.roll_back()
            assert not backend.has_changes()
            out = np.empty(chunks.shape)
            backend.open_chunks("x", array).read_into((0, 0), out)
            assert (out == 7).all()
        finally:
            backend.close()

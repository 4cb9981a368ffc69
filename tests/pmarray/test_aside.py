"""Old bytes that stay in memory for the journal are what the medium has, and save reading it."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import pmarray
from pmarray._cache.cache import ChunkCache
from pmarray._commits.journal import MAX_PAYLOAD_BYTES
from pmarray._formats.records import Image
from pmarray._storage import oldbytes, region
from pmarray._storage.region import RegionStorage
from pmarray.errors import StorageError
from tests.machine import forget_files
from tests.sampling import examples

ROWS = 20_000
COLUMN_BYTES = 81920
"""In whole blocks."""


class Images:
    """Looks at every image on its way into the journal."""

    def __init__(self) -> None:
        self.known = self.read = 0
        """Bytes of images that were in memory, and of others."""

    def before(self, place: Any, *args: Any) -> Iterator[Image]:
        for image in oldbytes.images_before(place, *args):
            there = memoryview(bytearray(image.data.nbytes))
            place.read_into(image.offset, there)
            assert image.data == there
            self.known += image.data.nbytes
            yield image

    def of(self, *args: Any) -> Iterator[Image]:
        for image in REAL(*args):
            self.read += image.data.nbytes
            self.known -= image.data.nbytes
            yield image


REAL = oldbytes.images_of


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> Images:
    looking = Images()
    monkeypatch.setattr(region, "images_before", looking.before)
    monkeypatch.setattr(oldbytes, "images_of", looking.of)
    return looking


def begun(group: pmarray.Group, columns: int, value: float = 1) -> Any:
    """An array that is cached, in a group that has a journal."""
    x = group.create("x", (ROWS, columns), "float32", layout="col")
    for j in range(columns):
        x[:, j] = value + j
    with group.transaction():
        x[0, 0] = value
    return x


@pytest.mark.parametrize("loan", [False, True])
@pytest.mark.parametrize("wait", [False, True])
def test_what_is_in_memory_is_not_read(
    tmp_path: Path, images: Images, loan: bool, wait: bool
) -> None:
    with pmarray.open_group(tmp_path / "g") as group:
        x = begun(group, 4)
        images.known = images.read = 0
        for k in range(12):
            with group.transaction(wait=wait):
                if loan:
                    with x.writing((slice(None), k % 4)) as out:
                        out[...] = k
                else:
                    x[:, k % 4] = k
            group.flush()
        assert images.known == 12 * COLUMN_BYTES
        assert images.read == 0
        for j in range(4):
            assert (x[:, j] == 8 + j).all()


def test_what_is_not_in_memory_is_read(tmp_path: Path, images: Images) -> None:
    with pmarray.open_group(tmp_path / "g") as group:
        begun(group, 4)
    images.known = images.read = 0
    with pmarray.open_group(tmp_path / "g") as group, group.transaction():
        group["x"][:, 1] = 5
    assert images.read > ROWS * 4
    assert images.known == 0


def test_a_cache_without_room_reads(tmp_path: Path, images: Images) -> None:
    """One chunk is all that it holds."""
    with pmarray.open_group(tmp_path / "g", cache=2 * COLUMN_BYTES) as group:
        x = group.create("x", (ROWS, 2), "float32", layout="col")
        x[:, 0], x[:, 1] = 1, 2
        with group.transaction():
            x[:, 0], x[:, 1] = 3, 4
        assert (x[:, 0] == 3).all()
        assert (x[:, 1] == 4).all()
        with pytest.raises(ZeroDivisionError), group.transaction():
            x[:, 0], x[:, 1] = 5, 6
            1 / 0  # noqa: B018
        assert (x[:, 0] == 3).all()
        assert (x[:, 1] == 4).all()


def test_rolled_back_after_it_has_left(tmp_path: Path, images: Images) -> None:
    """More is overwritten than the memory holds, so that columns leave, and leave again."""
    with pmarray.open_group(tmp_path / "g", cache=6 * COLUMN_BYTES) as group:
        x = begun(group, 8)
        with pytest.raises(ZeroDivisionError), group.transaction():
            for k in range(24):
                x[:, k % 8] = 100 + k
                if k % 3:
                    x._group._session.cache.flush()
                x[:, k % 8] = 200 + k
            1 / 0  # noqa: B018
        for j in range(8):
            assert (x[:, j] == 1 + j).all()
        assert images.known > 0
    assert not pmarray.verify(tmp_path / "g")


def test_a_reader_sees_old_bytes_that_were_never_read(tmp_path: Path, images: Images) -> None:
    with pmarray.open_group(tmp_path / "g") as group:
        x = begun(group, 4)
        with pmarray.open_group(tmp_path / "g", mode="r") as reader:
            images.read = 0
            with group.transaction():
                x[:, 2] = -1
            forget_files(tmp_path / "g")
            assert images.read == 0
            assert (reader["x"][:, 2] == 3).all()
            reader.refresh()
            assert (reader["x"][:, 2] == -1).all()


def test_a_write_that_failed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pmarray.open_group(tmp_path / "g") as group:
        x = begun(group, 4)
        store, full = RegionStorage.store, [True]

        def failing(storage: RegionStorage, writes: Any) -> None:
            if full and full.pop():
                raise StorageError(28, "No space left on device")
            store(storage, writes)

        with pytest.raises(ZeroDivisionError), group.transaction():
            x[:, 1] = 9
            1 / 0  # noqa: B018
        assert (x[:, 1] == 2).all()
        monkeypatch.setattr(RegionStorage, "store", failing)
        x[:, 1] = 10
        with pytest.raises(StorageError, match="No space"):
            group.flush()
        with group.transaction():
            x[:, 1] = 11
        with pytest.raises(ZeroDivisionError), group.transaction():
            x[:, 1] = 12
            1 / 0  # noqa: B018
        assert (x[:, 1] == 11).all()


def test_all_memory_comes_back(tmp_path: Path) -> None:
    """Whatever becomes of a transaction: its old bytes are not kept."""
    with pmarray.open_group(tmp_path / "g", cache=8 * COLUMN_BYTES) as group:
        x = begun(group, 4)
        cache: ChunkCache = x._group._session.cache
        for k in range(20):
            try:
                with group.transaction(wait=bool(k % 2)):
                    x[:, k % 4] = k
                    with x.writing((slice(None), (k + 1) % 4)) as out:
                        out[...] = k
                        if k % 5 == 3:
                            1 / 0  # noqa: B018
            except ZeroDivisionError:
                pass
            group.flush()
            lent = cache.memory.used_bytes - sum(
                len(free) * size for size, free in cache.memory._pool._free.items()
            )
            assert lent == sum(chunk.buffer.nbytes for chunk in cache._chunks.values())
            assert not any(chunk.olds or chunk.old for chunk in cache._chunks.values())


OPERATIONS = ["column", "column", "columns", "part", "row", "loan", "torn loan", "read", "flush"]


@examples(6)
@given(
    seed=st.integers(0, 2**32 - 1),
    cache=st.sampled_from(["auto", 3 * COLUMN_BYTES, 6 * COLUMN_BYTES, 1 << 16]),
    rows=st.sampled_from([ROWS, 600, 1024, 40_000]),
    layout=st.sampled_from(["col", "row"]),
    window=st.sampled_from([0.0, 0.01]),
)
def test_any_history_is_that_of_its_model(
    seed: int, cache: Any, rows: int, layout: Any, window: float
) -> None:
    rng, looking = random.Random(seed), Images()
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "g"
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        patched.setattr(region, "images_before", looking.before)
        patched.setattr(oldbytes, "images_of", looking.of)
        group = stack.enter_context(pmarray.open_group(place, cache=cache, commit_window=window))
        model: NDArray[np.float32] = np.zeros((rows, 6), np.float32)
        x = group.create("x", model.shape, "float32", layout=layout)
        for _ in range(12):
            after = model.copy()
            fails = rng.random() < 0.3
            try:
                with group.transaction(wait=rng.random() < 0.3):
                    for _ in range(rng.randrange(1, 6)):
                        _operate(rng, x, after)
                    if fails:
                        raise ZeroDivisionError
                model = after
            except ZeroDivisionError:
                pass
            if rng.random() < 0.3:
                _operate(rng, x, model)
            if rng.random() < 0.2:
                j = rng.randrange(6)
                assert np.array_equal(x[:, j], model[:, j])
        assert np.array_equal(x[...], model)
        group.close()
        with pmarray.open_group(place, mode="r") as again:
            assert np.array_equal(again["x"][...], model)


def _operate(rng: random.Random, x: Any, model: NDArray[np.float32]) -> None:
    j, value = rng.randrange(6), np.float32(rng.random())
    start = rng.randrange(len(model))
    lends = x.layout == "col" and x._group.cache_bytes > 2 * 4 * len(model) + 8192
    match rng.choice(OPERATIONS):
        case "column":
            x[:, j] = model[:, j] = value
        case "columns":
            x[:, j : j + 3] = model[:, j : j + 3] = value
        case "part":
            x[start : start + 300, j] = model[start : start + 300, j] = value
        case "row":
            x[start] = model[start] = value
        case "loan" if lends:
            with x.writing((slice(None), j)) as out:
                out[...] = value
            model[:, j] = value
        case "torn loan" if lends:
            with pytest.raises(KeyError), x.writing((slice(None), j)):
                raise KeyError
        case "flush" if x._group.transaction_owner is None:
            x._group.flush()
        case _:
            assert np.array_equal(x[:, j], model[:, j])


def test_columns_of_many_records(tmp_path: Path, images: Images) -> None:
    """A column of several records, of which each has a part."""
    rows = 3 * MAX_PAYLOAD_BYTES // 4 + 1000
    with pmarray.open_group(tmp_path / "g") as group:
        x = group.create("x", (rows, 2), "float32", layout="col")
        values = np.random.default_rng(0).standard_normal((rows, 2)).astype(np.float32)
        x[...] = values
        group.flush()
        with pytest.raises(ZeroDivisionError), group.transaction():
            x[:, 0] = 1
            x._group._session.cache.flush()
            1 / 0  # noqa: B018
        assert np.array_equal(x[...], values)

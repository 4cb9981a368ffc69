"""Parts of uncompressed chunks are read as ranges of bytes, and mean what whole chunks mean."""

from __future__ import annotations

import math
import shutil
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

import pmarray
from pmarray._storage import storereads
from pmarray.backends.zarr.chunks import ZarrChunks
from pmarray.backends.zarr.files import FileStore
from pmarray.backends.zarr.shards import StoredObject, WholeFile
from pmarray.errors import DamagedError
from tests.pmarray.conftest import Bucket
from tests.sampling import examples


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storereads, "_PART_BYTES", 64)
    monkeypatch.setattr(storereads, "_FAR_PART_BYTES", 64)
    monkeypatch.setattr(ZarrChunks, "_least_of_shard", 1)


class Reads:
    """Counts the bytes that were read of chunks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parts = self.whole = self.calls = 0
        read_parts_into, read = FileStore.read_parts_into, FileStore.read

        def counted_parts(store: FileStore, key: str, parts: Any, nbytes: int) -> bool:
            read = sum(out.nbytes for _, out in parts)
            if read == nbytes:
                self.whole += read
            else:
                self.calls += 1
                self.parts += read
            return read_parts_into(store, key, parts, nbytes)

        def counted(store: FileStore, key: str) -> Any:
            data = read(store, key)
            if "/c/" in key and data is not None:
                self.whole += len(data)
            return data

        monkeypatch.setattr(FileStore, "read_parts_into", counted_parts)
        monkeypatch.setattr(FileStore, "read", counted)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


@pytest.mark.parametrize("layout", ["row", "col"])
def test_a_line_across_does_not_read_whole_chunks(
    layout: Any, tmp_path: Path, reads: Reads
) -> None:
    shape = (100_000, 8) if layout == "col" else (8, 100_000)
    numbers = np.arange(800_000.0).reshape(shape)
    chunks = tuple(min(n, 100_000) if n > 8 else 1 for n in shape)
    url = f"zarr:{tmp_path}/g"
    with pmarray.open(url, shape, layout=layout, chunks=chunks) as array:
        array[...] = numbers
    with pmarray.open(url, mode="r") as array:
        at = (70_000, slice(None)) if layout == "col" else (slice(None), 70_000)
        assert (array[at] == numbers[at]).all()
        assert (reads.parts, reads.whole) == (8 * (64 << 10), 0)
        assert (array[at] == numbers[at]).all()  # cached
        assert array[at][3] == array[(70_000, 3) if layout == "col" else (3, 70_000)]
        assert (reads.parts, reads.whole) == (8 * (64 << 10), 0)
        line = (slice(None), 2) if layout == "col" else (2, slice(None))
        assert (array[line] == numbers[line]).all()
        assert reads.whole == 0
        assert reads.parts == 8 * (64 << 10) + 800_000 - (64 << 10)  # what was missing of it


def test_a_reader_in_order_takes_few_steps(tmp_path: Path, reads: Reads) -> None:
    url = f"zarr:{tmp_path}/g"
    with pmarray.open(url, (4096, 64), layout="row", chunks=(4096, 64)) as array:
        array[...] = numbers = np.arange(4096 * 64.0).reshape(4096, 64)
    with pmarray.open(url, mode="r") as array:
        for i in range(4096):
            assert (array[i] == numbers[i]).all()
    assert reads.calls <= 7
    assert reads.parts + reads.whole == numbers.nbytes


KINDS: list[dict[str, Any]] = [
    {},
    {"sharded": True},
    {"sharded": True, "codecs": ["zstd"]},
]


@given(data=st.data())
@examples(2)
@pytest.mark.usefixtures("short_parts")
def test_histories_agree_with_numpy(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ndim = data.draw(st.integers(1, 3))
    shape = tuple(data.draw(st.lists(st.integers(1, 16), min_size=ndim, max_size=ndim)))
    chunks = tuple(data.draw(st.integers(1, n + 3)) for n in shape)
    dtype = data.draw(st.sampled_from(["f8", "i2", "M8[s]", ">f4", "c16", "U3", "bool"]))
    layout = data.draw(st.sampled_from(["row", "col"]))
    stored = dict(data.draw(st.sampled_from(KINDS)))
    if stored.pop("sharded", False):
        # Often of slabs, of which some can be read without the rest.
        slow = 0 if layout == "row" else ndim - 1
        times = [data.draw(st.sampled_from([1, 1, 2])) for _ in shape]
        times[slow] = data.draw(st.integers(1, 5))
        shards = tuple(n * m for n, m in zip(chunks, times, strict=True))
        if math.prod(shards) * np.dtype(dtype).itemsize <= 100 << 10:  # the cache holds two
            stored["shards"] = shards
    where = data.draw(st.sampled_from(["disk", "memory"]))
    url = (
        f"zarr:{tmp_path_factory.mktemp('z')}/g"
        if where == "disk"
        else f"zarr:memory://{uuid.uuid4()}"
    )
    options: dict[str, Any] = {
        "layout": layout,
        "cache": data.draw(st.sampled_from([0, "256 KiB", "1 MiB"])),
    }
    model = np.zeros(shape, dtype)
    array = pmarray.open(url, shape, dtype, chunks=chunks, **stored, **options)

    def index() -> Any:
        axes = []
        for n in shape:
            start = data.draw(st.integers(0, n - 1))
            stop = data.draw(st.integers(start, min(n, start + 5)))
            axes.append(slice(start, stop, data.draw(st.integers(1, 3))))
        return tuple(axes)

    try:
        for step in range(data.draw(st.integers(3, 12))):
            deed = data.draw(st.sampled_from(["write", "read", "read", "read", "flush", "again"]))
            at = index()
            if deed == "write":
                value = np.array(step % 2 if dtype == "bool" else step).astype(dtype)
                model[at] = array[at] = value
            elif deed == "read":
                np.testing.assert_array_equal(array[at], model[at])
            elif deed == "flush":
                array.flush()
            else:
                array.group.close()
                array = pmarray.open(url, mode="r+", cache=options["cache"])
        np.testing.assert_array_equal(array[...], model)
    finally:
        array.group.close()


def test_a_store_in_memory_has_a_copy_of_what_is_written() -> None:
    with pmarray.open(f"zarr:memory://{uuid.uuid4()}", (2,), chunks=(1,), cache=0) as array:
        array[:] = [1, 2]
        assert array[:].tolist() == [1, 2]


@pytest.mark.usefixtures("short_parts")
def test_a_reader_stays_at_its_commit(tmp_path: Path, reads: Reads) -> None:
    url = f"zarr:{tmp_path}/g"
    with pmarray.open(url, (1000, 6), layout="col", chunks=(1000, 1), cache="16 KiB") as writer:
        with writer.transaction():
            writer[...] = 1
        with pmarray.open(url, mode="r") as reader:
            assert (reader[5] == 1).all()
            with writer.transaction():
                for value in (2, 3):
                    writer[...] = value  # more than the cache holds: most of it is in the store
                    assert (reader[300 * value] == 1).all()
                assert (reader[990:, 1] == 1).all()
                assert (reader[:, 2] == 1).all()
            assert reads.parts
            reader.group.refresh()
            assert (reader[700] == 3).all()
            assert reader[701, 4] == 3


@pytest.mark.usefixtures("short_parts")
@pytest.mark.parametrize("nbytes", [0, 100, 9000])
def test_a_chunk_of_another_length_is_damaged(nbytes: int, tmp_path: Path) -> None:
    url = f"zarr:{tmp_path}/g"
    with pmarray.open(url, (1000, 2), layout="col", chunks=(1000, 1)) as array:
        array[...] = 1
    (tmp_path / "g/array/c/0/1").write_bytes(bytes(nbytes))
    with pmarray.open(url, mode="r") as array:
        assert array[5, :1] == 1
        with pytest.raises(DamagedError, match="backup"):
            array[5]


# -- shards ---------------------------------------------------------------------------------------


def sharded(tmp_path: Path, **options: Any) -> tuple[str, Any]:
    """An array of one shard of 8 columns, a chunk each, and what it holds."""
    url = f"zarr:{tmp_path}/g"
    numbers = np.random.default_rng(0).normal(size=(20_000, 8))
    with pmarray.open(
        url, numbers.shape, layout="col", chunks=(20_000, 1), shards=(20_000, 8), **options
    ) as array:
        array[...] = numbers
    return url, numbers


class Bytes:
    """Counts what is read of files in ranges."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nbytes = 0
        get = WholeFile.get

        async def counted(file: WholeFile, prototype: Any, byte_range: Any = None) -> Any:
            data = await get(file, prototype, byte_range)
            self.nbytes += len(data)
            return data

        monkeypatch.setattr(WholeFile, "get", counted)


@pytest.mark.parametrize("codecs", [[], ["zstd"]])
def test_a_column_is_read_without_the_rest_of_its_shard(
    codecs: Any, tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, numbers = sharded(tmp_path, codecs=codecs)
    ranges = Bytes(monkeypatch)
    with pmarray.open(url, mode="r") as array:
        for j in (5, 2):
            assert (array[:, j] == numbers[:, j]).all()
        assert ranges.nbytes <= 2 * (numbers.nbytes // 8 + 8 * 16 + 4)
        assert reads.whole == 0
        assert (array[...] == numbers).all()


def test_a_column_that_was_written_stays_when_the_rest_is_read(tmp_path: Path) -> None:
    url, numbers = sharded(tmp_path)
    with pmarray.open(url, mode="r+") as array:
        array[100:200, 3] = 7
        numbers[100:200, 3] = 7
        assert (array[:, 3] == numbers[:, 3]).all()
        assert (array[:, 4] == numbers[:, 4]).all()
        with pmarray.open(url, mode="r") as reader:
            assert (reader[:, 3] != 7).all()
    with pmarray.open(url, mode="r") as array:
        assert (array[...] == numbers).all()


def test_a_shard_that_is_replaced_meanwhile_is_read_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its index and a chunk, another program writes one with chunks of other lengths."""
    url, numbers = sharded(tmp_path, codecs=["zstd"])
    (tmp_path / "h").mkdir()
    other, _ = sharded(tmp_path / "h", codecs=["zstd"])
    with pmarray.open(other, mode="r+") as array:
        array[...] = np.round(numbers, 1)
    get = WholeFile.get
    calls = 0

    async def late(file: WholeFile, prototype: Any, byte_range: Any = None) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            (tmp_path / "h/g/array/c/0/0").replace(tmp_path / "g/array/c/0/0")
        return await get(file, prototype, byte_range)

    with pmarray.open(url, mode="r") as array:
        assert (array[:, 5] == numbers[:, 5]).all()
        monkeypatch.setattr(WholeFile, "get", late)
        found = array[:, 2]
        assert calls >= 2
        assert (found == numbers[:, 2]).all()
        assert (array[:, 3] == np.round(numbers[:, 3], 1)).all()


def damaged(data: bytearray, damage: str) -> bytearray:
    """A shard of `sharded` that is not as it was."""
    index = len(data) - 8 * 16 - 4
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "empty":
        data = bytearray()
    elif damage == "index":
        data[index + 3] ^= 1  # its checksum tells
    else:
        table = np.frombuffer(bytes(data[index:-4]), "<u8").copy()
        table[2 * 3 : 2 * 3 + 2] = len(data) * 4, 160_000
        data[index:-4] = table.tobytes()
        data[-4:] = google_crc32c.value(table.tobytes()).to_bytes(4, "little")
    return data


DAMAGES = ["cut", "empty", "index", "beyond"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_told(damage: str, tmp_path: Path) -> None:
    url, numbers = sharded(tmp_path)
    path = tmp_path / "g/array/c/0/0"
    path.write_bytes(damaged(bytearray(path.read_bytes()), damage))
    with pmarray.open(url, mode="r") as array:
        with pytest.raises(DamagedError, match=r"0/0.*backup"):
            array[:, 3]
        if damage == "beyond":
            assert (array[:, 2] == numbers[:, 2]).all()


# -- shards elsewhere -----------------------------------------------------------------------------

SHARD = "array/c/0/0"


class Elsewhere:
    """An array of one shard in a store that has no files, and what is asked of that store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.url = f"zarr:memory://{uuid.uuid4()}"
        self.numbers = np.random.default_rng(0).normal(size=(20_000, 8))
        self.asked: list[int] = []
        self.before: Callable[[int], None] = lambda number: None
        shape = self.numbers.shape
        with pmarray.open(
            self.url, shape, layout="col", chunks=(20_000, 1), shards=shape, **options
        ) as array:
            array[...] = self.numbers
            store: Any = array.group._session.backend
            while not isinstance(store, MemoryStore):
                store = store._store
            self._objects = store._store_dict
        get = MemoryStore.get

        async def counted(
            store: MemoryStore, key: str, prototype: Any = None, byte_range: Any = None
        ) -> Any:
            mine = key.endswith(SHARD) and store._store_dict is self._objects
            if mine:
                self.before(len(self.asked))
            data = await get(store, key, prototype, byte_range)
            if mine:
                self.asked.append(0 if data is None else len(data))
            return data

        monkeypatch.setattr(MemoryStore, "get", counted)

    def shard(self) -> bytearray:
        return bytearray(self._objects[SHARD].to_bytes())

    def replace(self, data: bytes | bytearray) -> None:
        self._objects[SHARD] = default_buffer_prototype().buffer.from_bytes(bytes(data))


@pytest.mark.parametrize("codecs", [[], ["zstd"]])
@pytest.mark.usefixtures("short_parts")
def test_a_column_is_read_without_the_rest_of_its_shard_elsewhere(
    codecs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Elsewhere(monkeypatch, codecs=codecs)
    numbers = place.numbers
    with pmarray.open(place.url, mode="r") as array:
        for j in (5, 2):
            assert (array[:, j] == numbers[:, j]).all()
        assert len(place.asked) == 6
        assert sum(place.asked) <= 2 * (numbers.nbytes // 8 + 2 * (8 * 16 + 4))
        assert (array[...] == numbers).all()


def test_a_small_shard_elsewhere_is_read_in_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Elsewhere(monkeypatch)
    with pmarray.open(place.url, mode="r") as array:
        assert (array[:, 5] == place.numbers[:, 5]).all()
    assert place.asked == [place.numbers.nbytes + 8 * 16 + 4]


@pytest.mark.parametrize("times", [1, 2, 100])
@pytest.mark.usefixtures("short_parts")
def test_a_shard_elsewhere_that_is_replaced_meanwhile_is_one_of_both(
    times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind each request another program writes one with chunks of other lengths."""
    place = Elsewhere(monkeypatch, codecs=["zstd"])
    other = Elsewhere(monkeypatch, codecs=["zstd"])
    with pmarray.open(other.url, mode="r+") as array:
        array[...] = np.round(place.numbers, 1)
    shards = [bytes(place.shard()), bytes(other.shard())]

    def replace(number: int) -> None:
        if 0 < number <= times:
            place.replace(shards[number % 2])

    with pmarray.open(place.url, mode="r") as array:
        place.asked.clear()
        place.before = replace
        found = array[:, 2]
    assert (found == place.numbers[:, 2]).all() or (found == np.round(place.numbers[:, 2], 1)).all()
    assert len(place.asked) <= 10


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.usefixtures("short_parts")
def test_a_damaged_shard_elsewhere_is_told(damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Elsewhere(monkeypatch)
    place.replace(damaged(place.shard(), damage))
    with pmarray.open(place.url, mode="r") as array:
        with pytest.raises(DamagedError, match=r"0/0.*backup"):
            array[:, 3]
        if damage == "beyond":
            assert (array[:, 2] == place.numbers[:, 2]).all()


@pytest.mark.parametrize("codecs", [[], ["zstd"]])
@pytest.mark.parametrize("where", ["s3", "icechunk", "zip"])
def test_stores_of_others_give_parts_of_shards(
    where: str, codecs: Any, tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard of 5 MB, of which at least 1 MB is read at a time."""
    numbers = np.random.default_rng(0).normal(size=(10_000, 64))
    urls = {"s3": bucket.url(), "icechunk": f"icechunk:{tmp_path}/i", "zip": f"zarr:{tmp_path}/z"}
    chunks: dict[str, Any] = {"chunks": (10_000, 1), "shards": numbers.shape, "codecs": codecs}
    with pmarray.open(urls[where], numbers.shape, layout="col", **chunks) as array:
        array[...] = numbers
    if where == "zip":
        shutil.make_archive(f"{tmp_path}/z.zarr", "zip", tmp_path / "z")
        urls["zip"] = f"zarr:{tmp_path}/z.zarr.zip"
    asked: list[int] = []
    get = StoredObject.get

    async def counted(shard: StoredObject, prototype: Any, byte_range: Any = None) -> Any:
        data = await get(shard, prototype, byte_range)
        asked.append(0 if data is None else len(data))
        return data

    monkeypatch.setattr(StoredObject, "get", counted)
    with pmarray.open(urls[where], mode="r") as array:
        assert (array[:, 40] == numbers[:, 40]).all()
        assert 0 < sum(asked) <= numbers.nbytes // 4
        assert (array[...] == numbers).all()


@pytest.mark.parametrize("layout", ["row", "col"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("codecs", [[], ["zstd"]], ids=["plain", "zstd"])
def test_chunks_are_read_into_memory_of_either_order(
    layout: Any, order: Any, codecs: list[str], tmp_path: Path
) -> None:
    numbers = np.arange(35.0).reshape(5, 7)
    with pmarray.open_group(f"zarr:{tmp_path}/g") as group:
        array = group.create("a", (5, 7), layout=layout, chunks=(5, 7), codecs=codecs)
        array[...] = numbers
        group.flush()
        out = np.empty((5, 7), order=order)
        array._storage._reads.read_into((0, 0), out)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(out, numbers)


def test_nobody_waits_for_who_waits_for_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"zarr:{tmp_path}/g"
    with pmarray.open(url, (1000, 4), layout="col", chunks=1, codecs=["zstd"]) as array:
        array[...] = np.arange(4)
    read = FileStore.read
    waits, goes_on = threading.Event(), threading.Event()

    def slow(store: FileStore, key: str) -> Any:
        if key.endswith("c/0/1"):
            waits.set()
            assert goes_on.wait(30)
        return read(store, key)

    monkeypatch.setattr(FileStore, "read", slow)
    found: list[float] = []
    with pmarray.open(url, mode="r") as array:
        thread = threading.Thread(target=lambda: found.append(array[:, 1].sum()))
        thread.start()
        try:
            assert waits.wait(30)
            assert (array[:, 2] == 2).all()
            assert array[5, 3] == 3
            assert not found
        finally:
            goes_on.set()
            thread.join(30)
    assert found == [1000]

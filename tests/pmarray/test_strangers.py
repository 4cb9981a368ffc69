"""What opening a directory that a stranger has made may do, and what not."""

from __future__ import annotations

import json
import os
import shutil
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import numcodecs
import numpy as np
import pytest
import zarr

import pmarray
from pmarray._commits.journal import Journal
from pmarray._formats.metadata import Checkpoint, _checksum
from pmarray._formats.records import Image
from pmarray._system import beneath, osops
from pmarray._system.beneath import Below
from pmarray.backends.files.region import FileRegion
from pmarray.backends.shelf import pymm
from pmarray.errors import (
    ArrayNotFoundError,
    DamagedError,
    ForeignDataError,
    PMArrayError,
    StorageError,
)

SIZE = 64 << 10


@pytest.fixture(params=["openat2", "steps"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the system call that does it, and where the kernel has none."""
    name: str = request.param
    if name == "openat2":
        if not beneath._has_openat2():
            pytest.skip("this kernel has no openat2, or a filter keeps it")
    else:
        monkeypatch.setattr(beneath, "_has_openat2", lambda: False)
    return name


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A directory beside the group, which stays as it is."""
    root = tmp_path / "home"
    (root / "x").mkdir(parents=True)
    for name in ("precious", "zarr.json", "x/0"):
        (root / name).write_bytes(b"precious" * 100)

    def seen() -> list[Any]:
        return [
            (path, os.lstat(path).st_mtime_ns, path.read_bytes() if path.is_file() else None)
            for path in sorted([root, *root.rglob("*")])
        ]

    before = seen()
    yield root
    assert seen() == before


@pytest.fixture
def group(tmp_path: Path) -> Path:
    root = tmp_path / "g"
    with pmarray.open_group(root) as made:
        made.create("x", (SIZE,), "uint8")[...] = 1
        with made.transaction():
            made.attrs["step"] = 1
    return root


@pytest.fixture
def hierarchy(tmp_path: Path) -> Path:
    """A Zarr group whose writer has died after a commit."""
    root = tmp_path / "z"
    with pmarray.open_group(f"zarr:{root}") as made:
        made.create("x", (64, 64), "float64", chunks=(64, 64), codecs=["zstd"])[...] = 1
    made = pmarray.open_group(f"zarr:{root}", mode="r+")
    with made.transaction():
        made.attrs["step"] = 1
    shutil.copytree(root, tmp_path / "copy")
    made.close()
    shutil.rmtree(root)
    (tmp_path / "copy").rename(root)
    return root


def use(url: str | Path, mode: Any) -> None:
    """Whatever a program might do first."""
    with pmarray.open_group(url, mode=mode) as opened:
        for name in opened:
            opened[name][...]
        if mode != "r":
            opened.attrs["mine"] = 1
            with opened.transaction():
                opened.attrs["mine"] = 2


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change metadata, and make their checksum right again."""
    body = json.loads(path.read_bytes())
    change(body)
    body.pop("crc32c")
    path.write_text(json.dumps({**body, "crc32c": _checksum(body)}))


# -- names --------------------------------------------------------------------------------------

NAMES = ["../home", "../home/x", "/home", "..", ".", "", "a/b", "x/../../home", "\0", "\ud800"]


@pytest.mark.parametrize("name", NAMES)
def test_names_below_a_directory(name: str) -> None:
    with pytest.raises(DamagedError, match="no name below"):
        Below("/data", [name])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["r", "r+", "a"])
def test_names_of_arrays(group: Path, victim: Path, name: str, mode: Any) -> None:
    def rename(body: dict[str, Any]) -> None:
        body["arrays"][name] = body["arrays"].pop("x")

    rewrite(group / "pmarray.json", rename)
    with pytest.raises(DamagedError, match="called"):
        use(group, mode)


@pytest.mark.parametrize("name", [*NAMES, ".pmarray"])
@pytest.mark.parametrize("mode", ["r", "r+", "a"])
def test_names_of_zarr_arrays_in_a_session(
    hierarchy: Path, victim: Path, name: str, mode: Any
) -> None:
    def rename(body: dict[str, Any]) -> None:
        body["arrays"][name] = body["arrays"].pop("x")

    rewrite(hierarchy / ".pmarray/pmarray.json", rename)
    with pytest.raises(DamagedError, match="called"):
        use(f"zarr:{hierarchy}", mode)


@pytest.mark.parametrize("name", ["../home", "../../home/x", "/home"])
def test_names_in_consolidated_metadata(tmp_path: Path, victim: Path, name: str) -> None:
    root = tmp_path / "z"
    zarr.open_group(root, mode="w").create_array("x", shape=(4,), dtype="f4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(root)
    document = json.loads((root / "zarr.json").read_text())
    members = document["consolidated_metadata"]["metadata"]
    members[name] = members.pop("x")
    (root / "zarr.json").write_text(json.dumps(document))
    shutil.make_archive(str(root), "zip", root)
    with pytest.raises(DamagedError):
        use(f"zarr:{root}.zip", "r")
    with pmarray.open_group(f"zarr:{root}", mode="r+") as group:  # where nobody looks at them
        group.attrs["title"] = "t"
        assert list(group) == ["x"]


KEYS = [
    "../home/", "../home/precious", "../home/x/0", "x/../../home/", "/", "", "//", "..", "../",
    ".pmarray/", ".pmarray/lock", "x//c", "x/./c", "\0",
]  # fmt: skip


@pytest.mark.parametrize("key", [*(key.encode() for key in KEYS if key), b"\xff\xfe"])
@pytest.mark.parametrize("kept", [0, 1])
def test_names_in_before_images(hierarchy: Path, victim: Path, key: bytes, kept: int) -> None:
    (hierarchy / ".pmarray/kept").mkdir(exist_ok=True)
    (hierarchy / ".pmarray/kept/1").write_bytes(b"evil")
    metadata = (hierarchy / ".pmarray/pmarray.json").read_bytes()
    checkpoint = Checkpoint.from_bytes(metadata, "")
    path = str(hierarchy / ".pmarray/journal")
    region = FileRegion(path, 0, writable=True, aligned=False)
    journal = Journal(region, checkpoint.nonce, checkpoint.generation)
    journal.before(checkpoint.transaction + 9, [Image(0, kept, memoryview(key))])
    region.close()
    before = sorted(hierarchy.rglob("*"))
    with pytest.raises(DamagedError, match="no object of an array"):
        use(f"zarr:{hierarchy}", "r+")
    assert sorted(hierarchy.rglob("*")) == before


# -- links, FIFOs, devices ------------------------------------------------------------------------


@contextmanager
def replaced(path: Path, kind: str, victim: Path) -> Iterator[None]:
    """Put something else where a file or directory was."""
    aside = path.parent.parent / "aside"
    if os.path.lexists(path):
        path.rename(aside)
    match kind:
        case "link":
            path.symlink_to(victim / "precious" if not aside.is_dir() else victim)
        case "link to nothing":
            path.symlink_to(victim / "new")
        case "link to itself":
            path.symlink_to(path)
        case "link within":
            path.symlink_to(aside)
        case "FIFO":
            os.mkfifo(path)
        case "zeros":
            path.symlink_to("/dev/zero")
        case "directory":
            path.mkdir()
    yield


KINDS = ["link", "link to nothing", "link to itself", "link within", "FIFO", "zeros", "directory"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["lock", "journal", "data", "data/000001.npy", "pmarray.json", "pmarray.json.new"]
)
def test_files_of_a_group(way: str, group: Path, victim: Path, name: str, kind: str) -> None:
    with replaced(group / name, kind, victim):
        for mode in ("r", "r+"):
            # What is not needed: a lock is not for readers, nor what a crash has left.
            may_pass = name == "pmarray.json.new" or (name, mode) == ("lock", "r")
            where = name.split("/")[0].removesuffix(".new")
            with nullcontext() if may_pass else pytest.raises(PMArrayError, match=where):
                with suppress(StorageError) if may_pass else nullcontext():
                    use(group, mode)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["zarr.json", "x", "x/zarr.json", "x/c", "x/c/0/0", ".pmarray", ".pmarray/pmarray.json",
             ".pmarray/journal", ".pmarray/lock", ".pmarray/kept"],
)  # fmt: skip
def test_files_of_a_hierarchy(
    way: str, hierarchy: Path, victim: Path, name: str, kind: str
) -> None:
    with replaced(hierarchy / name, kind, victim):
        for mode in ("r", "r+"):
            try:
                use(f"zarr:{hierarchy}", mode)
                with pmarray.open(f"zarr:{hierarchy}#x", mode="r+") as x:
                    x[...] = 3
            except PMArrayError:
                pass


def test_a_link_on_the_way_to_a_group_is_the_users(way: str, tmp_path: Path, group: Path) -> None:
    (tmp_path / "way").symlink_to(group)
    use(tmp_path / "way", "r+")
    use(f"memmap:{tmp_path}/way/../way", "r")


def test_names_for_other_programs_are_left_alone(group: Path, victim: Path) -> None:
    (group / "x.npy").unlink()
    (group / "x.npy").symlink_to(victim / "precious")
    (group / "y.npy").symlink_to(victim / "new")
    with pmarray.open_group(group) as opened:
        opened.create("y", (3,))
    assert os.readlink(group / "x.npy") == str(victim / "precious")
    assert not (victim / "new").exists()


@pytest.mark.parametrize("kind", ["FIFO", "zeros"])
@pytest.mark.parametrize("name", ["x.npy", "x.zip"])
def test_a_file_that_the_user_names(tmp_path: Path, victim: Path, name: str, kind: str) -> None:
    path = tmp_path / "in" / name
    path.parent.mkdir()
    with replaced(path, kind, victim):
        for mode in ("r", "r+"):
            with pytest.raises((StorageError, ForeignDataError)):
                use(f"{'zarr' if name.endswith('zip') else 'memmap'}:{path}", mode)


def test_only_regular_files(tmp_path: Path, way: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "file").write_bytes(b"")
    root = Below(str(tmp_path))
    for write in (False, True):
        with pytest.raises(OSError, match="a FIFO, and no regular file"):
            osops.open_file(root / "fifo", write=write)
        with pytest.raises(IsADirectoryError):
            osops.open_file(root / "directory", write=write)
        with pytest.raises(OSError, match="none is followed"):
            osops.open_file(root / "link", write=write)
        os.close(osops.open_file(root / "file", write=write))
    with pytest.raises(FileNotFoundError):
        osops.open_file(root / "missing")
    with pytest.raises(NotADirectoryError):
        osops.open_file(root / "file/x")
    os.close(osops.open_file(str(tmp_path / "link")))  # the user's own


# -- memory ---------------------------------------------------------------------------------------


@contextmanager
def little_memory() -> Iterator[None]:
    """Fail where much is allocated: NumPy and Python tell tracemalloc of what they take."""
    import tracemalloc

    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def _zstd_of_zeros(nbytes: int, *, told: bool) -> bytes:
    """A frame of blocks that say "128 KiB of this byte" in four bytes."""
    blocks = [(128 << 10) << 3 | 1 << 1] * (nbytes >> 17)
    blocks[-1] |= 1
    head = b"\xa0" + struct.pack("<I", nbytes) if told else b"\x00\x58"
    return b"\x28\xb5\x2f\xfd" + head + b"".join(struct.pack("<I", b)[:3] + b"\0" for b in blocks)


def _bomb(codec: str) -> bytes:
    import bz2
    import gzip
    import lzma

    if codec == "zstd":
        return _zstd_of_zeros(1 << 30, told=True)
    if codec == "zstd stream":
        return _zstd_of_zeros(1 << 30, told=False)
    big = bytes(96 << 20)
    if codec in ("blosc", "lz4"):
        return bytes(numcodecs.get_codec({"id": codec}).encode(big))
    import zlib

    pack: dict[str, Any] = {
        "gzip": gzip.compress, "zlib": zlib.compress, "bz2": bz2.compress,
        "lzma": lambda data: lzma.compress(data, preset=0),
    }  # fmt: skip
    return bytes(pack[codec](big))


@pytest.mark.parametrize("codec", ["zstd", "zstd stream", "blosc", "gzip", "zlib", "lz4"])
@pytest.mark.parametrize("version", [2, 3])
def test_a_chunk_that_decompresses_to_a_gigabyte(tmp_path: Path, codec: str, version: int) -> None:
    root, name = tmp_path / "z", codec.split()[0]
    if version == 3:
        with pmarray.open(f"zarr:{root}#x", (64, 64), "f8", chunks=(64, 64), codecs=[name]) as x:
            x[...] = 1
        chunk = root / "x/c/0/0"
    else:
        zarr.open_group(root, mode="w", zarr_format=2).create_array(
            "x", shape=(64, 64), dtype="f8", compressors=numcodecs.get_codec({"id": name})
        )[...] = 1
        chunk = root / "x/0.0"
    assert chunk.exists()
    chunk.write_bytes(_bomb(codec))
    with little_memory(), pmarray.open(f"zarr:{root}#x", mode="r") as x:
        with pytest.raises(DamagedError, match="cannot be decoded"):
            x[...]


@pytest.mark.parametrize("told", [0, 15, 1 << 20, 570_425_494, (1 << 32) - 1])
@pytest.mark.parametrize("version", [2, 3])
def test_blosc_is_not_believed_how_long_it_is(
    tmp_path: Path, told: int, version: Literal[2, 3]
) -> None:
    """It reads as far as its header says: such a chunk ended the process, one of thousands did."""
    root = tmp_path / "z"
    codec = {"id": "blosc"} if version == 2 else None
    zarr.open_group(root, mode="w", zarr_format=version).create_array(
        "x", shape=(64, 64), dtype="f8", chunks=(64, 64),
        compressors=numcodecs.get_codec(codec) if codec else zarr.codecs.BloscCodec(),
    )[...] = np.arange(4096.0).reshape(64, 64)  # fmt: skip
    chunk = root / ("x/0.0" if version == 2 else "x/c/0/0")
    data = bytearray(chunk.read_bytes())
    data[12:16] = told.to_bytes(4, "little")
    for damaged in (data, data[:10]):
        chunk.write_bytes(damaged)
        with pmarray.open(f"zarr:{root}#x", mode="r") as x:
            with pytest.raises(DamagedError, match="Blosc"):
                x[...]


def test_a_shard_whose_chunks_decompress_to_a_gigabyte(tmp_path: Path) -> None:
    root = tmp_path / "z"
    with pmarray.open(
        f"zarr:{root}#x", (64, 64), "f8", chunks=(32, 64), shards=(64, 64), codecs=["gzip"]
    ) as x:
        x[...] = 1
    shard = root / "x/c/0/0"
    bomb = _bomb("gzip")
    index = struct.pack("<QQQQ", 0, len(bomb), 0, len(bomb))
    import google_crc32c

    shard.write_bytes(bomb + index + struct.pack("<I", google_crc32c.value(index)))
    with little_memory(), pmarray.open(f"zarr:{root}#x", mode="r") as x:
        with pytest.raises(DamagedError, match="cannot be decoded"):
            x[...]


def test_compressed_streams_read_as_ever(tmp_path: Path) -> None:
    """A frame of zstd that does not say how long it is, several streams of gzip."""
    import gzip

    values = np.zeros((128, 128))  # 128 KiB
    half = values.nbytes // 2
    for codec, data in (
        ("zstd", _zstd_of_zeros(values.nbytes, told=False)),
        ("zstd", _zstd_of_zeros(values.nbytes, told=True)),
        ("gzip", gzip.compress(bytes(half)) + gzip.compress(bytes(half))),
    ):
        root = tmp_path / "z"
        with pmarray.open(
            f"zarr:{root}#x", values.shape, "f8", chunks=values.shape, codecs=[codec], mode="w"
        ) as x:
            x[...] = 1
        (root / "x/c/0/0").write_bytes(data)
        with pmarray.open(f"zarr:{root}#x", mode="r") as x:
            np.testing.assert_array_equal(x[...], values)


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_empty_objects_are_no_fill_values(tmp_path: Path, mode: Any) -> None:
    root = tmp_path / "z"
    with pmarray.open_group(f"zarr:{root}") as made:
        made.create("s", (4, 4), "f8", chunks=(2, 4), shards=(4, 4))[...] = 1
        made.create("c", (4, 4), "f8", chunks=(4, 4))[...] = 1
        made.create("z", (4, 4), "f8", chunks=(4, 4), codecs=["zstd"])[...] = 1
    for name in "scz":
        os.truncate(root / name / "c/0/0", 0)
        with pmarray.open(f"zarr:{root}#{name}", mode=mode) as array:
            with pytest.raises(DamagedError, match="is empty"):
                array[0, 0]


@pytest.mark.parametrize("name", ["pmarray.json", "journal"])
def test_files_that_are_all_holes(group: Path, name: str) -> None:
    with (group / name).open("r+b") as file:
        file.truncate(1 << 40)
    if name == "pmarray.json":
        with little_memory(), pytest.raises(DamagedError, match="the medium holds"):
            use(group, "r")
    else:
        with little_memory():
            use(group, "r")


def test_a_pickle_among_the_filters_is_not_run(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    root = tmp_path / "z"
    made = zarr.open_group(root, mode="w", zarr_format=2)
    made.create_array("x", shape=(4,), dtype="f8", compressors=None)[...] = 1
    document = json.loads((root / "x/.zarray").read_text())
    for place in ("filters", "compressor"):
        pickled = {"id": "pickle", "protocol": 5}
        value = {place: [pickled] if place == "filters" else pickled}
        (root / "x/.zarray").write_text(json.dumps({**document, **value}))
        (root / "x/0").write_bytes(pickle.dumps(Evil()))
        for url in (f"zarr:{root}/x", f"zarr:{root}#x"):
            with pytest.raises((DamagedError, ForeignDataError, ArrayNotFoundError)):
                pmarray.open(url, mode="r")[0]
    assert not (tmp_path / "sprung").exists()


# -- metadata -------------------------------------------------------------------------------------


def _set(*path: Any) -> Callable[[dict[str, Any]], None]:
    *way, key, value = path

    def change(body: dict[str, Any]) -> None:
        place: Any = body
        for step in way:
            place = place[step]
        place[key] = value

    return change


def _deep(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "change",
    [
        _set("arrays", "x", "shape", [1 << 70]),
        _set("arrays", "x", "shape", [1 << 40, 1 << 40]),
        _set("arrays", "x", "shape", [0, 1 << 63]),
        _set("arrays", "x", "shape", [1] * 65),
        _set("arrays", "x", "shape", [float("inf")]),
        _set("arrays", "x", "shape", [-1]),
        _set("arrays", "x", "shape", ["4"]),
        _set("arrays", "x", "shape", "44"),
        _set("arrays", "x", "shape", {"0": 1}),
        _set("arrays", "x", "dtype", 3),
        _set("arrays", "x", "dtype", None),
        _set("arrays", "x", "dtype", [["a"]]),
        _set("arrays", "x", "dtype", "|O"),
        _set("arrays", "x", "dtype", "|V2147483647"),
        _set("arrays", "x", "fill", "0000"),
        _set("arrays", "x", "fill", "zz"),
        _set("arrays", "x", "file", -1),
        _set("arrays", "x", "file", 0),
        _set("arrays", "x", "file", 1 << 64),
        _set("arrays", "x", "line_stride", 7),
        _set("arrays", "x", "line_stride", 1 << 62),
        _set("arrays", "x", "document", 3),
        _set("arrays", []),
        _set("arrays", "x", []),
        _set("attrs", None),
        _set("uuid", 3),
        _set("next_file", 1),
        _set("next_file", "2"),
        _set("transaction", -1),
        _set("generation", 1.5),
        _set("version", [1]),
    ],
)
def test_metadata_that_no_writer_wrote(group: Path, change: Callable[[Any], None]) -> None:
    rewrite(group / "pmarray.json", change)
    for mode in ("r", "r+"):
        with pytest.raises(DamagedError, match=r"pmarray\.json is damaged"):
            use(group, mode)


@pytest.mark.parametrize("place", ["pmarray.json", "attrs"])
def test_values_that_are_too_deep(group: Path, place: str) -> None:
    if place == "attrs":
        rewrite(group / "pmarray.json", _set("attrs", {"deep": _deep(900)}))
    else:
        (group / "pmarray.json").write_bytes(b"[" * 100_000)
    for mode in ("r", "r+"):
        with pytest.raises(DamagedError, match=r"pmarray\.json is damaged"):
            use(group, mode)
    with pmarray.open_group("dram:") as other, pytest.raises(TypeError, match="deep"):
        other.attrs["deep"] = _deep(900)


def _edit_zarr(root: Path, **values: Any) -> None:
    document = json.loads((root / "zarr.json").read_text())
    (root / "zarr.json").write_text(json.dumps({**document, **values}))


@pytest.mark.parametrize(
    "values",
    [
        {"shape": [1 << 70, 64]},
        {"shape": [1 << 62, 1 << 62]},
        {"shape": None},
        {"shape": [-1, 64]},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 64]}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [64]}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1 << 62, 1 << 62]}}},
        {"chunk_grid": {"name": "regular"}},
        {"chunk_grid": 3},
        {"data_type": "int"},
        {"data_type": {"name": "fixed_length_utf32", "configuration": {"length_bytes": 1 << 40}}},
        {"data_type": "r16000000000"},
        {"fill_value": "x"},
        {"fill_value": None},
        {"fill_value": [1]},
        {"codecs": []},
        {"codecs": [{"name": "bytes"}, {"name": "numcodecs.pickle"}]},
        {"codecs": [{"name": "sharding_indexed", "configuration": {"chunk_shape": [0, 1]}}]},
        {"codecs": "bytes"},
        {"attributes": {"pmarray": {"layout": "row", "id": 1, "dtype": [[1]]}}},
        {"attributes": {"pmarray": {"layout": "row", "id": "one"}}},
        {"attributes": {"pmarray": {"layout": "row", "id": -5}}},
        {"node_type": "wood"},
        {"zarr_format": 4},
        {"dimension_names": 3},
    ],
)
def test_zarr_metadata_that_no_writer_wrote(tmp_path: Path, values: dict[str, Any]) -> None:
    root = tmp_path / "z"
    pmarray.open(f"zarr:{root}#x", (64, 64), chunks=(64, 64)).close()
    _edit_zarr(root / "x", **values)
    before = (root / "x/zarr.json").read_bytes()
    for mode in ("r", "r+"):
        with pytest.raises(PMArrayError):
            use(f"zarr:{root}", mode)
            pmarray.open(f"zarr:{root}#x", mode="r")[0]
        with pytest.raises(PMArrayError):
            pmarray.open(f"zarr:{root}/x", mode="r")[0]
    assert (root / "x/zarr.json").read_bytes() == before, "a writer has removed it"


@pytest.mark.parametrize("name", ["zarr.json", "x/zarr.json", ".zgroup", "x/.zarray", "x/.zattrs"])
@pytest.mark.parametrize("archive", [False, True])
def test_zarr_documents_that_are_too_deep_to_parse(
    tmp_path: Path, name: str, archive: bool
) -> None:
    root = tmp_path / "z"
    zarr.create_group(root, zarr_format=2 if "/." in f"/{name}" else 3).create_array(
        "x", shape=(4,), dtype="i4"
    )
    (root / name).write_text("[" * 100_000)
    if archive:
        shutil.make_archive(str(root), "zip", root)
    for mode in ("r", "r+"):
        with pytest.raises(PMArrayError):
            use(f"zarr:{root}{'.zip' if archive else ''}", mode)
            pmarray.open(f"zarr:{root}{'.zip' if archive else ''}#x", mode="r")[0]


@pytest.mark.parametrize(
    "ours", [3, [], "x", {"uuid": 3}, {"next": "x"}, {"next": -1}, {"transaction": 1.5}, None]
)
def test_what_a_zarr_group_says_of_us(tmp_path: Path, ours: Any) -> None:
    root = tmp_path / "z"
    pmarray.open(f"zarr:{root}#x", (4,)).close()
    _edit_zarr(root, attributes={"pmarray": ours})
    if isinstance(ours, dict):
        with pytest.raises(DamagedError, match="make no sense"):
            use(f"zarr:{root}", "r")
    else:
        use(f"zarr:{root}", "r")  # somebody else's word


@pytest.mark.parametrize(
    "text", ["", "x", "1000", "zz 10", "0 8000000", "7fff00000000 8000000", "100000000000 -1",
             "100000000001 8000000", "100000000000 fffffffffff", "100000000000 0"],
)  # fmt: skip
def test_where_a_shelf_says_that_it_belongs(tmp_path: Path, text: str) -> None:
    (tmp_path / "pmarray-1.data").write_bytes(b"")
    os.truncate(tmp_path / "pmarray-1.data", 128 << 20)
    (tmp_path / "pmarray-1.map").write_text(text)
    with pytest.raises(DamagedError, match="does not say where"):
        pymm._place_of(str(tmp_path), "pmarray-1")
    (tmp_path / "pmarray-1.map").write_text(f"0x{0x1000_0000_0000:x} 0x{128 << 20:x}")
    assert pymm._place_of(str(tmp_path), "pmarray-1") == (0x1000_0000_0000, 128 << 20)

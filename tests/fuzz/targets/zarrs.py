"""Zarr hierarchies: metadata of both formats and ours, chunks, kept objects, archives."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.metadata import ArrayV2Metadata, ArrayV3Metadata
from zarr.core.sync import sync
from zarr.storage import MemoryStore

import pmarray
from pmarray._commits.journal import Journal
from pmarray._formats.metadata import Checkpoint
from pmarray._formats.records import Image
from pmarray._system.beneath import Below
from pmarray._system.descriptor import Descriptor
from pmarray.backends.zarr import translation as zarr_format
from pmarray.backends.zarr.archive import ArchiveStore
from pmarray.backends.zarr.chunks import ZarrChunks
from pmarray.backends.zarr.codecs import ChunkCodecs, damage_told
from pmarray.backends.zarr.files import FileStore
from pmarray.backends.zarr.local import _PutBack
from pmarray.backends.zarr.shards import WholeFile
from pmarray.backends.zarr.translation import to_zarr
from tests.fuzz.mutate import change_bytes, change_json, name
from tests.fuzz.targets.files import Memory, changed_checkpoint, sealed
from tests.fuzz.targets.use import Template, attempt, use_group
from tests.fuzz.watch import Target

__all__ = ["TARGETS"]

Use = Callable[[random.Random, str], None]


def _changed(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.15:
        return change_bytes(rng, data)
    try:
        return json.dumps(change_json(rng, json.loads(data))).encode()
    except (RecursionError, ValueError):  # too deep; or changed before, and no JSON any more
        return b"[" * rng.choice([10, 1000, 100_000])


def _make(root: Path) -> None:
    with pmarray.open_group(f"zarr:{root}") as group:
        group.create("x", (4, 4), "float32", layout="col", chunks=(2, 4), codecs=["zstd"])[...] = 1
        group.create("s", (4, 4), "int16", chunks=(2, 2), shards=(4, 4))[...] = 2


def _parse(data: bytes, array: Callable[[Any], Any]) -> None:
    """Give metadata to what `ZarrBackend` gives them to."""
    try:
        value = json.loads(data)
        is_array = value.get("node_type", "array") == "array"
        node: Any = array(value) if is_array else dict(value["attributes"])
    except Exception:
        return  # all of it is caught there
    if not is_array:
        zarr_format.identity(node, "")
        return
    found = zarr_format.from_zarr(node, "x")
    zarr_format.check(found, "x")
    ZarrChunks(MemoryStore(), "x", found)


def format_3(base: Path) -> Use:
    """``zarr.json`` of groups and arrays."""

    def make(root: Path) -> None:
        _make(root)
        zarr.consolidate_metadata(root)

    template = Template(base, make)
    names = ["zarr.json", "x/zarr.json", "x/zarr.json", "s/zarr.json", "s/zarr.json"]

    def use(rng: random.Random, mode: str) -> None:
        which = rng.choice(names)
        if mode == "parse":
            attempt(lambda: _parse(_changed(rng, template.read(which)), ArrayV3Metadata.from_dict))
            return
        root = template.restore()
        if rng.random() < 0.7:  # else they are not read one by one
            group = json.loads(template.read("zarr.json"))
            group.pop("consolidated_metadata", None)
            (root / "zarr.json").write_text(json.dumps(group))
        (root / which).write_bytes(_changed(rng, (root / which).read_bytes()))
        use_group(f"zarr:{root}", mode, commit=rng.random() < 0.1)

    return use


def format_2(base: Path) -> Use:
    """``.zarray``, ``.zgroup`` and ``.zattrs``."""

    def make(root: Path) -> None:
        group = zarr.open_group(root, mode="w", zarr_format=2, attributes={"a": 1})
        group.create_array("x", shape=(4,), dtype="f4", chunks=(2,), attributes={"b": 2})[:] = 1
        group.create_array(
            "y",
            shape=(4,),
            dtype="i2",
            order="F",
            compressors=None,
            filters=[numcodecs.Delta("i2")],
        )[:] = 1

    template = Template(base, make)
    names = [".zgroup", ".zattrs", "x/.zarray", "x/.zarray", "y/.zarray", "x/.zattrs"]

    def use(rng: random.Random, mode: str) -> None:
        which = rng.choice(names)
        data = _changed(rng, template.read(which))
        if mode == "parse":
            if not which.endswith(".zarray"):
                data = b'{"node_type": "group", "attributes": %s}' % data
            attempt(lambda: _parse(data, ArrayV2Metadata.from_dict))
            return
        root = template.restore()
        (root / which).write_bytes(data)
        use_group(f"zarr:{root}", mode)

    return use


def _interrupted(root: Path) -> None:
    """A hierarchy whose writer has died in a session."""
    _make(root)
    group = pmarray.open_group(f"zarr:{root}", mode="r+")
    with group.transaction():
        group.attrs["step"] = 1
    copy = root.with_name("copy")
    shutil.copytree(root, copy)
    group.close()
    shutil.rmtree(root)
    copy.rename(root)
    (root / ".pmarray/journal").write_bytes(b"")


def session(base: Path) -> Use:
    """``.pmarray/pmarray.json``, and the documents of arrays in it."""
    template = Template(base, _interrupted)
    whole = template.read(".pmarray/pmarray.json")

    def parse(data: bytes) -> None:
        for which, array in Checkpoint.from_bytes(data, "").metadata.arrays.items():
            zarr_format.check(array, which)
            ZarrChunks(MemoryStore(), which, array)

    def use(rng: random.Random, mode: str) -> None:
        if rng.random() < 0.5:
            body = json.loads(whole)
            array = body["arrays"][rng.choice(["x", "s"])]
            array["document"] = _changed(rng, array["document"].encode()).decode("latin1")
            data = sealed(body)
        else:
            data = changed_checkpoint(rng, whole)
        if mode == "parse":
            attempt(lambda: parse(data))
            return
        root = template.restore()
        (root / ".pmarray/pmarray.json").write_bytes(data)
        use_group(f"zarr:{root}", mode, commit=rng.random() < 0.1)

    return use


def images(base: Path) -> Use:
    """Names of objects in the journal, to be put back from ``.pmarray/kept``."""
    template = Template(base, _interrupted)
    checkpoint = Checkpoint.from_bytes(template.read(".pmarray/pmarray.json"), "")
    keys = [b"x/c/0/0", b"x/", b"x/zarr.json", b"/", b"", b".pmarray/", b".pmarray/lock", b"x//c"]
    target = _PutBack(FileStore(str(base / "g")), None, None)  # type: ignore[arg-type]

    def key(rng: random.Random) -> bytes:
        if rng.random() < 0.6:
            return rng.choice(keys) if rng.random() < 0.5 else change_bytes(rng, rng.choice(keys))
        return (name(rng) + rng.choice(["", "/"])).encode("utf8", "surrogatepass")

    def use(rng: random.Random, mode: str) -> None:
        if mode == "parse":
            found = attempt(lambda: target._key(key(rng)))
            place = os.path.normpath(base / "g" / (found or "x"))
            assert place.startswith(f"{base}/g/")
            assert f"{place}/".startswith(f"{base}/g/.pmarray/") is False
            return
        root = template.restore()
        (root / ".pmarray/kept").mkdir(exist_ok=True)
        (root / ".pmarray/kept/1").write_bytes(b"evil")
        region = Memory(64 << 10)
        log = Journal(region, checkpoint.nonce, checkpoint.generation)
        for _ in range(rng.randrange(1, 3)):
            kept = rng.choice([0, 1, 1, 2, 1 << 63, 1 << 40])
            image = Image(rng.choice([0, 0, 0, 1]), kept, memoryview(key(rng) or b"?"))
            log.before(checkpoint.transaction + 1, [image])
        (root / ".pmarray/journal").write_bytes(region.data)
        use_group(f"zarr:{root}", mode, commit=False)

    return use


_CODECS: list[Any] = [
    ["zstd"], ["blosc"], ["gzip"], ["crc32c"], ["zstd", "crc32c"], ["numcodecs.zlib"],
    ["numcodecs.bz2"], ["numcodecs.lzma"], ["numcodecs.lz4"], ["numcodecs.shuffle", "zstd"],
    [{"name": "blosc", "configuration": {"cname": "lz4", "shuffle": "bitshuffle"}}], [],
    ["numcodecs.adler32"], ["numcodecs.fletcher32"],
]  # fmt: skip


def chunks(base: Path) -> Use:
    """Chunks and shards of every codec."""
    shape = (64, 8)

    def make(root: Path) -> None:
        with pmarray.open_group(f"zarr:{root}") as group:
            for i, codecs in enumerate(_CODECS):
                group.create(f"x{i}", shape, chunks=shape, codecs=codecs)[...] = 1
                group.create(f"s{i}", shape, chunks=(32, 8), shards=shape, codecs=codecs)[...] = 1

    template = Template(base, make)
    template.restore()
    with pmarray.open_group(f"zarr:{template.root}", mode="r") as group:
        arrays = {which: group[which]._array for which in group}
    stores = {which: MemoryStore() for which in arrays}
    readers = {which: ZarrChunks(stores[which], which, array) for which, array in arrays.items()}
    slabs = {which: ChunkCodecs(to_zarr(array)).slabs(array) for which, array in arrays.items()}
    half = 32 * 8 * 8

    def read_half(which: str, key: str) -> None:
        """One chunk of a shard, without the other."""
        reader, path = slabs[which], Below(str(template.root)) / key
        assert reader is not None
        with damage_told(key):
            reader.read(WholeFile(Descriptor(os.open(path, os.O_RDONLY)), path), half, 2 * half)

    def use(rng: random.Random, mode: str) -> None:
        which = f"{rng.choice('xs')}{rng.randrange(len(_CODECS))}"
        key = f"{which}/c/0/0"
        data = _changed_chunk(rng, template.read(key))
        if mode == "parse" and which[0] == "s" and rng.random() < 0.5:
            (template.root / key).write_bytes(data)
            attempt(lambda: read_half(which, key))
            (template.root / key).write_bytes(template.read(key))
            return
        if mode == "parse":
            buffer = default_buffer_prototype().buffer.from_bytes(data)
            stores[which]._store_dict[key] = buffer
            attempt(lambda: readers[which].read_into((0, 0), np.empty(shape)))
            return
        (template.root / key).write_bytes(data)
        use_group(f"zarr:{template.root / which}", mode)
        (template.root / key).write_bytes(template.read(key))

    return use


_PACK: list[Any] = [gzip.compress, zlib.compress, bz2.compress, lzma.compress]
_BOMBS = [bytes(pack(bytes(1 << 20))) for pack in _PACK]


def _changed_chunk(rng: random.Random, data: bytes) -> bytes:
    match rng.randrange(6):
        case 0:
            i = rng.randrange(len(_PACK))
            small = bytes(rng.choice([0, 1, 4096, 4097]))
            return _BOMBS[i] if rng.random() < 0.2 else bytes(_PACK[i](small))
        case 1:
            # A frame of zstd of blocks that say to repeat one byte, each 128 KiB from four.
            count = rng.choice([1, 2, 100, 8000])
            block = struct.pack("<I", (128 << 10) << 3 | 1 << 1)[:3] + b"x"
            last = struct.pack("<I", (128 << 10) << 3 | 1 << 1 | 1)[:3] + b"x"
            head = rng.choice([b"\x00\x58", b"\xa0" + struct.pack("<I", count << 17)])
            return b"\x28\xb5\x2f\xfd" + head + block * (count - 1) + last
        case 2:
            size = struct.pack("<I", rng.choice([0, 1, 4096, 1 << 30, (1 << 31) - 1, 1 << 31]))
            return rng.choice([data[:4] + size + data[8:], size + data[4:]])
        case _:
            return change_bytes(rng, data)


def archive(base: Path) -> Use:
    """Zip archives."""
    root = base / "made"
    _make(root)
    files = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    path = base / "x.zip"

    def parse(rng: random.Random) -> None:
        store = ArchiveStore(str(path))
        try:
            keys = store._zf.namelist()
            for key in rng.sample(keys, min(2, len(keys))):
                sync(store.get(key, default_buffer_prototype()))
        finally:
            store.close()

    def use(rng: random.Random, mode: str) -> None:
        how = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
        with zipfile.ZipFile(path, "w", how) as file:
            for key, data in files.items():
                if rng.random() < 0.2:
                    data = (_changed if key.endswith("json") else change_bytes)(rng, data)
                if rng.random() < 0.05:
                    key = name(rng).encode("utf8", "replace").decode().split("\0")[0] or "?"
                file.writestr(key, data)
        if rng.random() < 0.7:
            path.write_bytes(change_bytes(rng, path.read_bytes()))
        if mode == "parse":
            attempt(lambda: parse(rng))
        else:
            use_group(f"zarr:{path}", mode)

    return use


TARGETS: dict[str, Target] = {
    "zarr-3": format_3,
    "zarr-2": format_2,
    "zarr-session": session,
    "zarr-images": images,
    "zarr-chunks": chunks,
    "zarr-archive": archive,
}

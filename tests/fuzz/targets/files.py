"""Groups in files: metadata, headers, journals, and what else lies in the directory."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import pmarray
from pmarray._commits.journal import Journal
from pmarray._commits.recovery import read_committed
from pmarray._formats.metadata import Checkpoint, _checksum
from pmarray._formats.npy import parse_header
from pmarray._formats.records import Image
from pmarray._geometry.chunking import plan_chunks
from pmarray._url import URL
from tests.fuzz.mutate import CANARY, change_bytes, change_json, change_tree
from tests.fuzz.targets.use import Template, attempt, use_group
from tests.fuzz.watch import Target

__all__ = ["TARGETS", "Memory", "changed_checkpoint", "sealed"]

Use = Callable[[random.Random, str], None]


def sealed(body: dict[str, Any]) -> bytes:
    """Metadata with a checksum that is right."""
    body.pop("crc32c", None)
    return json.dumps({**body, "crc32c": _checksum(body)}).encode()


def changed_checkpoint(rng: random.Random, data: bytes) -> bytes:
    """Metadata that say something else, with a checksum that is right, or other bytes."""
    if rng.random() < 0.15:
        return change_bytes(rng, data)
    try:
        body = change_json(rng, json.loads(data))
        return sealed(body) if isinstance(body, dict) else json.dumps(body).encode()
    except RecursionError:  # too deep to be written by this
        return b"[" * rng.choice([10, 1000, 100_000])


def _make_group(root: Path) -> None:
    with pmarray.open_group(root) as group:
        x = group.create("x", (5, 4), "float32", layout="col")
        x[...] = 1
        group.create("y", (3,), [("a", "<i2"), ("b", "S3")])[...] = 0
        group.create("z", (), "int64")[...] = 3
        group.attrs["about"] = {"nested": [1, None, "ä"]}


def metadata(base: Path) -> Use:
    """``pmarray.json``."""
    template = Template(base, _make_group)
    whole = template.read("pmarray.json")
    template.restore()
    dirty = False

    def parse(data: bytes) -> None:
        for array in Checkpoint.from_bytes(data, "").metadata.arrays.values():
            plan_chunks(array.layout, "auto", 1 << 20)
            assert array.layout.nbytes >= 0
            assert array.layout.stored_shape

    def use(rng: random.Random, mode: str) -> None:
        nonlocal dirty
        data = changed_checkpoint(rng, whole)
        if mode == "parse":
            attempt(lambda: parse(data))
            return
        root = template.restore() if dirty else template.root
        (root / "pmarray.json").write_bytes(data)
        use_group(str(root), mode)
        dirty = mode != "r"

    return use


def npy(base: Path) -> Use:
    """The header of a ``.npy`` file, opened in place."""
    path = base / "x.npy"
    shapes: list[Any] = [(), (3,), (4, 5), (0, 7), (2, 0)]

    def use(rng: random.Random, mode: str) -> None:
        array = np.zeros(rng.choice(shapes), rng.choice(["f8", "i2", "S5"]))
        if rng.random() < 0.5:
            file = io.BytesIO()
            np.save(file, array if rng.random() < 0.5 else np.asfortranarray(array))
            data = change_bytes(rng, file.getvalue())
        else:
            data = _header(rng, array) + bytes(rng.choice([0, 8, 160, 5000]))
        if mode == "parse":
            attempt(lambda: parse_header(data, ""))
            return
        path.write_bytes(data)
        use_group(str(path), mode)

    return use


def _header(rng: random.Random, array: np.ndarray[Any, Any]) -> bytes:
    fields = change_json(
        rng, {"descr": array.dtype.str, "fortran_order": False, "shape": list(array.shape)}
    )
    if isinstance(fields, dict) and isinstance(fields.get("shape"), list):
        fields["shape"] = tuple(fields["shape"])
    try:
        text = repr(fields).encode("utf8", "replace")
    except RecursionError:  # deeper than Python can spell
        text = b"(" * 5000
    head = text.ljust(-(-(len(text) + 11) // 64) * 64 - 11) + b"\n"
    width = 2 if len(head) < 65536 else 4
    return b"\x93NUMPY" + bytes([width // 2, 0]) + len(head).to_bytes(width, "little") + head


def journal(base: Path) -> Use:
    """Records of a journal: their bytes, what they name, and the metadata that they commit."""

    def make(root: Path) -> None:
        with pmarray.open_group(root) as group:
            group.create("x", (6000,), "uint8")[...] = 1
            with group.transaction():
                group.attrs["step"] = 1
        # It grows by megabytes, which would be all that is measured.
        (root / "journal").write_bytes(b"")

    template = Template(base, make)
    checkpoint = Checkpoint.from_bytes(template.read("pmarray.json"), "")

    def records(rng: random.Random) -> Memory:
        region = Memory(64 << 10)
        log = Journal(region, checkpoint.nonce, checkpoint.generation)
        number = checkpoint.transaction
        for _ in range(rng.randrange(1, 4)):
            number += rng.choice([1, 1, 1, 0, -1 if number else 0, 1 << 40])
            if rng.random() < 0.7:
                log.before(number, [_image(rng) for _ in range(rng.randrange(1, 4))])
            if rng.random() < 0.6:
                data = Checkpoint(checkpoint.metadata, number, checkpoint.generation).to_bytes()
                log.commit(number, data if rng.random() < 0.3 else changed_checkpoint(rng, data))
        if rng.random() < 0.5:
            region.data[:] = change_bytes(rng, bytes(region.data))
        return region

    def parse(region: Memory) -> None:
        log = Journal(region, checkpoint.nonce, checkpoint.generation)
        for image in read_committed(checkpoint, log).images:
            log.fetch(image)

    def use(rng: random.Random, mode: str) -> None:
        region = records(rng)
        if mode == "parse":
            attempt(lambda: parse(region))
            return
        root = template.restore()
        (root / "journal").write_bytes(region.data)
        use_group(str(root), mode, commit=rng.random() < 0.2)

    return use


def _image(rng: random.Random) -> Image:
    return Image(
        rng.choice([0, 1, 1, 1, 2, (1 << 64) - 1]),
        rng.choice([0, 4096, 4096, 8192, 1, 1 << 40, 1 << 62, (1 << 64) - 4096]),
        memoryview(rng.randbytes(rng.choice([1, 4096, 4096, 5000]))),
    )


class Memory:
    """A region of bytes, for a journal."""

    block_bytes = 1
    memory = None

    def __init__(self, nbytes: int) -> None:
        self.data = bytearray(nbytes)

    @property
    def capacity(self) -> int:
        """All of them."""
        return len(self.data)

    def read_into(self, offset: int, out: memoryview, /) -> None:
        """As a region does."""
        out[:] = self.data[offset : offset + out.nbytes]

    def write(self, offset: int, buffers: Sequence[memoryview], /) -> None:
        """As a region does."""
        for buffer in buffers:
            self.data[offset : offset + buffer.nbytes] = buffer
            offset += buffer.nbytes

    def reserve(self, nbytes: int, /) -> None:
        """As a region does."""
        self.data.extend(bytes(max(0, nbytes - len(self.data))))

    def refresh(self) -> None:
        """Nobody else has it."""

    def barrier(self) -> None:
        """Nothing is durable here."""

    def will_read(self, offset: int, nbytes: int, /) -> None:
        """It is all there."""

    def describe(self, layout: Any, dtype: Any, ndim: int, /) -> None:
        """It is no array."""

    def trim(self, nbytes: int, /) -> None:
        """It may be longer."""

    def view(self, nbytes: int, /) -> None:
        """Nobody asks for one."""

    def close(self) -> None:
        """Nothing to release."""


def tree(base: Path) -> Use:
    """Links, FIFOs, directories and huge files where files should be."""
    (base / "in" / CANARY).mkdir(parents=True)
    made = Template(base, _make_small)
    templates = [("zarr", Template(base / "in", _make_zarr)), *[("memmap", made)] * 7]

    def use(rng: random.Random, mode: str) -> None:
        scheme, template = rng.choice(templates)
        root = template.restore()
        for _ in range(rng.choice([1, 1, 2])):
            change_tree(rng, root)
        if mode == "parse":  # there is nothing to parse
            mode = rng.choice(["r", "r+"])
        use_group(f"{scheme}:{root}", mode, commit=rng.random() < 0.05)

    return use


def _make_small(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    with pmarray.open_group(root) as group:
        group.create("x", (5,), "float32")[...] = 1


def _make_zarr(root: Path) -> None:
    with pmarray.open_group(f"zarr:{root}") as group:
        group.create("x", (4, 4), "float32", chunks=(2, 4))[...] = 1


def urls(base: Path) -> Use:
    """URLs, as they stand in pickles and programs."""
    texts = [
        "memmap:./run?direct=no#trajectory", "dram:x?spill=/tmp", "zarr:memory://x#a",
        "zarr:s3://bucket/x?region=eu&timeout=3s", "shelf:/dev/dax0.0?engine=pymm&size=1GiB",
        "icechunk:memory://x?tag=a", "run#x", "x.npy", "zarr:./file.zip",
    ]  # fmt: skip

    def use(rng: random.Random, mode: str) -> None:
        text = change_bytes(rng, rng.choice(texts).encode()).decode("latin1")
        parsed = attempt(lambda: URL.parse(text))
        if parsed is not None:
            str(parsed)
            assert parsed.local_path is None or isinstance(parsed.local_path, str)

    return use


TARGETS: dict[str, Target] = {
    "metadata": metadata,
    "npy": npy,
    "journal": journal,
    "tree": tree,
    "urls": urls,
}

"""Pools on devices: superblocks, directories, and what PyMM says of a shelf."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numpy as np

import pmarray
from pmarray._formats.metadata import Checkpoint
from pmarray._formats.pool import COPY_OFFSET, Directory, Slot, Superblock, current, describe_slots
from pmarray.backends.shelf import pymm
from tests.fuzz.mutate import change_bytes, change_json
from tests.fuzz.targets.files import changed_checkpoint
from tests.fuzz.targets.use import attempt, use_group
from tests.fuzz.watch import Target
from tests.persistent import pretend_devices

__all__ = ["TARGETS"]

Use = Callable[[random.Random, str], None]
_UNIT = 16 << 10
_BLOCK = 4096


def pool(base: Path) -> Use:
    """A superblock, and the directory that it points to."""
    path = base / "dax0.0"
    path.write_bytes(bytes(64 * _UNIT))
    with pretend_devices(_UNIT), pmarray.open_group(f"shelf:{path}") as group:
        group.create("x", (100,), "float32")[...] = 1
        group.attrs["about"] = [1, {}]
    whole = path.read_bytes()
    superblock = max(
        (s for i in (0, 1) if (s := Superblock.from_bytes(whole[i * _BLOCK :], ""))),
        key=lambda one: one.generation,
    )
    where = superblock.offset
    directory = json.loads(whole[where : where + superblock.nbytes])

    def use(rng: random.Random, mode: str) -> None:
        image = bytearray(whole)
        value = directory
        if rng.random() < 0.4:
            value = change_json(rng, directory)
        elif rng.random() < 0.5:
            text = changed_checkpoint(rng, directory["checkpoint"].encode()).decode("latin1")
            value = {**directory, "checkpoint": text}
        try:
            data = json.dumps(value).encode()
        except RecursionError:
            data = b"[" * 5000
        data = data if rng.random() < 0.9 else change_bytes(rng, data)
        data = data[:_UNIT]
        image[where : where + len(data)] = data
        numbers = [
            superblock.generation + 1, superblock.unit_bytes, superblock.device_nbytes, where,
            len(data), google_crc32c.value(data),
        ]  # fmt: skip
        if rng.random() < 0.4:
            i = rng.randrange(6)
            top = 32 if i == 5 else 64
            numbers[i] = rng.choice(
                [0, 1, _UNIT, 4096, (1 << top) - 1, 1 << (top - 1), where + _UNIT]
            )
        line = Superblock(*numbers).to_bytes()
        slot = rng.randrange(2) * _BLOCK
        halves = (slot, slot + COPY_OFFSET)
        for half in halves if rng.random() < 0.8 else rng.sample(halves, 1):
            image[half : half + len(line)] = (
                line if rng.random() < 0.9 else change_bytes(rng, line)[:64].ljust(64)
            )
        if mode == "parse":
            attempt(lambda: parse(image))
            return
        path.write_bytes(image)
        with pretend_devices(_UNIT):
            use_group(f"shelf:{path}", mode, commit=False)

    def parse(image: bytearray) -> None:
        blocks = np.frombuffer(image, np.uint8)[: 2 * _BLOCK].reshape(2, _BLOCK)
        slots = [Slot.from_block(block) for block in blocks]
        found = current(slots, "")
        if found is not None:
            describe_slots(slots, "")
            line = found[1]
            data = bytes(image[line.offset : line.offset + line.nbytes])
            made = Directory.from_bytes(data, line.crc, "")
            made.check_units((line.offset // _UNIT, 1), 64, "")
            if made.checkpoint is not None:
                Checkpoint.from_bytes(made.checkpoint.encode(), "")

    return use


def shelf_map(base: Path) -> Use:
    """The file in which PyMM says where in memory a shelf belongs."""
    (base / "pmarray-1.data").write_bytes(b"")
    with (base / "pmarray-1.data").open("r+b") as file:
        file.truncate(128 << 20)
    whole = f"{0x1000_0000_0000:x} {128 << 20:x}\n".encode()

    def use(rng: random.Random, mode: str) -> None:
        (base / "pmarray-1.map").write_bytes(change_bytes(rng, whole))
        place = attempt(lambda: pymm._place_of(str(base), "pmarray-1"))
        if place is not None:
            assert 0x1000_0000_0000 <= place[0] <= 0x5000_0000_0000 - place[1]
            assert 0 < place[1] <= 128 << 20

    return use


TARGETS: dict[str, Target] = {"pool": pool, "shelf-map": shelf_map}

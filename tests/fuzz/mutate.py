"""Changes to valid inputs, towards what parsers get wrong."""

from __future__ import annotations

import copy
import os
import random
from pathlib import Path
from typing import Any

__all__ = ["CANARY", "change_bytes", "change_json", "change_tree", "name"]

CANARY = "canary"
"""A directory beside the group, which nothing may touch."""

_NUMBERS = [
    0, 1, -1, 2, 7, 63, 64, 65, 255, 256, 4095, 4096, 4097, 65535, 1 << 20, (1 << 31) - 1, 1 << 31,
    1 << 32, (1 << 53) + 1, (1 << 62), (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, 1 << 100,
    -(1 << 31), -(1 << 63), 1.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
_TEXTS = [
    "", ".", "..", "/", "//", "\x00", "a/b", "a//b", "../x", "x/..", "\ud800", "\udc80", "ä",
    "x" * 300, " ", "\n", "true", "0", "-1", "1e9", "0x10", "٣", "lock", "journal", "data",
    ".pmarray", "c", "zarr.json", "pmarray.json", "col", "row", "F", "C", "|O", "O", "<f8", ">f8",
    "f4", "|V0", "|V1", "|V2147483647", "<U536870911", "S", "U", "<M8[ns]", "<M8", "bfloat16",
    "float8_e5m2", "T", "i4,f8", "int8", "float64", "string", "r8", "r16000000000",
    "fixed_length_utf32", "NaN", "Infinity", "0x7fc00000", "00", "0000000000000000", "zstd",
    "blosc", "gzip", "pickle", "numcodecs.pickle", "numcodecs.lzma", "sharding_indexed",
    "transpose", "bytes", "crc32c", "vlen-utf8", "regular", "default", "v2", "group", "array",
    "big", "little",
]  # fmt: skip


def name(rng: random.Random) -> str:
    """A name that would lead to the canary, or that is none."""
    up = "../" * rng.randint(1, 3)
    return rng.choice(
        [
            f"{up}{CANARY}/x", f"{up}{CANARY}", f"{up}{CANARY}/", f"x/../../{CANARY}/x",
            os.path.join(os.getcwd(), CANARY, "x"), f"/{CANARY}", f"x/{up}{CANARY}/x",
            rng.choice(_TEXTS),
        ]
    )  # fmt: skip


def _value(rng: random.Random) -> Any:
    match rng.randrange(8):
        case 0 | 1:
            return rng.choice(_NUMBERS)
        case 2:
            return rng.choice(_TEXTS)
        case 3:
            return name(rng)
        case 4:
            return rng.choice([None, True, False, [], {}, [[]], [{}], {"": 0}])
        case 5:
            return [_value(rng) for _ in range(rng.randrange(4))]
        case 6:
            return {rng.choice(_TEXTS): _value(rng) for _ in range(rng.randrange(3))}
        case _:
            deep: Any = 0
            for _ in range(rng.choice([3, 60, 200, 900])):
                deep = [deep] if rng.random() < 0.8 else {"a": deep}
            return deep


def change_json(rng: random.Random, value: Any) -> Any:
    """Return a copy of a JSON value that differs in a few places."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        try:
            value = _change_one(rng, value)
        except RecursionError:
            pass  # a copy of what is too deep
    return value


def _change_one(rng: random.Random, value: Any) -> Any:
    places = list(_places(value))
    if not places or rng.random() < 0.01:
        return _value(rng)
    holder, key = rng.choice(places)
    old = holder[key]
    match rng.randrange(10):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[name(rng) if rng.random() < 0.7 else rng.choice(_TEXTS)] = holder.pop(key)
        case 2 if isinstance(old, int | float):
            holder[key] = old + rng.choice([-1, 1, 2, -2, 1 << 32, 1 << 63])
        case 3:
            other, where = rng.choice(places)
            holder[key] = copy.deepcopy(other[where])
        case 4 if isinstance(old, str):
            holder[key] = _change_text(rng, old)
        case 5 if isinstance(old, list):
            holder[key] = old * rng.choice([0, 2, 70])
        case 6 if isinstance(holder, list):
            holder.insert(key, _value(rng))
        case 7 if isinstance(old, int):
            holder[key] = rng.choice([n for n in _NUMBERS if isinstance(n, int)])
        case _:
            holder[key] = _value(rng)
    return value


def _places(value: Any) -> Any:
    """Yield holder and key of everything in a JSON value, down to a depth."""
    todo = [value]
    for one in todo:
        keys: Any = (
            one.keys()
            if isinstance(one, dict)
            else range(len(one))
            if isinstance(one, list)
            else ()
        )
        for key in list(keys):
            yield one, key
            if len(todo) < 500:
                todo.append(one[key])


def _change_text(rng: random.Random, text: str) -> str:
    data = bytearray(text.encode("utf8", "surrogatepass"))
    return change_bytes(rng, bytes(data)).decode("latin1")


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    """Return bytes that differ in a few places."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(8):
            case 0:
                del out[at:]
            case 1:
                out[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 2:
                del out[at : at + rng.randrange(1, 9)]
            case 3 | 4 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 5 | 6:
                width = rng.choice([1, 2, 4, 8])
                number = rng.choice([n for n in _NUMBERS if isinstance(n, int)])
                number &= (1 << 8 * width) - 1
                out[at : at + width] = number.to_bytes(width, "little")
            case _:
                other = rng.randrange(len(out) + 1)
                out[at : at + 8] = out[other : other + 8]
    return bytes(out)


def change_tree(rng: random.Random, root: Path) -> None:
    """Put something else in the place of an entry, or add one."""
    found = sorted(root.rglob("*"))
    path = (
        rng.choice(found)
        if found and rng.random() < 0.85
        else root
        / rng.choice(
            [
                "lock",
                "journal",
                "pmarray.json.new",
                "x.npy",
                "data",
                ".pmarray",
                "zarr.json.pmarray-new",
            ]
        )
    )
    if not path.parent.is_dir() or path.parent.is_symlink():
        return
    if os.path.lexists(path):
        moved = root.parent / "aside"
        _remove(moved)
        path.rename(moved)
    canary = root.parent / CANARY
    match rng.randrange(9):
        case 0:
            path.symlink_to(canary / "file")
        case 1:
            path.symlink_to(canary)
        case 2:
            path.symlink_to(
                rng.choice(["/dev/zero", "/dev/full", "/dev/null", path.name, "nowhere"])
            )
        case 3:
            os.mkfifo(path)
        case 4:
            path.mkdir()
        case 5:
            path.mkdir()
            (path / "lock").write_bytes(b"")
        case 6:
            path.write_bytes(rng.randbytes(rng.choice([0, 1, 100, 5000])))
        case 7:
            with path.open("wb") as file:
                file.truncate(rng.choice([1 << 33, 1 << 40, 1 << 50]))
        case _:
            path.symlink_to(root.parent / "aside")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for one in path.iterdir():
            _remove(one)
        path.rmdir()
    elif os.path.lexists(path):
        path.unlink()

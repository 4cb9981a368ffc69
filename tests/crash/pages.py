"""File contents as tables of 4096-byte pages, each kept once and known by a small number.

Two contents are compared, and an image is recognised, without looking at their bytes again. The
page of zeros has number 0 and is left out of the tables, so that a large empty file costs nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

__all__ = [
    "PAGE_BYTES",
    "Content",
    "cut",
    "fingerprint",
    "forget_all",
    "intern",
    "page_bytes",
    "write_pages",
]

PAGE_BYTES = 4096

_ZEROS = bytes(PAGE_BYTES)
_pages: list[bytes] = [_ZEROS]
_digests: list[bytes] = [b""]
_numbers: dict[bytes, int] = {_ZEROS: 0}


def intern(data: bytes) -> int:
    """Return the number of a page, which is padded with zeros."""
    if len(data) < PAGE_BYTES:
        data = data.ljust(PAGE_BYTES, b"\0")
    number = _numbers.get(data)
    if number is None:
        number = _numbers[data] = len(_pages)
        _pages.append(data)
        _digests.append(hashlib.blake2b(data, digest_size=16).digest())
    return number


def page_bytes(number: int) -> bytes:
    """Return the bytes of a page."""
    return _pages[number]


def forget_all() -> None:
    """Drop every page; for `choices.forget_pages`, which drops what refers to them first."""
    del _pages[1:], _digests[1:]
    _numbers.clear()
    _numbers[_ZEROS] = 0
    fingerprint.cache_clear()
    _split.cache_clear()


@lru_cache(maxsize=1 << 18)
def fingerprint(index: int, number: int) -> int:
    """Return 128 bits for "page `index` has these bytes"; those of a file are XORed together."""
    if number == 0:
        return 0
    digest = hashlib.blake2b(_digests[number], digest_size=16, salt=index.to_bytes(16, "little"))
    return int.from_bytes(digest.digest(), "little")


@lru_cache(maxsize=1 << 12)
def _split(data: bytes, within: int) -> tuple[bytes, tuple[int, ...], bytes]:
    """Cut what is written into the end of a page, whole pages, and the beginning of one."""
    start = min(-within % PAGE_BYTES, len(data))
    stop = start + (len(data) - start) // PAGE_BYTES * PAGE_BYTES
    whole = tuple(intern(data[at : at + PAGE_BYTES]) for at in range(start, stop, PAGE_BYTES))
    return data[:start], whole, data[stop:]


def write_pages(pages: dict[int, int], offset: int, data: bytes) -> list[int]:
    """Write into a table; return the indices of the pages that changed."""
    index, within = divmod(offset, PAGE_BYTES)
    head, whole, tail = _split(data, within)
    changed = []
    if head:
        changed += _patch(pages, index, within, head)
        index += 1
    for number in whole:
        if pages.get(index, 0) != number:
            pages[index] = number
            changed.append(index)
        index += 1
    if tail:
        changed += _patch(pages, index, 0, tail)
    return changed


def _patch(pages: dict[int, int], index: int, within: int, piece: bytes) -> list[int]:
    old = pages.get(index, 0)
    page = _pages[old]
    number = intern(page[:within] + piece + page[within + len(piece) :])
    if number == old:
        return []
    pages[index] = number
    return [index]


def cut(pages: Mapping[int, int], size: int) -> dict[int, int]:
    """Return what a file of `size` bytes shows of a table: zeros beyond its end."""
    whole, rest = divmod(size, PAGE_BYTES)
    result = {i: number for i, number in pages.items() if number and i <= whole}
    last = result.pop(whole, 0)
    if last and rest:
        trimmed = intern(_pages[last][:rest])
        if trimmed:
            result[whole] = trimmed
    return result


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of one file, as a reader would find them."""

    size: int
    pages: Mapping[int, int]
    """Pages that are not all zeros, by index."""
    mark: int
    """128 bits that two contents of one size share only if they are equal."""

    @classmethod
    def of(cls, pages: Mapping[int, int], size: int) -> Content:
        """Cut a table to a size."""
        shown = cut(pages, size)
        mark = 0
        for index, number in shown.items():
            mark ^= fingerprint(index, number)
        return cls(size, shown, mark)

    def with_pages(self, overlay: Mapping[int, int]) -> Content:
        """Return the same with some pages replaced; they lie within the size, tails are zero."""
        mark = self.mark
        pages = dict(self.pages)
        for index, number in overlay.items():
            old = pages.get(index, 0)
            if old != number:
                mark ^= fingerprint(index, old) ^ fingerprint(index, number)
                if number:
                    pages[index] = number
                else:
                    del pages[index]
        return Content(self.size, pages, mark)

    def to_bytes(self) -> bytes:
        """Return all of it."""
        result = bytearray(-(-self.size // PAGE_BYTES) * PAGE_BYTES)
        for index, number in self.pages.items():
            result[index * PAGE_BYTES : (index + 1) * PAGE_BYTES] = _pages[number]
        return bytes(result[: self.size])

"""What one file may hold after a power cut: rules 1 to 4 of `simdisk`."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from tests.crash import pages as page_table
from tests.crash.events import Entries, Resize, Store, Write
from tests.crash.pages import PAGE_BYTES, Content, cut, intern, page_bytes, write_pages
from tests.crash.simdisk import File, resized

__all__ = ["UNITS", "all_contents", "forget_pages", "garbled", "kept_whole", "torn"]

UNITS = (8, 512, 4096)
"""What a medium might write in one step, in bytes."""
_SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The contents that go with one of the lengths that the file may have."""

    oldest: Content
    versions: dict[int, tuple[int, ...]]
    """Of each page that may be one or the other: all that it was, in order, first the durable."""


def _outcomes(file: File) -> list[_Outcome]:
    """Return one outcome for each number of changes of length that took effect (rule 4)."""
    resizing = _resizing(file)
    return [_outcome(file, resizing, effective) for effective in range(sum(resizing) + 1)]


def _resizing(file: File) -> list[bool]:
    """Say of each pending change whether it changes the length."""
    result = []
    size = file.size
    for one in file.pending:
        event = one.event
        assert not isinstance(event, Entries)
        after = _size_after(size, event)
        result.append(after != size)
        size = after
    return result


def _size_after(size: int, event: Write | Resize) -> int:
    if isinstance(event, Write):
        return max(size, event.offset + len(event.data))
    return resized(size, event)


def _outcome(file: File, resizing: list[bool], effective: int) -> _Outcome:
    base, now, size = dict(file.pages), dict(file.pages), file.size
    versions: dict[int, list[int]] = {}
    done = 0
    for one, resizes in zip(file.pending, resizing, strict=True):
        event = one.event
        done += resizes
        if one.settled:
            assert isinstance(event, Store)
            _settle(versions, event)
            write_pages(base, event.offset, event.data)
            write_pages(now, event.offset, event.data)
        elif isinstance(event, Write):
            for index in write_pages(now, event.offset, event.data):
                versions.setdefault(index, [base.get(index, 0)]).append(now.get(index, 0))
            if resizes and done <= effective:
                size = _size_after(size, event)
        elif resizes and done <= effective:
            assert not isinstance(event, Entries)
            after = resized(size, event)
            if after < size:
                base, now = cut(base, after), cut(now, after)
                versions = _cut_versions(versions, after)
            size = after
    shown = _cut_versions(versions, size)
    return _Outcome(
        Content.of(base, size),
        {i: tuple(dict.fromkeys(v)) for i, v in shown.items() if len(set(v)) > 1},
    )


def _settle(versions: dict[int, list[int]], event: Store) -> None:
    """Put into every version what a persisted store has left there."""
    stop = event.offset + len(event.data)
    for index in range(event.offset // PAGE_BYTES, -(-stop // PAGE_BYTES)):
        for i, number in enumerate(versions.get(index, ())):
            pages = {index: number}
            write_pages(pages, event.offset, event.data)
            versions[index][i] = pages.get(index, 0)


def _cut_versions(versions: dict[int, list[int]], size: int) -> dict[int, list[int]]:
    whole, rest = divmod(size, PAGE_BYTES)
    result = {i: v for i, v in versions.items() if i < whole}
    if rest and whole in versions:
        result[whole] = [intern(page_bytes(number)[:rest]) for number in versions[whole]]
    return result


@lru_cache(maxsize=1 << 14)
def _pages_of(versions: tuple[int, ...], unit: int, limit: int) -> tuple[int, ...] | None:
    """Return what a page may be when each unit of it is any of its versions; None: too many."""
    if unit == PAGE_BYTES:
        return versions
    pages = [page_bytes(number) for number in versions]
    units = [
        list(dict.fromkeys(page[start : start + unit] for page in pages))
        for start in range(0, PAGE_BYTES, unit)
    ]
    if math.prod(map(len, units)) > limit:
        return None
    return tuple(dict.fromkeys(intern(b"".join(parts)) for parts in product(*units)))


def forget_pages() -> None:
    """Free the memory of all pages, between campaigns: no disk or image is of use afterwards."""
    _pages_of.cache_clear()
    page_table.forget_all()


def all_contents(file: File, unit: int, limit: int) -> list[Content] | None:
    """Return everything that `file` may hold; None if it is more than `limit` contents."""
    found: dict[tuple[int, int], Content] = {}
    for outcome in _outcomes(file):
        indices = list(outcome.versions)
        choices = [_pages_of(outcome.versions[i], unit, limit) for i in indices]
        if any(pages is None for pages in choices):
            return None
        known = [pages for pages in choices if pages is not None]
        if math.prod(map(len, known)) + len(found) > limit:
            return None
        for pages in product(*known):
            content = outcome.oldest.with_pages(dict(zip(indices, pages, strict=True)))
            found[content.size, content.mark] = content
    return list(found.values())


def subsets(file: File, limit: int) -> list[Content] | None:
    """Return what `file` may hold if no write is torn; None if it is more than `limit`."""
    count = len(file.pending)
    if 1 << count > limit:
        return None
    found: dict[tuple[int, int], Content] = {}
    for kept in product((False, True), repeat=count):
        content = kept_whole(file, kept)
        found[content.size, content.mark] = content
    return list(found.values())


def kept_whole(file: File, kept: tuple[bool, ...] | list[bool]) -> Content:
    """Return the content when of the pending changes just these took effect.

    The changes of length up to the last one kept have taken effect too, if without their data.
    """
    resizing = _resizing(file)
    lengths = max((i for i, both in enumerate(zip(kept, resizing, strict=True)) if all(both)),
                  default=-1)  # fmt: skip
    pages, size = dict(file.pages), file.size
    for i, one in enumerate(file.pending):
        event = one.event
        assert not isinstance(event, Entries)
        if isinstance(event, Write) and (kept[i] or one.settled):
            write_pages(pages, event.offset, event.data)
        if resizing[i] and i <= lengths:
            after = _size_after(size, event)
            if after < size:
                pages = cut(pages, after)
            size = after
    return Content.of(pages, size)


def torn(file: File, rng: random.Random, units: Sequence[int] = UNITS) -> Content:
    """Return a random content, torn into units of a random size."""
    outcomes = _outcomes(file)
    outcome = rng.choice([outcomes[-1], rng.choice(outcomes)])
    unit, probability = rng.choice(units), rng.choice((0.1, 0.5, 0.9))
    indices = sorted(outcome.versions)
    per_page = PAGE_BYTES // unit
    count = per_page * len(indices)
    if rng.random() < 0.3:  # the first units are new
        stop = rng.randint(0, count)
        is_new = [i < stop for i in range(count)]
    else:
        is_new = [rng.random() < probability for _ in range(count)]
    overlay = {
        index: _mixed(outcome.versions[index], is_new[i * per_page : (i + 1) * per_page], rng)
        for i, index in enumerate(indices)
    }
    return outcome.oldest.with_pages(overlay)


def _mixed(versions: tuple[int, ...], is_new: list[bool], rng: random.Random) -> int:
    """Return a page whose units are durable or one of the newer versions."""
    pages = [page_bytes(number) for number in versions]
    unit = PAGE_BYTES // len(is_new)
    parts = []
    for i, new in enumerate(is_new):
        page = pages[0] if not new else pages[-1] if len(pages) == 2 else rng.choice(pages[1:])
        parts.append(page[i * unit : (i + 1) * unit])
    return intern(b"".join(parts))


def garbled(file: File, content: Content, rng: random.Random) -> Content:
    """Return `content` with noise in one sector that a pending write was going to (rule 3)."""
    sectors = list(_pending_sectors(file, content.size))
    if not sectors:
        return content
    sector = rng.choice(sectors)
    index, within = divmod(sector * _SECTOR_BYTES, PAGE_BYTES)
    page = bytearray(page_bytes(content.pages.get(index, 0)))
    page[within : within + _SECTOR_BYTES] = rng.randbytes(_SECTOR_BYTES)
    table = {**content.pages, index: intern(bytes(page))}
    return Content.of(table, content.size)


def _pending_sectors(file: File, size: int) -> Iterator[int]:
    """Yield up to a few dozen sectors; none for stores, for memory has no sectors."""
    for one in file.pending:
        if isinstance(one.event, Write) and not isinstance(one.event, Store):
            start = one.event.offset // _SECTOR_BYTES
            stop = -(-min(size, one.event.offset + len(one.event.data)) // _SECTOR_BYTES)
            step = max(1, (stop - start) // 32)
            yield from range(start, stop, step)

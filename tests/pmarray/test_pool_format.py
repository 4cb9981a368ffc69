"""The format of a pool on a device: units, superblocks and the directory. Pure; no device."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

import google_crc32c
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pmarray._formats.pool import (
    SUPERBLOCK_BYTES,
    Directory,
    Runs,
    Slot,
    Superblock,
    allocate,
    current,
    describe_slots,
    free_units,
    joined,
)
from pmarray.errors import DamagedError, ForeignDataError

TOTAL = 40

uint64 = st.integers(0, 2**64 - 1)
uint32 = st.integers(0, 2**32 - 1)
files = st.lists(st.tuples(st.integers(1, TOTAL - 5), st.integers(1, 5)), max_size=8).map(tuple)
superblocks = st.builds(Superblock, uint64, uint64, uint64, uint64, st.integers(1, 2**64 - 1),
                        uint32)  # fmt: skip


def units(runs: Iterable[tuple[int, int]]) -> list[int]:
    return [unit for first, count in runs for unit in range(first, first + count)]


# -- units -------------------------------------------------------------------------------------


@given(st.lists(files, max_size=4))
def test_free_is_what_nobody_has(used: list[Runs]) -> None:
    free = free_units(TOTAL, used)
    taken = {unit for runs in used for unit in units(runs)}
    assert units((a, b - a) for a, b in free) == sorted(set(range(1, TOTAL)) - taken)


@given(files, st.integers(0, TOTAL), st.integers(-1, 7))
def test_allocates_free_units_and_goes_on_where_it_can(used: Runs, count: int, at: int) -> None:
    after = sum(used[at]) if 0 <= at < len(used) else None
    free = free_units(TOTAL, [used])
    spans = list(free)
    chosen = allocate(free, count, after)
    if count > free.nbytes:
        assert chosen is None
        return
    assert chosen is not None
    found = units(chosen)
    assert len(set(found)) == len(found) == count
    assert all(free.covers(unit, unit + 1) for unit in found)
    assert list(free) == spans, "it is for the caller to take them"
    going_on = [stop - start for start, stop in spans if start == after]
    if going_on and count:
        assert chosen[0] == (after, min(count, *going_on))
    elif count:
        sizes = sorted(stop - start for start, stop in spans)
        enough = [size for size in sizes if size >= count]
        span = next(one for one in spans if one[0] == chosen[0][0])
        assert span[1] - span[0] == (enough or sizes[-1:])[0], "large runs are left"
        most = itertools.accumulate(reversed(sizes))
        assert len(chosen) == 1 + sum(nbytes < count for nbytes in most), "few pieces"


@given(files)
def test_joining_changes_no_unit_and_leaves_nothing_to_join(runs: Runs) -> None:
    result = joined(runs)
    assert units(result) == units(runs)
    assert all(sum(a) != b[0] for a, b in itertools.pairwise(result))


# -- superblocks -------------------------------------------------------------------------------


@given(superblocks)
def test_a_superblock_is_one_cache_line_and_comes_back(superblock: Superblock) -> None:
    data = superblock.to_bytes()
    assert len(data) == SUPERBLOCK_BYTES == 64
    assert Superblock.from_bytes(data.ljust(4096, b"?"), "here") == superblock


@given(superblocks, st.integers(0, 8 * SUPERBLOCK_BYTES - 1))
def test_a_flipped_bit_is_noticed(superblock: Superblock, bit: int) -> None:
    data = bytearray(superblock.to_bytes())
    data[bit // 8] ^= 1 << bit % 8
    assert Superblock.from_bytes(bytes(data), "here") is None


def newer(superblock: Superblock) -> bytes:
    """A superblock of a later version; what else it holds is not ours to know."""
    data = superblock.to_bytes()
    return data[:12] + (2).to_bytes(4, "little") + bytes(48)


old = Superblock(6, 2 << 20, 1 << 30, 2 << 20, 100, 1)
new = replace(old, generation=7, offset=4 << 20)
half = Superblock(0, 2 << 20, 1 << 30)
zeros, foreign = bytes(SUPERBLOCK_BYTES), b"XFSB".ljust(SUPERBLOCK_BYTES, b"?")
torn = new.to_bytes()[:40] + old.to_bytes()[40:]
STATES = {
    "old": old.to_bytes(), "new": new.to_bytes(), "half": half.to_bytes(), "zeros": zeros,
    "foreign": foreign, "torn": torn, "newer": newer(new),
}  # fmt: skip


@pytest.mark.parametrize("pair", list(itertools.product(STATES, STATES)), ids="-".join)
def test_the_slot_in_force(pair: tuple[str, str]) -> None:
    slots = [Slot(STATES[name]) for name in pair]
    if "newer" in pair:
        with pytest.raises(ForeignDataError, match="format 2"):
            current(slots, "/dev/dax0.0")
    elif "new" in pair:
        assert current(slots, "") == (pair.index("new"), new)
    elif "old" in pair:
        assert current(slots, "") == (pair.index("old"), old)
    elif "half" in pair:
        with pytest.raises(ForeignDataError, match=r"pmarray format /dev/dax0\.0.* run it again"):
            current(slots, "/dev/dax0.0")
    elif "torn" in pair:
        with pytest.raises(DamagedError, match=r"both superblocks of /dev/dax0\.0"):
            current(slots, "/dev/dax0.0")
    else:
        assert current(slots, "") is None


@given(superblocks, superblocks, st.sets(st.integers(0, 7)), st.booleans(), st.booleans())
def test_a_torn_store_leaves_the_old_superblock_or_the_new(
    before: Superblock, after: Superblock, words: set[int], zero: bool, second: bool
) -> None:
    """The slot that is stored to held the one before the old one, or zeros."""
    assume(0 < before.generation < 2**64 - 1)
    after = replace(after, generation=before.generation + 1)
    older = replace(after, generation=before.generation - 1)
    slot = bytearray(SUPERBLOCK_BYTES) if zero else bytearray(older.to_bytes())
    for word in words:
        slot[8 * word : 8 * word + 8] = after.to_bytes()[8 * word : 8 * word + 8]
    slots = [Slot(bytes(slot)), Slot(before.to_bytes())]
    found = current(slots[::-1] if second else slots, "here")
    assert found is not None
    whole = bytes(slot) == after.to_bytes()
    assert found[1] == (after if whole else before)
    assert found[0] == (second if whole else not second)


@given(superblocks, st.booleans(), st.booleans(), st.integers(0, 8 * SUPERBLOCK_BYTES - 1))
def test_a_flipped_bit_loses_nothing_and_is_told(
    now: Superblock, second: bool, in_copy: bool, bit: int
) -> None:
    """In the line of the superblock in force, or in its copy; the one before is in the other."""
    assume(now.generation > 0)
    now = replace(now, nbytes=max(1, now.nbytes))
    before = replace(now, generation=now.generation - 1).to_bytes()
    line = bytearray(now.to_bytes())
    line[bit // 8] ^= 1 << bit % 8
    halves = [now.to_bytes(), bytes(line)] if in_copy else [bytes(line), now.to_bytes()]
    slots = [Slot(before, before), Slot(*halves)]
    if second:
        slots.reverse()
    assert current(slots, "here") == (0 if second else 1, now)
    ((where, _, damaged),) = describe_slots(slots, "here")
    assert where == f"superblock {0 if second else 1}"
    assert damaged or in_copy


@given(superblocks, st.booleans(), st.sets(st.integers(0, 7)))
def test_a_torn_copy_leaves_the_superblock_that_it_is_of(
    now: Superblock, fresh: bool, words: set[int]
) -> None:
    """The power fails in step 4; the copy was that of the slot before, or there was none."""
    assume(now.generation > 1)
    now = replace(now, nbytes=max(1, now.nbytes))
    copy = bytearray(
        SUPERBLOCK_BYTES if fresh else replace(now, generation=now.generation - 2).to_bytes()
    )
    for word in words:
        copy[8 * word : 8 * word + 8] = now.to_bytes()[8 * word : 8 * word + 8]
    before = replace(now, generation=now.generation - 1).to_bytes()
    slots = [Slot(before, before), Slot(now.to_bytes(), bytes(copy))]
    assert current(slots, "here") == (1, now)
    assert not any(damaged for _, _, damaged in describe_slots(slots, "here"))


# -- the directory -----------------------------------------------------------------------------

directories = st.builds(
    Directory, st.none() | st.text(max_size=30), st.dictionaries(st.integers(0, 2**40), files)
)


@given(directories)
def test_a_directory_comes_back(directory: Directory) -> None:
    data = directory.to_bytes()
    assert Directory.from_bytes(data, google_crc32c.value(data), "here") == directory


@given(directories, st.data())
def test_damage_to_a_directory_is_noticed(directory: Directory, draw: st.DataObject) -> None:
    whole = directory.to_bytes()
    data = bytearray(whole)
    data[draw.draw(st.integers(0, len(data) - 1))] ^= draw.draw(st.integers(1, 255))
    with pytest.raises(DamagedError, match="the directory of here is damaged"):
        Directory.from_bytes(bytes(data), google_crc32c.value(whole), "here")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"checkpoint": null, "files": {"1": [[2]]}}',
             b'{"checkpoint": null, "files": [1]}', b'{"checkpoint": null, "files": {"x": []}}'],
)  # fmt: skip
def test_a_directory_that_is_none_is_damage(data: bytes) -> None:
    with pytest.raises(DamagedError, match="cannot be read"):
        Directory.from_bytes(data, google_crc32c.value(data), "here")


def test_a_checkpoint_that_is_no_text_is_damage() -> None:
    data = b'{"checkpoint": "\\ud800", "files": {}, "freed": 0}'
    with pytest.raises(DamagedError, match="cannot be read"):
        Directory.from_bytes(data, google_crc32c.value(data), "here")


@given(directories, st.integers(0, 5), st.none() | files)
def test_changing_one_file_leaves_the_others(
    directory: Directory, number: int, runs: Runs | None
) -> None:
    before = dict(directory.files)
    after = directory.with_file(number, runs)
    assert after.checkpoint == directory.checkpoint
    assert after.files.get(number) == runs
    assert {k: v for k, v in after.files.items() if k != number} == {
        k: v for k, v in before.items() if k != number
    }
    assert directory.files == before

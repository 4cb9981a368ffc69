"""Images that other threads write into the journal: whole, in their place, and gone on from."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmarray._commits import journal as module
from pmarray._commits.journal import Journal
from pmarray._formats.records import MAX_IMAGE_BYTES, Image
from pmarray.backends._regions import DRAMRegion
from pmarray.errors import StorageError
from tests.sampling import examples


class SlowRegion:
    """A region that is written to by calls, each of which takes some time before it looks."""

    memory = None

    def __init__(self, seed: int) -> None:
        self._region = DRAMRegion(0)
        self._one_by_one = threading.Lock()
        """Memory may move when it grows, and a file, which this stands for, does not."""
        self._random = random.Random(seed)
        self.fails: set[int] = set()
        """Which of the large writes fail."""
        self.large = 0
        self.threads: set[threading.Thread] = set()
        self.most = self.now = 0

    def write(self, offset: int, buffers: Sequence[memoryview], /) -> None:
        number = None
        if sum(buffer.nbytes for buffer in buffers) >= module._WRITE_BYTES:
            number, self.large = self.large, self.large + 1
            self.threads.add(threading.current_thread())
        self.now += 1
        self.most = max(self.most, self.now)
        time.sleep(self._random.choice([0, 0.002]))
        self.now -= 1
        if number in self.fails:
            raise StorageError(5, "this write fails")
        with self._one_by_one:
            self._region.write(offset, buffers)

    def reserve(self, nbytes: int, /) -> None:
        with self._one_by_one:
            self._region.reserve(nbytes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._region, name)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WRITE_BYTES", 1 << 20)


IMAGES = st.lists(st.integers(1, MAX_IMAGE_BYTES), min_size=1, max_size=16)


@examples(0.5)
@given(IMAGES, st.integers(0, 2**32), st.sets(st.integers(0, 12), max_size=2), st.booleans())
def test_images_are_there_or_were_never_counted_on(
    sizes: list[int], seed: int, fails: set[int], lent: bool
) -> None:
    """A call that fails is made again, as the next transaction's may be."""
    region = SlowRegion(seed)
    journal = Journal(region, 1)
    journal.make()
    rng = np.random.default_rng(seed)
    contents = [rng.integers(0, 255, n, np.uint8).tobytes() for n in sizes]

    def images() -> Iterator[Image]:
        for i, content in enumerate(contents):
            data = memoryview(content)
            if lent:
                data = journal.memory(len(content))
                data[:] = content
            yield Image(i, i, data)

    region.fails, region.large = fails, 0
    try:
        journal.before(1, images())
    except StorageError:
        region.fails = set()
        # What the failed call left is whole, up to where the next one begins.
        ends = [journal.position, *(record.end for record in journal.records())]
        assert journal.position in (module.FIRST, *ends[1:])
        begun = journal.position
        assert journal.before(1, images())
    else:
        begun = module.FIRST
    journal.barrier()
    assert region.now == 0
    assert region.most <= module._WRITES_UNDER_WAY
    stored = [image for record in journal.records(begun) for image in record.images]
    assert [one.offset for one in stored] == list(range(len(sizes)))
    assert [bytes(journal.fetch(one)) for one in stored] == contents
    assert journal.durable_to == journal.position


def test_more_is_made_while_some_are_written() -> None:
    region = SlowRegion(0)
    journal = Journal(region, 1)
    journal.make()
    data = memoryview(bytes([1]) * MAX_IMAGE_BYTES)
    journal.before(1, [Image(1, i << 20, data) for i in range(20)])
    assert region.threads - {threading.current_thread()}  # which makes the journal longer
    assert sum(len(record.images) for record in journal.records()) == 20


def test_a_failure_of_what_makes_the_images_leaves_nothing_under_way() -> None:
    region = SlowRegion(3)
    journal = Journal(region, 1)
    journal.make()

    def images() -> Iterator[Image]:
        for i in range(12):
            if i == 9:
                raise StorageError(5, "the old bytes cannot be read")
            yield Image(1, i << 20, memoryview(bytes([1]) * MAX_IMAGE_BYTES))

    with pytest.raises(StorageError, match="old bytes"):
        journal.before(1, images())
    assert region.now == 0
    assert [record.end for record in journal.records()][-1] == journal.position


def test_memory_alone_needs_no_other_thread() -> None:
    before = set(threading.enumerate())  # of tests before, some may end meanwhile
    journal = Journal(DRAMRegion(0), 1)
    journal.make()
    data = memoryview(bytes([1]) * MAX_IMAGE_BYTES)
    journal.before(1, [Image(1, i << 20, data) for i in range(8)])
    assert set(threading.enumerate()) <= before

"""Data in arrays: every row once, in any kind of worker, while a posterior is collected."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pmarray
import swag
from swag.datasets import ArrayDataset, ArrayLoader
from tests.sampling import examples


def rows_of(count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows that tell their numbers, and so their labels."""
    x = np.arange(count * 2, dtype=np.float32).reshape(count, 2)
    return x, np.arange(count) * 7 % 10


def numbered(count: int) -> ArrayDataset:
    return ArrayDataset(*(pmarray.from_array(part, "dram:") for part in rows_of(count)))


@pytest.fixture
def make(scratch: Path) -> Iterator[Callable[[int], ArrayDataset]]:
    """Makes such data in a file."""
    with ExitStack() as stack:

        def made(count: int) -> ArrayDataset:
            with pmarray.open_group(scratch / "data") as group:
                group["x"], group["y"] = rows_of(count)
            names = (f"memmap:{scratch / 'data'}#{name}" for name in ("x", "y"))
            return stack.enter_context(ArrayDataset(*names))

        yield made


@examples(15)
@given(
    rows=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    block_rows=st.integers(1, 20),
    mix=st.integers(1, 5),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)
def test_an_epoch_has_every_row_once(
    rows: int, batch_size: int, block_rows: int, mix: int, shuffle: bool, drop_last: bool
) -> None:
    loader = ArrayLoader(
        numbered(rows),
        batch_size,
        block_rows=block_rows,
        mix=mix,
        shuffle=shuffle,
        drop_last=drop_last,
    )
    batches = list(loader)
    assert len(batches) == len(loader)
    sizes = [len(x) for x, _ in batches]
    assert all(size == batch_size for size in sizes[:-1])
    found = [int(row[0]) // 2 for x, _ in batches for row in x]
    labels = [int(label) for _, y in batches for label in y]
    assert labels == [row * 7 % 10 for row in found]
    if drop_last:
        assert len(found) == rows - rows % batch_size == len(set(found))
    else:
        assert sorted(found) == list(range(rows))
    if not shuffle:
        assert found == sorted(found)
        in_memory = DataLoader(TensorDataset(*numbered(rows).read(0, rows)), batch_size)
        for (x, y), (also_x, also_y) in zip(batches, in_memory, strict=False):
            assert torch.equal(x, also_x)
            assert torch.equal(y, also_y)


def order(loader: ArrayLoader) -> list[int]:
    return [int(row[0]) // 2 for x, _ in loader for row in x]


def test_epochs_differ_and_can_be_repeated() -> None:
    data = numbered(200)
    loader = ArrayLoader(data, 16, block_rows=10, mix=3)
    first, second = order(loader), order(loader)
    assert first != second
    again = ArrayLoader(data, 16, block_rows=10, mix=3)
    again.epoch = 1
    assert order(again) == second
    assert order(ArrayLoader(data, 16, block_rows=10, mix=3, seed=1)) != first
    adjacent = sum(abs(a - b) == 1 for a, b in pairwise(first))
    assert adjacent < 40  # of 199, if nothing were mixed


def test_the_thread_ends_with_the_loop() -> None:
    loader = ArrayLoader(numbered(100), 2, block_rows=5, prefetch=1)

    def first() -> Iterator[object]:
        yield from loader

    taken = first()
    next(taken)
    assert any(thread.name == "swag-loader" for thread in threading.enumerate())
    taken.close()  # type: ignore[attr-defined]
    assert not any(thread.name == "swag-loader" for thread in threading.enumerate())


def test_what_fails_in_the_thread_is_raised_in_the_loop(
    make: Callable[[int], ArrayDataset],
) -> None:
    data = make(100)
    loader = ArrayLoader(data, 10, block_rows=10, mix=1, prefetch=1)
    with pytest.raises(pmarray.PMArrayError, match="closed"):
        for _ in loader:
            data.open()[0].group.close()


def test_items_are_those_of_a_tensor_dataset(
    make: Callable[[int], ArrayDataset],
) -> None:
    data = make(50)
    memory = TensorDataset(*data.read(0, 50))
    for index in (0, 7, -1):
        for one, other in zip(data[index], memory[index], strict=True):
            assert torch.equal(one, other)
    rows = data.__getitems__([9, 3, 9, 49])
    assert [int(x[0]) // 2 for x, _ in rows] == [9, 3, 9, 49]
    with pytest.raises(IndexError, match="50 items"):
        data[50]
    with pytest.raises(ValueError, match="one length"):
        ArrayDataset(data.open()[0], pmarray.from_array(np.ones(3), "dram:"))


def test_an_array_in_the_memory_of_another_process_is_refused() -> None:
    with pytest.raises(pickle.PicklingError, match="where no other can open"):
        pickle.dumps(numbered(5))


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_workers_of_every_kind_read_while_a_posterior_is_collected(
    start: str, scratch: Path, make: Callable[[int], ArrayDataset]
) -> None:
    if start == "fork" and sys.platform == "darwin":
        pytest.skip("a fork of a process with threads is not safe on macOS")
    data = make(10_000)
    loader = DataLoader(
        data, 500, num_workers=1 + (start == "fork"), multiprocessing_context=start, shuffle=True
    )
    model = nn.Linear(2, 1)
    labels: dict[int, int] = {}
    with swag.SWAG(model, store=f"memmap:{scratch / 'posterior'}", max_rank=5) as posterior:
        for x, y in loader:
            nn.init.normal_(model.weight)
            posterior.update_parameters(model)
            labels.update(zip((x[:, 0] / 2).int().tolist(), y.tolist(), strict=True))
        assert posterior.n_averaged == 20
    assert labels == {row: row * 7 % 10 for row in range(10_000)}
    with swag.load(f"memmap:{scratch / 'posterior'}") as found:
        assert found.n_averaged == 20

"""What shares memory with what is written, and is read after parts of it were: NumPy copies it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pmarray
from pmarray.testing import layouts
from tests.pmarray.test_arithmetic import numbers, stored

SIDE = 6
work = st.sampled_from([64, 200])
schemes = st.sampled_from(["dram:", "memmap:"])


def _square(x: Any, other: Any) -> Any:
    return x if x.shape == other.shape else other


def _view(x: Any) -> Any:
    return x if isinstance(x, np.ndarray) else x.view


LOOKS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda x: x,
    "turned": lambda x: x.T,
    "backwards": lambda x: _view(x)[::-1],
    "flipped": lambda x: _view(x)[:, ::-1],
    "again": lambda x: _view(x)[...],
    "both": lambda x: _view(x.T)[::-1],
    "row": lambda x: _view(x)[1:2],
    "column": lambda x: _view(x)[:, 2:3],
}
looks = st.sampled_from(sorted(LOOKS))
whole_looks = st.sampled_from(["again", "backwards", "both", "flipped", "itself", "turned"])


# Of an array, and two looks at it.
WRITES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "add": lambda x, y, z: np.add(y, z, out=x),
    "two results": lambda x, y, z: np.divmod(y, z, out=(x, np.zeros((SIDE, SIDE), "i8"))),
    "assign": lambda x, y, z: x.__setitem__(..., y),
    "copyto": lambda x, y, z: np.copyto(x, y),
    "clip": lambda x, y, z: np.clip(x, y, z, out=x),
    "clip a number": lambda x, y, z: np.clip(3, y, z, out=x),
    "running sum": lambda x, y, z: np.add.accumulate(y if y.shape == x.shape else x, 0, out=x),
    "in place": lambda x, y, z: np.multiply(x, y, out=x),
    "at": lambda x, y, z: np.add.at(x, [4, 0, 4, 1], y[:4] if y.shape[0] > 1 else 1),
    "index of arrays": lambda x, y, z: x.__setitem__([3, 2, 1, 0, 5, 4], y),
    "dot": lambda x, y, z: np.dot(_square(y, x), _square(z, x), out=x),
    "matmul": lambda x, y, z: np.matmul(_square(y, x), _square(z, x), out=x),
    "einsum": lambda x, y, z: np.einsum("ij,jk->ki", _square(y, x), _square(z, x), out=x),
    "einsum of one": lambda x, y, z: np.einsum("ij->ji", _square(y, x), out=x),
}


@given(st.sampled_from(sorted(WRITES)), looks, looks, layouts(), schemes, work)
def test_operands_are_read_before_they_are_overwritten(
    write: str, one: str, other: str, layout: str, scheme: str, memory: int
) -> None:
    model = numbers((SIDE, SIDE), "int64", 1)
    with stored(scheme, model, layout, "64 KiB", memory) as array:
        WRITES[write](array, LOOKS[one](array), LOOKS[other](array))
        WRITES[write](model, LOOKS[one](model), LOOKS[other](model))
        np.testing.assert_array_equal(array[...], model)


MASKED: dict[str, Callable[[Any, Any, Any], Any]] = {
    "number": lambda x, mask, _: x.__setitem__(mask, False),
    "copyto": lambda x, mask, other: np.copyto(x, other, where=mask),
    "out": lambda x, mask, other: np.logical_not(other, out=x, where=mask),
    "xor": lambda x, mask, other: np.logical_xor(x, mask, out=x, where=other),
    "place": lambda x, mask, _: np.place(x, mask, [True, False, False]),
    "putmask": lambda x, mask, other: np.putmask(x, mask, other),
}


@given(
    st.sampled_from(sorted(MASKED)), whole_looks, whole_looks, layouts(), schemes, work,
    st.integers(0, 5),
)  # fmt: skip
def test_masks_are_read_before_they_are_overwritten(
    write: str, one: str, other: str, layout: str, scheme: str, memory: int, seed: int
) -> None:
    model = numbers((SIDE, SIDE), "bool", seed)
    with stored(scheme, model, layout, "64 KiB", memory) as array:
        MASKED[write](array, LOOKS[one](array), LOOKS[other](array))
        # Not all of NumPy's functions look whether a mask overlaps what they write.
        MASKED[write](model, LOOKS[one](model).copy(), LOOKS[other](model).copy())
        np.testing.assert_array_equal(array[...], model)


@pytest.mark.parametrize("url", ["dram:", "memmap:"])
def test_values_under_a_large_mask_are_read_before_they_are_overwritten(
    url: str, scratch: Any
) -> None:
    model = np.arange(1000.0)
    mask = model % 3 != 1
    count = int(mask.sum())
    url = url if url == "dram:" else f"{url}{scratch}/x"
    with pmarray.open(url, (1000,)) as array, pmarray.config.set(work_memory=500):
        stored_mask = pmarray.open("dram:", (1000,), bool)
        stored_mask[...] = mask
        values: list[Callable[[Any], Any]] = [
            lambda x: _view(x)[:count],
            lambda x: np.asarray(x)[:count][::-1],
        ]
        for those in values:
            for chosen in (mask, stored_mask):
                array[...] = model
                expected = model.copy()
                array[chosen] = those(array)
                expected[mask] = those(model)
                np.testing.assert_array_equal(array[...], expected)


@pytest.mark.parametrize("memory", ["asarray", "torch", "another handle"])
def test_memory_of_an_array_is_known_again(memory: str) -> None:
    """Whatever shows it."""
    array: Any = pmarray.open(f"dram:{uuid.uuid4()}", (1000,))
    array[...] = model = np.arange(1000.0)
    array.flush()
    ways: dict[str, Callable[[], Any]] = {
        "asarray": lambda: np.asarray(array),
        "torch": lambda: array.torch().numpy(),
        "another handle": lambda: pmarray.open(array.group.url, mode="r"),
    }
    shown = ways[memory]()
    with pmarray.config.set(work_memory=500):
        np.add(array, _view(shown)[::-1], out=array)
        np.testing.assert_array_equal(array[...], model + model[::-1])
        array[...] = model
        if memory == "torch":
            np.add(array, array.view[::-1], out=shown)
            np.testing.assert_array_equal(array[...], model + model[::-1])


def test_ndarrays_beside_a_stored_array() -> None:
    array: Any = pmarray.open("dram:", (1000,), fill_value=1)
    model = np.arange(1000.0)
    with pmarray.config.set(work_memory=500):
        np.add(model[::-1], array, out=model)
    np.testing.assert_array_equal(model, np.arange(1000.0)[::-1] + 1)


def test_no_copy_where_the_same_items_are_written() -> None:
    """A large array is updated in place, through whatever look at it."""
    array: Any = pmarray.open("dram:", (1000, 3), fill_value=1)
    with pmarray.config.set(work_memory=1000, max_result=2000):
        np.add(array, 1, out=array)
        np.add(array.view[:, 1], array.view[:, 1], out=array.view[:, 1])
        np.multiply(array.T, 2, out=array.T)
        np.add(array.view[::2], array.view[1::2], out=array.view[::2])
    assert array[0].tolist() == [8, 16, 8]

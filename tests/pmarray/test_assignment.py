"""Stored arrays as values, overlapping or not, and large masks, against NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pmarray
from pmarray._numpy import masks
from pmarray.errors import BudgetError
from pmarray.testing import array_shapes, basic_indices, budgets, layouts
from tests.pmarray.test_arithmetic import dtypes, numbers, schemes, stored

work = st.sampled_from([1, 64, 500])
small = array_shapes(300)


@given(st.data(), schemes, small, dtypes, dtypes, layouts(), layouts(), budgets(), work)
def test_assigns_a_stored_array(
    data: st.DataObject, scheme: str, shape: tuple[int, ...], dtype: str, other: str, layout: str,
    second: str, cache: int | str, memory: int,
) -> None:  # fmt: skip
    model = numbers(shape, dtype, 1)
    index = data.draw(basic_indices(shape))
    form = np.shape(model[index])
    narrow = tuple(data.draw(st.sampled_from([n, 1])) if n else n for n in form)
    values = numbers(narrow[data.draw(st.integers(0, len(narrow))) :], other, 2)
    with stored(scheme, model, layout, cache, memory) as array:
        source = array.group.create("y", values.shape, other, layout=second)
        source[...] = values
        array[index] = source
        model[index] = values
        np.testing.assert_array_equal(array[...], model)
        view = array.view[...]
        view[index] = source
        np.testing.assert_array_equal(array[...], model)
        with pytest.raises(ValueError, match="broadcast"):
            array[index] = array.group.create("z", (*form, 2, 3), other)


@given(st.data(), schemes, dtypes, layouts(), budgets(), work)
def test_overlaps_give_what_numpy_gives(
    data: st.DataObject, scheme: str, dtype: str, layout: str, cache: int | str, memory: int
) -> None:
    n = data.draw(st.integers(2, 9))
    shape = data.draw(st.sampled_from([(n,), (n, n), (n, 3, n)]))
    model = numbers(shape, dtype, 1)
    half = slice(None, data.draw(st.integers(1, n)), data.draw(st.sampled_from([1, 2])))
    count = len(range(n)[half])
    moved = data.draw(
        st.sampled_from([half, slice(n - 1, None, -1), slice(n - count, n), slice(0, count)])
    )
    across = data.draw(st.booleans())

    def change(x: Any, view: Any) -> None:
        source = view(x.T if across else x, moved)
        if source.shape[0] == count:
            x[half] = source
        np.copyto(view(x, slice(None)), view(x.T, slice(None)))

    # NumPy 2.4 itself gets x[::2] = x[:3] of one axis wrong: its values are copied first here.
    with stored(scheme, model, layout, cache, memory) as array:
        change(array, lambda x, index: x.view[index])
        source = (model.T if across else model)[moved].copy()
        if source.shape[0] == count:
            model[half] = source
        model[...] = model.T.copy()
        np.testing.assert_array_equal(array[...], model)


@pytest.mark.parametrize("url", ["dram:", "memmap:{}/g", "{}/x.npy"])
def test_every_medium_has_room_for_what_overlaps(url: str, tmp_path: Path) -> None:
    model = np.arange(90_000, dtype="f8").reshape(300, 300)
    np.save(tmp_path / "x.npy", np.zeros_like(model))
    if url.startswith("{"):
        array = pmarray.open(url.format(tmp_path), mode="r+")
    else:
        array = pmarray.open(url.format(tmp_path), model.shape, layout="col")
    array[...] = model
    before = sorted(tmp_path.rglob("*"))
    with pmarray.config.set(work_memory="16 KiB"), array:
        array[...] = array.T
        np.testing.assert_array_equal(array[...], model.T)
        array[1:] = array.view[:-1]
        np.testing.assert_array_equal(array[1:], model.T[:-1])
        assert sorted(tmp_path.rglob("*")) == before


def test_a_transaction_takes_an_overlapping_assignment_back(tmp_path: Path) -> None:
    model = np.arange(90_000, dtype="f8").reshape(300, 300)
    with pmarray.open(tmp_path / "g", model.shape, layout="col", cache="64 KiB") as array:
        array[...] = model
        with pmarray.config.set(work_memory="16 KiB"):
            with pytest.raises(KeyError), array.transaction():
                array[...] = array.T
                raise KeyError
            np.testing.assert_array_equal(array[...], model)
            with array.transaction():
                array[...] = array.T
        np.testing.assert_array_equal(array[...], model.T)


def test_appends_a_stored_array_and_itself(tmp_path: Path) -> None:
    model = np.arange(6000, dtype="f8").reshape(2000, 3)
    with pmarray.open(tmp_path / "g", (2000, 3), layout="col", cache="64 KiB") as array:
        array[...] = model
        with pmarray.config.set(work_memory="1 KiB"):
            array.append(array)
            array.append(array.view[:, 4])
        np.testing.assert_array_equal(array[...], np.c_[model, model, model[:, 1]])


def test_disjoint_views_are_not_copied_first(monkeypatch: pytest.MonkeyPatch) -> None:
    array = pmarray.open("dram:", (100, 40), layout="col")
    array[...] = model = numbers(array.shape, "float64", 1)
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    with pmarray.config.set(work_memory=64):
        array[:, :20] = array.view[:, 20:]
        array[:, 20::2] = array.view[:, 21::2]
        with pytest.raises(OSError, match="nowhere"):
            array[:, 1:] = array.view[:, :-1]
    model[:, :20] = model[:, 20:]
    model[:, 20::2] = model[:, 21::2]
    np.testing.assert_array_equal(array[...], model)


def test_operands_are_read_before_they_are_concatenated_into() -> None:
    array: Any = pmarray.open("dram:", (6,))
    array[...] = np.arange(6)
    np.concatenate([array.view[3:], array.view[1:4]], out=array)
    assert array[...].tolist() == [3, 4, 5, 1, 2, 3]


def test_an_index_of_arrays_takes_a_stored_array_that_fits() -> None:
    array = pmarray.open("dram:", (100, 4))
    source = pmarray.open("dram:", (3, 4), fill_value=5)
    array[[7, 2, 9]] = source
    assert array.sum() == 60
    source = pmarray.open("dram:", (100, 4), fill_value=5)
    with (
        pmarray.config.set(max_result=1000, work_memory=1000),
        pytest.raises(BudgetError, match="a slice"),
    ):
        array[np.arange(100)] = source


# -- masks --------------------------------------------------------------------------------------


@given(st.data(), schemes, small, dtypes, layouts(), budgets(), work, st.booleans())
def test_masks_larger_than_the_memory(
    data: st.DataObject, scheme: str, shape: tuple[int, ...], dtype: str, layout: str,
    cache: int | str, memory: int, is_stored: bool,
) -> None:  # fmt: skip
    model, mask = numbers(shape, dtype, 1), numbers(shape, "bool", 2)
    count = int(mask.sum())
    values = numbers((count,), data.draw(dtypes), 3)
    before = masks._SMALL_BYTES
    with stored(scheme, model, layout, cache, memory) as array:
        index: Any = mask
        if is_stored:
            index = array.group.create("mask", shape, "bool", layout=data.draw(layouts()))
            index[...] = mask
        try:
            masks._SMALL_BYTES = 0
            np.testing.assert_array_equal(array[index], model[mask])
            for value in (values, 3, values[:1]):
                array[index] = value
                model[mask] = value
                np.testing.assert_array_equal(array[...], model)
            source = array.group.create("y", (count,), values.dtype)
            source[...] = values
            array[index] = source
            model[mask] = values
            np.testing.assert_array_equal(array[...], model)
            if count > 1:
                with pytest.raises(ValueError, match=r"mask|broadcast"):
                    array[index] = np.ones(count + 1)
        finally:
            masks._SMALL_BYTES = before


# -- reading into memory ------------------------------------------------------------------------


@given(st.data(), small, dtypes, dtypes, layouts(), budgets(), work)
def test_reads_any_index_into_memory_of_any_dtype(
    data: st.DataObject, shape: tuple[int, ...], dtype: str, other: str, layout: str,
    cache: int | str, memory: int,
) -> None:  # fmt: skip
    model = numbers(shape, dtype, 1)
    index: Any = data.draw(basic_indices(shape))
    if shape and shape[0]:
        points = data.draw(st.lists(st.integers(0, shape[0] - 1), max_size=5))
        nested = np.array(points[:4] * 2, np.intp).reshape(2, -1)
        index = data.draw(
            st.sampled_from([index, (points,), (nested,), (..., None, points[:1])[: len(shape)]])
        )
    try:
        selected = model[index]
    except IndexError:
        return
    order: Any = data.draw(st.sampled_from(["C", "F"]))
    out = np.zeros(np.shape(selected), other, order=order)
    expected = np.zeros_like(out)
    with stored("memmap:", model, layout, cache, memory) as array:
        expected[...] = selected
        assert array.read(index, out=out) is out
        np.testing.assert_array_equal(out, expected)

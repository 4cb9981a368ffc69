"""`einsum`, `tensordot`, `inner`, `vdot`, `outer` and `dot` against NumPy, in any pieces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import pmarray
from pmarray._numpy.functions.subscripts import read
from pmarray.errors import BudgetError
from pmarray.testing import budgets, layouts
from tests.pmarray.test_arithmetic import both, dtypes, numbers, schemes, stored

work = st.sampled_from([64, 500, 3000, 1 << 20])
extents = st.sampled_from([0, 1, 2, 3, 7])


@st.composite
def subscripts(draw: st.DrawFn) -> tuple[str, tuple[tuple[int, ...], ...]]:
    """Subscripts of one or two operands and the shapes of these."""
    sizes = {label: draw(extents) for label in "ijklm"}
    terms = draw(
        st.lists(
            st.lists(st.sampled_from("ijklm"), max_size=3, unique=True), min_size=1, max_size=2
        )
    )
    labels = sorted({label for term in terms for label in term})
    text = ",".join("".join(term) for term in terms)
    if draw(st.booleans()):
        kept = draw(st.lists(st.sampled_from(labels), unique=True)) if labels else []
        text += "->" + "".join(kept)
    return text, tuple(tuple(sizes[label] for label in term) for term in terms)


@given(st.data(), schemes, subscripts(), dtypes, dtypes, layouts(), budgets(), work)
def test_einsum(
    data: st.DataObject, scheme: str, drawn: tuple[str, tuple[tuple[int, ...], ...]], dtype: str,
    other: str, layout: str, cache: int | str, memory: int,
) -> None:  # fmt: skip
    text, shapes = drawn
    models = [numbers(shape, one, i) for i, (shape, one) in enumerate(zip(shapes, (dtype, other)))]  # noqa: B905
    with stored(scheme, models[0], layout, cache, memory) as array:
        operands: list[Any] = [array, *models[1:]]
        if len(models) > 1 and data.draw(st.booleans()):
            second = array.group.create("y", shapes[1], other, layout=data.draw(layouts()))
            second[...] = models[1]
            operands = [array, second] if data.draw(st.booleans()) else [models[0], second]
        both(lambda: np.einsum(text, *operands), lambda: np.einsum(text, *models))
        expected = np.einsum(text, *models)
        out = array.group.create("out", expected.shape, expected.dtype, layout=data.draw(layouts()))
        assume(expected.ndim)
        assert np.einsum(text, *operands, out=out) is out
        both(lambda: out[...], lambda: expected)


@given(st.data(), schemes, dtypes, dtypes, layouts(), work)
def test_tensordot_and_dot(
    data: st.DataObject, scheme: str, dtype: str, other: str, layout: str, memory: int
) -> None:
    shared = data.draw(st.lists(extents, max_size=2))
    left = data.draw(st.lists(extents, max_size=2))
    right = data.draw(st.lists(extents, max_size=2))
    one, two = numbers((*left, *shared), dtype, 1), numbers((*shared, *right), other, 2)
    count = len(shared)
    memory = max(memory, one.size * two.size // 2000)  # for `dot`: not too many pieces
    with stored(scheme, one, layout, "64 KiB", memory) as array:
        second = array.group.create("y", two.shape, other, layout=data.draw(layouts()))
        second[...] = two
        for a, b in ((array, two), (one, second), (array, second)):
            both(lambda: np.tensordot(a, b, count), lambda: np.tensordot(one, two, count))  # noqa: B023
            along = tuple(range(count))
            behind = tuple(range(len(left), len(left) + count))
            both(
                lambda: np.tensordot(b, a, (along, behind)),  # noqa: B023
                lambda: np.tensordot(two, one, (along, behind)),  # noqa: B023
            )
            both(lambda: np.dot(a, b), lambda: np.dot(one, two))  # noqa: B023


@given(st.data(), schemes, dtypes, dtypes, layouts(), work)
def test_inner_vdot_and_outer(
    data: st.DataObject, scheme: str, dtype: str, other: str, layout: str, memory: int
) -> None:
    shape = tuple(data.draw(st.lists(extents, max_size=3)))
    one, two = numbers(shape, dtype, 1), numbers(shape, other, 2)
    with stored(scheme, one, layout, "64 KiB", memory) as array:
        second = array.group.create("y", shape, other, layout=data.draw(layouts()))
        second[...] = two
        for a, b in ((array, two), (one, second), (array, second)):
            both(lambda: np.inner(a, b), lambda: np.inner(one, two))  # noqa: B023
            both(lambda: np.vdot(a, b), lambda: np.vdot(one, two))  # noqa: B023
            both(lambda: np.outer(a, b), lambda: np.outer(one, two))  # noqa: B023
        if len(shape) == 1:
            expected = np.outer(one, two)
            out = array.group.create("out", expected.shape, expected.dtype, layout="col")
            np.outer(array, second, out=out)
            both(lambda: out[...], lambda: expected)


@pytest.mark.parametrize(
    "text",
    ["ij,jk->ik", "ji,jk->ki", "ij,kj", "...j,j...", "i...->...", "i...,j...->ji...", "i j -> ji",
     "ii->i", "ii", "ij,jk,kl", "ij->j"],
)  # fmt: skip
def test_forms_of_subscripts(text: str) -> None:
    """Diagonals and three operands too, which are not streamed."""
    model = numbers((5, 5), "int64", 1)
    array = pmarray.open("dram:", model.shape, model.dtype, layout="col")
    array[...] = model
    count = text.count(",") + 1
    with pmarray.config.set(work_memory=300):
        both(lambda: np.einsum(text, *[array] * count), lambda: np.einsum(text, *[model] * count))
        both(
            lambda: np.einsum(array, [0, 1], array, [1, 2], [2, 0]),
            lambda: np.einsum(model, [0, 1], model, [1, 2], [2, 0]),
        )
        both(
            lambda: np.einsum(array, [3, ...], array, [..., 2]),
            lambda: np.einsum(model, [3, ...], model, [..., 2]),
        )


def test_axes_of_one_are_broadcast() -> None:
    one, two = numbers((5, 1), "float64", 1), numbers((5, 4), "float64", 2)
    array = pmarray.open("dram:", one.shape, fill_value=2)
    array[...] = one
    both(lambda: np.einsum("ij,ij->ij", array, two), lambda: np.einsum("ij,ij->ij", one, two))


@pytest.mark.parametrize(
    "text", ["ij,jk->iz", "ijk,jk", "i,jk", "ij,jk,", "i1,jk", "......,jk", "ij,...->i", "ij,kk->k"]
)
def test_refuses_what_is_no_subscript(text: str) -> None:
    model = np.ones((2, 3))
    operands: list[Any] = [pmarray.open("dram:", model.shape)] * 2
    with pytest.raises(ValueError):  # noqa: PT011  # NumPy's messages differ
        np.einsum(text, model, model)
    with pytest.raises(ValueError):  # noqa: PT011
        np.einsum(text, *operands)
    with pytest.raises(ValueError, match="at least one"):
        read(())


def test_what_is_not_streamed_says_its_size() -> None:
    array: Any = pmarray.open("dram:", (64, 64))
    with pmarray.config.set(max_result="1 KiB", work_memory="64 KiB"):
        for refused in (
            lambda: np.einsum("ij,jk,kl", array, array, array),
            lambda: np.einsum("ii", array),
            lambda: np.einsum("ij,ij->ij", array, array),
            lambda: np.outer(array, array),
        ):
            with pytest.raises(BudgetError, match="KiB"):
                refused()
        assert np.einsum("ij,ij->", array, array) == 0
    with (
        pmarray.config.set(max_result="1 KiB"),
        pytest.raises(BudgetError, match="is out= as well"),
    ):
        np.einsum("ij,ij->ij", array, array, out=array.T)


def test_a_contraction_reads_its_first_operand_once() -> None:
    array = pmarray.open("dram:", (40, 30, 20), layout="col")
    array[...] = model = numbers(array.shape, "float64", 1)
    factor = numbers((20, 40), "float64", 2)
    reads = 0
    read_items, held_items = array._storage.read, array._storage.held

    def counted(axes: Any, out: Any, /) -> None:
        nonlocal reads
        reads += out.size
        read_items(axes, out)

    def counted_held(axes: Any, order: Any, /) -> Any:
        nonlocal reads
        found = held_items(axes, order)
        reads += 0 if found is None else found.size
        return found

    # Counting, not replacing.
    array._storage.read = counted  # type: ignore[method-assign]
    array._storage.held = counted_held  # type: ignore[method-assign]
    with pmarray.config.set(work_memory=20_000):
        found = np.einsum("ijk,ki->j", array, factor)
    np.testing.assert_allclose(found, np.einsum("ijk,ki->j", model, factor))
    assert reads == array.size

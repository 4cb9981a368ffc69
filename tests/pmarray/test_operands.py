"""What may stand beside a `PMArray`: what NumPy takes, tensors and arrays of dask, either way."""

from __future__ import annotations

import datetime
import operator
import uuid
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any
from unittest import mock

import dask.array
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pmarray
from pmarray.testing.strategies import array_shapes, layouts


class Item:
    """One item to NumPy, which knows its operators and none of its own."""

    def __radd__(self, other: Any) -> Any:
        return "sum", other

    def __rmul__(self, other: Any) -> Any:
        return float(other) * 2

    def __eq__(self, other: object) -> bool:
        return bool(other == 1)

    def __hash__(self) -> int:
        return 0


class Sparse:
    """Arrays leave operators to it, as to sparse matrices."""

    __array_priority__ = 10.1

    def _with(self, other: Any) -> Any:
        return (type(other), other.tolist()) if isinstance(other, np.ndarray) else NotImplemented

    __add__ = __radd__ = __mul__ = __rmul__ = __matmul__ = __rmatmul__ = _with
    __sub__ = __rsub__ = __truediv__ = __rtruediv__ = __pow__ = __rpow__ = _with
    __lt__ = __gt__ = __le__ = __ge__ = __and__ = __rand__ = __divmod__ = __rdivmod__ = _with
    __eq__ = __ne__ = _with
    __hash__ = None  # type: ignore[assignment]


VALUES: dict[str, Any] = {
    "numbers": np.arange(6.0).reshape(2, 3), "integers": np.array([1, 2, 250], "u1"),
    "text": np.array(["a", "b", "c"]), "bytes": np.array([b"a", b"bc", b""]),
    "spans": np.array([1, 2, 4], "m8[s]"), "days": np.array(["2020-01-01", "2021-02-03"], "M8[D]"),
    "truth": np.array([True, False, True]),
}  # fmt: skip
OTHERS: list[Any] = [
    "a", b"a", Fraction(1, 2), Decimal(2), datetime.timedelta(seconds=1), np.timedelta64(1, "s"),
    datetime.date(2020, 5, 1), datetime.datetime(2020, 5, 1, 3), np.datetime64("2020-05-01"),
    range(3), [1, 2, 3], 3, -1, 300, 2.5, 1j, True, np.float32(2), np.array([1, 2, 3]), None,
    object(), Item(), mock.ANY, ..., int, np.ndarray, {1}, deque([1, 2, 3]),
]  # fmt: skip
OPERATORS: list[Any] = [
    operator.add, operator.sub, operator.mul, operator.truediv, operator.eq, operator.ne,
    operator.lt, operator.ge, operator.and_, operator.pow, np.maximum, np.logical_or,
]  # fmt: skip
_SQUARES = (np.array([True]) ** np.float32(2)).dtype != np.float32
"""Whether this NumPy, one before 2.3, makes a square of a power of 2 whatever its dtype."""


def stored(values: Any, layout: Any = "row") -> Any:
    return pmarray.from_array(values, "dram:", layout=layout)


REFUSALS = (TypeError, OverflowError, ValueError, ZeroDivisionError, AttributeError)


def outcome(call: Callable[[], Any]) -> Any:
    try:
        with np.errstate(all="ignore"):
            return call()
    except REFUSALS as error:
        return next(kind for kind in REFUSALS if isinstance(error, kind))


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("other", OTHERS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", VALUES)
def test_any_operand_is_taken_as_numpy_takes_it(name: str, other: Any) -> None:
    values = VALUES[name]
    array = stored(values)
    for compute in OPERATORS:
        if compute is operator.pow and type(other) is np.float32 and _SQUARES:
            continue
        for ours, theirs in (
            (partial(compute, array, other), partial(compute, values, other)),
            (partial(compute, other, array), partial(compute, other, values)),
        ):
            found, expected = outcome(ours), outcome(theirs)
            if isinstance(expected, type):
                assert isinstance(found, type), (compute, other)  # which of two, is no matter
                continue
            assert getattr(found, "dtype", None) == getattr(expected, "dtype", None), compute
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "compute",
    [operator.add, operator.sub, operator.mul, operator.matmul, operator.truediv, operator.pow,
     operator.eq, operator.ne, operator.lt, operator.ge, operator.and_, divmod],
)  # fmt: skip
def test_operators_are_left_to_whom_numpy_leaves_them(compute: Any) -> None:
    values, other = np.arange(6).reshape(2, 3), Sparse()
    array = stored(values, "col")
    assert compute(array, other) == compute(values, other) == (np.ndarray, values.tolist())
    assert compute(other, array) == compute(other, values)
    with pytest.raises(TypeError, match="NotImplemented"):
        np.add(array, other)  # type: ignore[call-overload]
    with (
        pmarray.config.set(max_result=8),
        pytest.raises(pmarray.errors.BudgetError, match="with a Sparse"),
    ):
        compute(array, other)


@pytest.mark.parametrize("product", [np.dot, np.inner, np.vdot, np.tensordot, np.matmul])
def test_products_of_what_is_no_number(product: Any) -> None:
    values = np.arange(4.0).reshape(2, 2)
    for other in (np.array([[1, Fraction(1, 2)], [2, 3]], object), np.ones((2, 2), "m8[s]")):
        for pair, model in (
            ((stored(values), other), (values, other)),
            ((other, stored(values)), (other, values)),
        ):
            found, expected = outcome(partial(product, *pair)), outcome(partial(product, *model))
            if isinstance(expected, type):
                assert isinstance(found, type)
            else:
                assert getattr(found, "dtype", None) == getattr(expected, "dtype", None)
                np.testing.assert_array_equal(found, expected)


def test_tensors_are_arrays() -> None:
    values, tensor = VALUES["numbers"], torch.arange(3.0)
    array = stored(values)
    expected = values + tensor.numpy()
    for found in (array + tensor, tensor + array, np.add(tensor, array)):
        np.testing.assert_array_equal(np.asarray(found), expected)
    np.testing.assert_array_equal(array @ tensor, values @ tensor.numpy())
    out = stored(np.zeros((2, 3)))
    np.multiply(array, tensor, out=out)
    np.testing.assert_array_equal(out[...], values * tensor.numpy())


def test_beside_dask_the_result_is_lazy() -> None:
    values = VALUES["numbers"]
    ones: Any = dask.array.ones
    array, lazy = stored(values), ones((2, 3), chunks=2)
    found: Any
    for found, expected in (
        (array + lazy, values + 1), (lazy - array, 1 - values), (np.add(lazy, array), values + 1),
        (lazy.T @ array, np.ones((3, 2)) @ values), (np.concatenate([array, lazy]), None),
        (np.where(lazy > 0, array, 0), values),
    ):  # fmt: skip
        assert isinstance(found, dask.array.Array)
        if expected is not None:
            np.testing.assert_array_equal(found.compute(), expected)  # type: ignore[no-untyped-call]


@given(n=st.integers(1, 6), layout=layouts(), view=st.booleans(), itself=st.booleans())
def test_a_product_in_place(n: int, layout: Any, view: bool, itself: bool) -> None:
    values = np.random.default_rng(n).normal(size=(n, n))
    array = stored(values, layout)
    target = array.T if view else array
    expected = values.T.copy() if view else values.copy()
    other: Any = array if itself else np.eye(n) * 2
    expected = expected @ (values if itself else other)
    same = target
    target @= other
    assert target is same
    np.testing.assert_allclose(target[...], expected, atol=1e-12)


@given(
    shapes=st.lists(array_shapes(60), min_size=1, max_size=3), layout=layouts(),
    memory=st.sampled_from([64, 1 << 20]), out=st.booleans(),
)  # fmt: skip
def test_concatenate_of_flattened_arrays(shapes: Any, layout: Any, memory: int, out: bool) -> None:
    parts = [np.arange(float(np.prod(s, dtype=int))).reshape(s) + i for i, s in enumerate(shapes)]
    arrays = [stored(part, layout) for part in parts]
    expected = np.concatenate(parts, axis=None)
    target: Any = pmarray.open(f"dram:{uuid.uuid4()}", expected.shape) if out else None
    with pmarray.config.set(work_memory=memory):
        found: Any = np.concatenate(arrays, axis=None, out=target)
    assert (found is target) == out
    np.testing.assert_array_equal(found[...], expected)


def test_what_was_taken_for_a_dtype_or_a_unit() -> None:
    truth = stored(VALUES["truth"])
    np.testing.assert_array_equal(
        np.where(truth, "x", "yes"), np.where(VALUES["truth"], "x", "yes")
    )
    np.testing.assert_array_equal(np.where(truth, "f4", "i"), np.where(VALUES["truth"], "f4", "i"))
    assert np.where(truth, np.float32(1), 2).dtype == np.float32
    spans = stored(VALUES["spans"])
    assert spans.mean() == VALUES["spans"].mean()
    assert np.mean(spans, keepdims=True).dtype == "m8[s]"
    integers = stored(VALUES["integers"])
    np.testing.assert_array_equal(np.clip(integers, -1, 300), VALUES["integers"])


@pytest.mark.parametrize(
    "function", ["median", "round", "percentile", "take", "choose", "compress"]
)
def test_a_result_into_an_array(function: str) -> None:
    values = VALUES["numbers"]
    calls: dict[str, Callable[[Any, Any], Any]] = {
        "median": lambda a, out: np.median(a, axis=0, out=out),
        "round": lambda a, out: np.round(a, 1, out),
        "percentile": lambda a, out: np.percentile(a, 30, axis=1, out=out),
        "take": lambda a, out: np.take(a, [0, 2], axis=1, out=out),
        "choose": lambda a, out: np.choose((a > 2).astype(int), [a, a], out=out),
        "compress": lambda a, out: np.compress([True, False, True], a, axis=1, out=out),
    }
    expected = calls[function](values, None)
    out = stored(np.zeros_like(expected))
    assert calls[function](stored(values), out) is out
    np.testing.assert_array_equal(out[...], expected)


def test_products_that_operators_have() -> None:
    """What scipy's `aslinearoperator` asks of an array, whether scipy is there or not."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(20, 5)) + 1j * rng.normal(size=(20, 5))
    a, x, y = stored(values), rng.normal(size=(5, 2)), rng.normal(size=(20, 2)) * 1j
    np.testing.assert_allclose(a.matvec(x[:, 0]), values @ x[:, 0])
    np.testing.assert_allclose(a.matmat(x), values @ x)
    np.testing.assert_allclose(a.rmatvec(y[:, 0]), values.conj().T @ y[:, 0])
    np.testing.assert_allclose(a.rmatmat(y), values.conj().T @ y)


def test_as_a_linear_operator() -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg", reason="needs the package scipy")
    values = np.random.default_rng(0).normal(size=(20, 5)) + 1j
    made = linalg.aslinearoperator(stored(values))
    np.testing.assert_allclose(made @ np.ones(5), values @ np.ones(5))
    np.testing.assert_allclose(made.H @ np.ones((20, 2)), values.conj().T @ np.ones((20, 2)))

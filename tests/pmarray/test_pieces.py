"""Values that come out right only where pieces are put together right."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import pmarray
from pmarray.testing import layouts
from tests.pmarray.test_arithmetic import both, numbers, stored

dtypes = st.sampled_from(["bool", "int8", "uint16", "int64", "float16", "float32", "complex64"])


def _stored(model: Any, layout: Any = "row") -> Any:
    array: Any = pmarray.open("dram:", model.shape, model.dtype, layout=layout)
    array[...] = model
    return array


@pytest.mark.parametrize("memory", [64, 1 << 20])
def test_moments_overflow_where_numpys_do(memory: int) -> None:
    """And nowhere else: not where items are far from zero, nor beside infinities."""
    with pmarray.config.set(work_memory=memory), np.errstate(all="ignore"):
        for model in (
            np.full(40, 3e19, "f4"),
            np.concatenate([np.full(20, 3e18, "f4"), np.full(20, 1e18, "f4")]),
            np.full(40, 1e200),
            np.array([np.inf, *[1.0] * 30]),
            np.array([*[1.0] * 30, -np.inf]),
            np.array([np.inf, *[1.0] * 30, -np.inf]),
            np.array([np.nan, np.inf, *[1.0] * 30, np.nan]),
        ):
            array = _stored(model)
            for function in (np.var, np.std, np.mean, np.nanvar, np.nanstd, np.nanmean):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    np.testing.assert_allclose(function(array), function(model), rtol=1e-6)


# Not "power": of a column of float32, NumPy 2.4 reduces 2, 2, 2, 1, ... to 4.
REDUCED = ["subtract", "divide", "add", "multiply", "maximum", "hypot", "logaddexp"]


@given(
    st.sampled_from(REDUCED), dtypes, st.none() | dtypes, st.sampled_from([0, 1]), layouts(),
    st.booleans(), st.sampled_from([64, 300]),
)  # fmt: skip
def test_a_running_total_keeps_its_dtype(
    name: str, dtype: str, to: str | None, axis: int, layout: Any, masked: bool, memory: int
) -> None:
    """Not that of the items."""
    model = np.ones((9, 40), dtype) * 2 if dtype != "bool" else np.ones((9, 40), bool)
    model[3::4] = 1
    ufunc: Any = getattr(np, name)
    options: dict[str, Any] = {"axis": axis, "dtype": to}
    if masked:
        options |= {"where": numbers((9, 40), "bool", 3), "initial": 1}
    with stored("dram:", model, layout, "64 KiB", memory) as array:
        both(lambda: ufunc.reduce(array, **options), lambda: ufunc.reduce(model, **options))
        if not masked:
            both(
                lambda: ufunc.accumulate(array, **options),
                lambda: ufunc.accumulate(model, **options),
            )


@pytest.mark.parametrize("initial", [{}, {"initial": -0.0}, {"initial": 0.0}])
@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "c8", "c16"])
def test_a_sum_keeps_the_sign_of_zero(kind: str, initial: dict[str, Any]) -> None:
    values = np.full((40, 3), -0.0, kind)
    if values.dtype.kind == "c":
        values = -np.zeros_like(values)
        initial = {name: complex(value, value) for name, value in initial.items()}
    a = pmarray.from_array(values, "dram:")
    with pmarray.config.set(work_memory=64):
        for axis in (None, 0, 1):
            found, expected = np.sum(a, axis, **initial), np.sum(values, axis, **initial)
            np.testing.assert_array_equal(np.signbit(found.real), np.signbit(expected.real))
            np.testing.assert_array_equal(np.signbit(found.imag), np.signbit(expected.imag))


def test_five_million_subtractions() -> None:
    array: Any = pmarray.open("dram:", (5_000_000,), "i1", fill_value=1)
    assert np.subtract.reduce(array, dtype="i8") == -4_999_998


REDUCTIONS = [
    "sum", "prod", "mean", "var", "std", "max", "min", "ptp", "any", "all", "nansum", "nanprod",
    "nanmean", "nanvar", "nanstd", "nanmax", "nanmin", "argmax", "argmin", "cumsum", "cumprod",
    "median", "average",
]  # fmt: skip


@example("ptp", "bool", "int8", (1, 3), True, False)
@example("ptp", "bool", "bool", (3,), True, True)
@given(
    st.sampled_from(REDUCTIONS), dtypes,
    st.sampled_from(["bool", "int8", "uint64", "int64", "float16", "float64", "complex128"]),
    st.sampled_from([(3,), (4,), (1, 3), (3, 1), (), (4, 3)]), st.booleans(), st.booleans(),
)  # fmt: skip
def test_out_is_checked_as_numpy_checks_it(
    name: str, dtype: str, to: str, shape: tuple[int, ...], keepdims: bool, stored_out: bool
) -> None:
    model = numbers((4, 3), dtype, 1)
    function: Any = getattr(np, name)
    options: dict[str, Any] = {"axis": 0}
    if keepdims and name not in ("cumsum", "cumprod"):
        options["keepdims"] = True
    with stored("dram:", model, "row", "64 KiB", 64) as array:
        expected = np.zeros(shape, to)
        out: Any = np.zeros(shape, to)
        if stored_out:
            out = array.group.create("out", shape, to)
        found: list[Any] = []

        def ours() -> bool:
            found.append(function(array, out=out, **options))
            return found[0] is out

        both(
            ours,
            lambda: function(model, out=expected, **options) is expected,
        )
        if found:  # NumPy may raise after it has written
            both(lambda: out[...], lambda: expected, rtol=1e-2)


@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize(
    ("value", "dtype"),
    [(300, "i1"), (-1, "u1"), (5, "u1"), (True, "u1"), (2.5, "i4"), (2.5, "f4"), (1j, "f4"),
     (1e300, "f4"), (np.int64(5), "u1"), (np.float64(5), "f4"), ([1, 2, 3], "u1"), (2, "?"),
     (np.array(5), "u1"), (np.array([1, 2, 3], "i8"), "i4")],
)  # fmt: skip
@pytest.mark.parametrize("casting", ["no", "safe", "same_kind", "unsafe"])
def test_copyto_casts_as_numpy_does(value: Any, dtype: str, casting: Any) -> None:
    for where in (True, [True, False, True]):
        model = np.zeros(3, dtype)
        array = _stored(model)
        try:
            with np.errstate(all="ignore"):
                np.copyto(model, value, casting, where)
        except (TypeError, OverflowError) as error:
            with pytest.raises(type(error).__mro__[-4 if isinstance(error, OverflowError) else -3]):
                np.copyto(array, value, casting, where)
        else:
            with np.errstate(all="ignore"):
                np.copyto(array, value, casting, where)
        np.testing.assert_array_equal(array[...], model)
    with pytest.raises(TypeError):
        np.copyto(_stored(np.zeros(3)), 1, where=np.zeros(3))


def test_tolerances_are_cut_with_the_pieces() -> None:
    model = np.arange(300.0)
    array = _stored(model)
    atol = np.where(model > 200, 2.0, 0.0)
    with pmarray.config.set(work_memory=200):
        for other in (model + (model > 200), model + (model > 199)):
            for tolerance in (atol, _stored(atol)):
                assert np.allclose(array, other, 0, tolerance) == np.allclose(model, other, 0, atol)
                assert np.allclose(array, other, tolerance) == np.allclose(model, other, atol)


# -- arrays that are more than their items --------------------------------------------------------

OPERATORS: dict[str, Any] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "product": lambda a, b: a @ b,
    "power": lambda a, b: a**2 * b,
    "less": lambda a, b: a < b,
    "equal": lambda a, b: a == b,
    "divmod": lambda a, b: divmod(a, b)[0],
    "ufunc": np.add,
    "where": lambda a, b: np.where(a > 1, a, b),
    "dot": np.dot,
    "hypot": np.hypot,
    "concatenate": lambda a, b: np.concatenate([a, b]),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("kind", ["masked", "matrix"])
def test_masks_and_matrices_are_kept(operator: str, kind: str) -> None:
    model = np.array([[1.0, 2], [3, 4]])
    other: Any = (
        np.ma.masked_array(model + 1, [[True, False], [False, False]])
        if kind == "masked"
        else np.matrix(model + 1)
    )
    array = _stored(model)
    for swapped in (False, True):
        operands = [(x, other)[::-1] if swapped else (x, other) for x in (model, array)]
        try:
            expected = OPERATORS[operator](*operands[0])
        except TypeError:
            with pytest.raises(TypeError):
                OPERATORS[operator](*operands[1])
            continue
        found = OPERATORS[operator](*operands[1])
        assert type(found) is type(expected)
        np.testing.assert_array_equal(np.ma.getmaskarray(found), np.ma.getmaskarray(expected))
        np.testing.assert_array_equal(np.ma.filled(found, 0), np.ma.filled(expected, 0))


def test_a_class_with_its_own_ufuncs_is_left_the_choice() -> None:
    class Quantity(np.ndarray):
        def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
            return "theirs"

    array = _stored(np.ones(3))
    other = np.ones(3).view(Quantity)
    assert np.add(array, other) == "theirs"
    assert array + other == "theirs"
    with pmarray.config.set(max_result=8), pytest.raises(MemoryError, match="MaskedArray"):
        array + np.ma.masked_array(np.ones(3))

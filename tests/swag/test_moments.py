"""The pass is bitwise the plain expressions, and blocks change nothing."""

from __future__ import annotations

import warnings
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from swag._crew import Crew
from swag._moments import accumulate

Vector = NDArray[np.float32]


def columns(seed: int, n: int, count: int) -> list[Vector]:
    """Columns around means far from zero, with spreads over six orders of magnitude."""
    rng = np.random.default_rng(seed)
    mean, spread = rng.standard_normal(n) * 10, 10.0 ** rng.uniform(-4, 2, n)
    return [(mean + spread * rng.standard_normal(n)).astype(np.float32) for _ in range(count)]


def moments(xs: list[Vector]) -> tuple[Vector, Vector]:
    mean, squares = np.zeros_like(xs[0]), np.zeros_like(xs[0])
    accumulate(xs, np.zeros_like(xs[0]), mean, squares, 0)
    return mean, squares


def by_numpy(xs: list[Vector]) -> tuple[Vector, Vector]:
    mean, squares = np.zeros_like(xs[0]), np.zeros_like(xs[0])
    for i, x in enumerate(xs, 1):
        before = x - mean
        mean = mean + before * np.float32(1 / i)
        squares = squares + before * (x - mean)
    return mean, squares


def by_torch(xs: list[Vector]) -> tuple[Vector, Vector]:
    mean, squares = torch.zeros(len(xs[0])), torch.zeros(len(xs[0]))
    for i, x in enumerate(map(torch.from_numpy, xs), 1):
        before = x - mean
        mean = mean + before * float(np.float32(1 / i))
        squares = squares + before * (x - mean)
    return mean.numpy(), squares.numpy()


@given(st.integers(0, 2**32 - 1), st.integers(0, 300), st.integers(1, 12))
def test_bitwise_equal_to_numpy_and_torch(seed: int, n: int, count: int) -> None:
    xs = columns(seed, n, count)
    for got, numpy_, torch_ in zip(moments(xs), by_numpy(xs), by_torch(xs), strict=True):
        np.testing.assert_array_equal(got, numpy_)
        np.testing.assert_array_equal(got, torch_)


def test_bitwise_equal_over_threads_of_torch() -> None:
    xs = columns(0, 300_001, 5)  # long enough for torch to share out
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for got, other in zip(moments(xs), by_torch(xs), strict=True):
                np.testing.assert_array_equal(got, other)
    finally:
        torch.set_num_threads(threads)


@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.lists(st.integers(1, 299), max_size=5))
def test_blocks_do_not_matter(seed: int, n: int, cuts: list[int]) -> None:
    xs = columns(seed, n, 6)
    whole = moments(xs)
    edges = sorted({0, n, *(cut for cut in cuts if cut < n)})
    for low, high in pairwise(edges):
        part = moments([x[low:high] for x in xs])
        for got, expected in zip(part, whole, strict=True):
            np.testing.assert_array_equal(got, expected[low:high])


@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(0, 6))
def test_one_by_one_or_several_at_once(seed: int, n: int, first: int) -> None:
    xs = columns(seed, n, 6)
    anchor = xs[0] + np.float32(1)
    mean, squares = np.zeros((2, n), np.float32)
    accumulate(xs[:first], anchor, mean, squares, 0)
    for count, x in enumerate(xs[first:], first):
        accumulate([x], anchor, mean, squares, count)
    for got, expected in zip((mean, squares), moments([x - anchor for x in xs]), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_weights_of_any_dtype_less_the_anchor_are_rounded_once(dtype: str) -> None:
    weights = [x.astype(getattr(ml_dtypes, dtype, dtype)) for x in columns(3, 40_000, 3)]
    anchor = weights[0].astype(np.float64 if dtype == "float64" else np.float32)
    mean, squares = np.zeros((2, 40_000), np.float32)
    accumulate(weights, anchor, mean, squares, 0)
    exact = [(w.astype(np.float64) - anchor.astype(np.float64)).astype(np.float32) for w in weights]
    for got, expected in zip((mean, squares), moments(exact), strict=True):
        np.testing.assert_array_equal(got, expected)


@given(st.integers(0, 2**32 - 1), st.integers(1, 400))
def test_accurate_and_never_negative(seed: int, count: int) -> None:
    xs = columns(seed, 20, count)
    mean, squares = moments(xs)
    exact = np.array(xs, np.float64)
    largest = np.abs(exact).max(axis=0)
    eps = np.finfo(np.float32).eps
    assert (np.abs(mean - exact.mean(axis=0)) <= 4 * count**0.5 * eps * largest).all()
    assert (squares >= 0).all()
    # Relative error of the variance, where the naive formula loses mean² / variance digits.
    variance, spread = squares / count, exact.var(axis=0)
    assert (
        np.abs(variance - spread)
        <= 8 * eps * (count**0.5 * spread + largest**2 * eps) + 4 * eps * largest * np.sqrt(spread)
    ).all()


def test_a_constant_has_no_variance() -> None:
    x = np.full(7, 0.1, np.float32)
    mean, squares = moments([x] * 1000)
    np.testing.assert_array_equal(mean, x)
    assert not squares.any()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_threads_change_nothing_and_memory_may_be_lent_for_reading(
    dtype: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Crew, "_FEW", 0)
    xs = [x.astype(getattr(ml_dtypes, dtype, dtype)) for x in columns(0, 300_001, 4)]
    anchor = xs[1].astype(np.float64 if dtype == "float64" else np.float32)
    expected, got = np.zeros((2, 2, 300_001), np.float32)
    accumulate(xs, anchor, expected[0], expected[1], 0)
    for one in (*xs, anchor):
        one.flags.writeable = False
    distances = [np.empty(300_001, np.float32) for _ in xs]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with Crew(300_001) as crew:
                accumulate(xs, anchor, got[0], got[1], 0, distances, crew)
        finally:
            torch.set_num_threads(before)
    np.testing.assert_array_equal(got, expected)
    exact = [(x.astype(np.float64) - anchor.astype(np.float64)).astype(np.float32) for x in xs]
    np.testing.assert_array_equal(distances, exact)

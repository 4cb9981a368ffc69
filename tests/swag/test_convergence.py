"""Diagnostics of series: what does not vary, what is only moved or scaled, and known processes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swag.convergence import distance_slope, effective_sample_size, geweke, split_r_hat
from swag.gradients import discrepancy

values = st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-6)


@given(values, values, st.integers(8, 200))
def test_what_does_not_vary_has_no_diagnosis(one: float, other: float, n: int) -> None:
    """Whatever rounding makes of the mean of equal numbers."""
    assert math.isnan(split_r_hat(np.full(n, one)))
    assert math.isnan(effective_sample_size(np.full(n, one)))
    assert math.isnan(split_r_hat(np.repeat([one, other], n)))
    assert math.isnan(geweke(np.repeat([one, other], [2 * n, 18 * n])))


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.1, -3.0, 1e4]), st.sampled_from([0.1, 7]))
def test_moved_and_scaled(seed: int, by: float, scale: float) -> None:
    x = np.random.default_rng(seed).normal(size=(100, 3))
    for function in (split_r_hat, effective_sample_size, geweke):
        np.testing.assert_allclose(function(by + scale * x), function(x), rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-320, 1e-170, 1e160, 1e308])
def test_no_unit_is_too_large_or_too_small(scale: float) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, size=(200, 3))
    for function in (split_r_hat, effective_sample_size, geweke):
        # Next to nothing is left of the digits of a number below 1e-308.
        np.testing.assert_allclose(function(scale * x), function(x), rtol=0.01)
    z = [discrepancy(unit * x[:, 0], 0.1 * unit * x[:, 1]) for unit in (1, scale)]
    assert z[0] == pytest.approx(z[1], rel=0.01)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_no_diagnosis(value: float) -> None:
    x = np.random.default_rng(0).normal(size=(200, 2))
    whole = x.copy()
    x[70, 0] = value
    for function in (split_r_hat, effective_sample_size, geweke):
        found = function(x)
        assert math.isnan(found[0])
        assert found[1] == function(whole)[1]
    assert math.isnan(distance_slope(np.square(x[:, 0])))


def test_sizes_of_known_processes() -> None:
    """Of an autoregressive process, (1 - a) / (1 + a) of the draws count."""
    rng = np.random.default_rng(0)
    n = 20_000
    for a in (0.0, 0.5, 0.9):
        x = np.zeros(n)
        for i, noise in enumerate(rng.normal(size=n - 1), start=1):
            x[i] = a * x[i - 1] + noise
        assert effective_sample_size(x) == pytest.approx(n * (1 - a) / (1 + a), rel=0.2)
        assert split_r_hat(x) == pytest.approx(1, abs=0.01)

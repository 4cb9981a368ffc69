"""Where the burn-in ends: against a problem solved in closed form, and where there is no end."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import swag
from benchmarks.burn_in import Quadratic, judged
from swag._projections import Projections
from swag.burn_in import judge
from swag.errors import WindowError
from tests.sampling import thorough

SEEDS = 20 if thorough() else 4
QUICK = Quadratic(axes=50, rate=0.8, smallest=0.6)
HELD = 130


def collected(path: NDArray[np.float32], **options: Any) -> swag.SWAG:
    """A posterior that has collected these iterates."""
    model = nn.Linear(path.shape[1], 1, bias=False)
    posterior = swag.SWAG(model, **options)
    for weights in path:
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(weights))
        posterior.update_parameters(model)
    return posterior


def test_the_mixing_time_is_that_of_many_runs() -> None:
    problem = Quadratic(axes=5, rate=0.5, distance=10)
    paths = np.stack([problem.run(2 * problem.mixing_time, seed) for seed in range(300)]).astype(
        np.float64
    )
    distances = np.square(paths).sum(axis=2).mean(axis=0)
    near = int(np.flatnonzero(abs(distances / problem.variance.sum() - 1) <= 0.1)[0])
    assert abs(near - problem.mixing_time) <= 0.15 * problem.mixing_time


@pytest.mark.parametrize(
    "problem", [Quadratic(rate=0.5), Quadratic(rate=0.5, distance=1000)], ids=["near", "far"]
)
def test_the_end_is_found_within_a_mixing_time(problem: Quadratic) -> None:
    truth = problem.mixing_time
    found = [judged(problem.run(40 * truth, seed)) for seed in range(SEEDS)]
    starts = [one.start for one in found]
    right = [start is not None and truth / 2 <= start <= 2 * truth for start in starts]
    assert sum(right) >= 0.9 * SEEDS - 0.5, (truth, starts, [one.why for one in found])


def test_what_has_not_settled_has_no_end() -> None:
    rng = np.random.default_rng(0)
    walk = rng.standard_normal((500, 300)).cumsum(axis=0).astype(np.float32)
    noise = rng.standard_normal((500, 300))
    drift = (noise + 3 * np.linspace(0, 1, 500)[:, None]).astype(np.float32)
    slow = Quadratic()
    on_its_way = slow.run(round(0.8 * slow.mixing_time), 0)
    for path in (walk, drift, on_its_way):
        found = judged(path)
        assert found.start is None
        assert found.why
        with pytest.raises(WindowError, match="have not settled"):
            found.window()


def test_a_finished_store_is_enough(location: str) -> None:
    path = QUICK.run(HELD, 2)
    with collected(path, store=location) as posterior:
        live = posterior.suggest_burn_in()
    with swag.load(location) as stored:
        found = stored.suggest_burn_in()
        assert found.start is not None
        assert found.start == live.start
        window = found.window(every=2, rank=7)
        assert window.iterates == range(found.start, HELD, 2)
        assert window.rank == 7
    alone = judged(path)
    assert alone.start == found.start
    np.testing.assert_allclose(found.projections, alone.projections, atol=1e-4)
    np.testing.assert_allclose(found.squared_distance, alone.squared_distance, rtol=1e-4)


def test_a_ring_is_judged_by_what_it_holds() -> None:
    path = QUICK.run(HELD, 1)
    with collected(path, max_rank=100) as ring:
        found = ring.suggest_burn_in()
        assert found.iterates == range(30, HELD)
        expected = Projections(50).of(path[30:])
        np.testing.assert_allclose(found.projections, expected.projections, atol=1e-4)
        assert found.start is not None
        assert found.window().iterates == range(found.start, HELD)


def test_where_nothing_is_held_or_little() -> None:
    path = QUICK.run(90, 0)
    for options in ({"max_rank": 0}, {"max_rank": 79}):
        with collected(path, **options) as posterior:
            with pytest.raises(WindowError, match="fewer than 80"):
                posterior.suggest_burn_in()


def test_large_models_are_projected_in_parts() -> None:
    rng = np.random.default_rng(3)
    path = rng.standard_normal((100, 20_000)).astype(np.float32)
    with collected(path) as posterior:
        found = posterior.suggest_burn_in()
    distance = np.square(path - path[0]).sum(axis=1)
    # 262,144 weights of 20,000: each some times, and nearly all.
    np.testing.assert_allclose(found.squared_distance, distance, rtol=0.05)
    assert np.linalg.matrix_rank(found.projections) == 64
    assert found.start == 0


@pytest.mark.parametrize(
    ("given", "shape"), [("loss", (HELD, 1)), ("gradients", (HELD, 1)), ("gradients", (HELD,))]
)
def test_a_series_of_another_shape_is_refused(given: str, shape: tuple[int, ...]) -> None:
    """A column of losses made a check an array, which counted as passed."""
    path = Projections(50).of(QUICK.run(HELD, 2))
    values = np.linspace(10, 0, math.prod(shape)).reshape(shape)
    with pytest.raises(ValueError, match=re.escape(f"{given} of shape {shape}")):
        judge(path, range(HELD), swag.SWAG(nn.Linear(1, 1)).window, **{given: values})


def test_what_cannot_be_tested_denies_nothing() -> None:
    path = Projections(50).of(QUICK.run(HELD, 2))
    window = swag.SWAG(nn.Linear(1, 1)).window
    found = judge(path, range(HELD), window, np.zeros(HELD), np.ones((HELD, 4)))
    assert found.start is not None
    constant = found.checks[-3:]
    assert [(check.holds, math.isnan(check.value)) for check in constant] == [(None, True)] * 3
    assert all("does not change" in check.note for check in constant)
    assert all(type(check.holds) is bool for check in found.checks[:-3])

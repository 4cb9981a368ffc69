"""Mixtures with weights, and of windows of one trajectory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import swag
from swag.errors import WindowError

INPUTS = torch.linspace(-1, 1, 7)[:, None]


def collected(iterates: torch.Tensor, **options: Any) -> swag.SWAG:
    model = nn.Linear(1, 1)
    posterior = swag.SWAG(model, **options)
    for slope, offset in iterates.tolist():
        model.weight.data.fill_(slope)
        model.bias.data.fill_(offset)
        posterior.update_parameters(model)
    return posterior


def walk(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed)).cumsum(dim=0)


def test_a_weight_is_how_often_a_posterior_counts() -> None:
    parts = [collected(walk(6, seed)) for seed in range(3)]
    mixture = swag.MultiSWAG(parts, weights=[3, 0, 1])
    assert mixture.weights == (0.75, 0.0, 0.25)
    model = nn.Linear(1, 1)
    each = mixture.predict_each(model, INPUTS, samples=4, generator=0)
    expected = 0.75 * each[:4].mean(dim=0) + 0.25 * each[4:].mean(dim=0)
    for some in (INPUTS, [INPUTS[:3], INPUTS[3:]]):
        found = mixture.predict(model, some, activation="none", samples=4, generator=0)
        torch.testing.assert_close(found, expected)
    gaussian = mixture.predict_regression(model, INPUTS, noise=0.5, samples=4, generator=0)
    torch.testing.assert_close(gaussian.mean, expected)
    squares = 0.75 * each[:4].square().mean(dim=0) + 0.25 * each[4:].square().mean(dim=0)
    spread = squares - expected.square() + 0.5
    torch.testing.assert_close(gaussian.variance, spread, rtol=1e-4, atol=1e-5)

    point = parts[0].mean()
    densities = [part.log_prob(point).exp() for part in parts]
    wanted = (0.75 * densities[0] + 0.25 * densities[2]).log()
    torch.testing.assert_close(mixture.log_prob(point), wanted)


def test_draws_are_from_each_as_often_as_it_weighs() -> None:
    far = [collected(walk(4, seed) * 0.01 + 100 * seed) for seed in range(3)]
    draws = swag.MultiSWAG(far, weights=[1, 0, 3]).sample(2000, generator=0)["bias"][:, 0]
    assert not ((draws > 50) & (draws < 150)).any()
    share = (draws > 150).double().mean().item()
    assert abs(share - 0.75) < 5 * math.sqrt(0.75 * 0.25 / 2000)


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [1.0, -1.0], [1.0, math.nan]])
def test_weights_that_are_none(weights: list[float]) -> None:
    parts = [collected(walk(3, seed)) for seed in range(2)]
    with pytest.raises(ValueError, match="2 numbers"):
        swag.MultiSWAG(parts, weights=weights)


def test_what_weighs_nothing_is_left_out() -> None:
    """What says NaN made the whole NaN, and from an empty one nothing could be drawn."""
    good, empty = collected(walk(6, 0)), swag.SWAG(nn.Linear(1, 1))
    bad = collected(1e38 * walk(6, 1))
    model = nn.Linear(1, 1)
    options: dict[str, Any] = {"samples": 3, "generator": 0}
    for weights in ([1, 0, 0], [1e308, 0, 0]):
        mixture = swag.MultiSWAG([good, bad, empty], weights=weights)
        found = mixture.predict(model, INPUTS, activation="none", **options)
        assert torch.equal(found, good.predict(model, INPUTS, activation="none", **options))
        assert mixture.predict_each(model, INPUTS, **options).shape == (3, 7, 1)
        assert mixture.predict_regression(model, INPUTS, **options).variance.isfinite().all()
        assert mixture.sample(4)["bias"].shape == (4, 1)
        assert mixture.sample(0)["bias"].shape == (0, 1)
        with mixture.sampled(model):
            assert model.bias.isfinite()
        torch.testing.assert_close(mixture.log_prob(good.mean()), good.log_prob(good.mean()))


def test_weights_of_any_unit() -> None:
    parts = [collected(walk(3, seed)) for seed in range(3)]
    for unit in (1, 5e307, 1e-300):
        mixture = swag.MultiSWAG(parts, weights=[3 * unit, 0, unit])
        assert mixture.weights == pytest.approx((0.75, 0, 0.25))
        assert mixture.sample(5)["bias"].shape == (5, 1)


def test_draws_of_a_part_and_in_pairs() -> None:
    parts = [collected(walk(6, seed) + 1000 * seed) for seed in range(2)]
    mixture = swag.MultiSWAG(parts)
    means = torch.stack([part.mean()["weight"] for part in parts])
    drawn = {
        part: mixture.sample(20, part=part, antithetic=True, generator=0)["weight"]
        for part in ("both", "diagonal", "low-rank")
    }
    from_second = drawn["both"][:, 0, 0] > 500
    assert 0 < from_second.sum() < 20
    assert torch.equal(from_second[::2], from_second[1::2])
    center = means[from_second.long()]
    for draws in drawn.values():
        torch.testing.assert_close((draws[::2] + draws[1::2]) / 2, center[::2])
    off = [draws - center for draws in drawn.values()]
    torch.testing.assert_close(off[0], off[1] + off[2], rtol=0, atol=1e-3)
    for wrong in ({"n": 3, "antithetic": True}, {"n": -1}, {"n": 2, "part": "all"}):
        with pytest.raises(ValueError, match=r"pairs|part=|whole number"):
            mixture.sample(**wrong)


def test_windows_of_one_trajectory() -> None:
    iterates = walk(20, 0)
    posterior = collected(iterates, checkpoint_every=3)
    early, late = posterior.window(2, stop=9), posterior.window(9)
    assert (early.iterates, late.iterates) == (range(2, 9), range(9, 20))
    for part, used in ((early, iterates[2:9]), (late, iterates[9:])):
        alone = collected(used)
        for name, value in alone.mean().items():
            torch.testing.assert_close(part.mean()[name], value)
            torch.testing.assert_close(
                part.sample(3, generator=0)[name], alone.sample(3, generator=0)[name]
            )
    mixture = swag.MultiSWAG([early, late])
    found = mixture.predict(nn.Linear(1, 1), INPUTS, activation="none", samples=1, scale=0)
    middle = (iterates[2:9].mean(dim=0) + iterates[9:].mean(dim=0)) / 2
    torch.testing.assert_close(found, INPUTS * middle[0] + middle[1])


def test_where_a_window_stops() -> None:
    iterates = walk(20, 1)
    posterior = collected(iterates, checkpoint_every=3)
    first = posterior.window(stop=5)
    assert first.iterates == range(5)
    torch.testing.assert_close(first.mean()["bias"][0], iterates[:5, 1].mean())
    assert posterior.window(3, every=4, rank=2, stop=12).iterates == range(3, 12, 4)
    assert posterior.window(stop=100).n_averaged == 20
    with pytest.raises(WindowError, match="none from 7 to 7"):
        posterior.window(7, stop=7)
    with collected(iterates, max_rank=6, checkpoint_every=3) as ring:
        assert ring.window(15, stop=18).rank == 3
        with pytest.raises(WindowError, match="were kept"):
            ring.window(stop=10)


def test_only_posteriors_are_mixed() -> None:
    with pytest.raises(TypeError, match="a mixture is of posteriors, and this is str: give"):
        swag.MultiSWAG([swag.SWAG(nn.Linear(2, 2)), "memmap:./other"])  # type: ignore[list-item]

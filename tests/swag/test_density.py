"""The density against PyTorch's own, with the covariance written out; mixtures against parts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import swag
from swag.divergences import bhattacharyya_distance, jeffreys_divergence, kl_divergence
from swag.errors import ModelError, WindowError
from swag.sampling import Center


class Weights(nn.Module):
    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.first = nn.Parameter(values[:4].reshape(2, 2).clone())
        self.second = nn.Parameter(values[4:].clone())


def iterates(count: int, seed: int = 0, n: int = 11) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.3 * torch.randn(count, n, generator=generator)).cumsum(dim=0)


def collected(walk: torch.Tensor, **options: Any) -> swag.SWAG:
    posterior = swag.SWAG(Weights(walk[0]), **options)
    for values in walk:
        posterior.update_parameters(Weights(values))
    return posterior


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    lead = weights["second"].shape[:-1]
    return torch.cat([weights["first"].reshape(*lead, 4), weights["second"]], dim=-1).double()


@pytest.mark.parametrize("center", ["running", "mean"])
@pytest.mark.parametrize("rank", [0, 1, 2, 5, 20])
@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
def test_the_density_is_that_of_the_covariance_written_out(
    center: Center, rank: int, start: int, memory_bytes: int
) -> None:
    walk = iterates(20)
    posterior = collected(walk).window(start=start, rank=rank, center=center)
    used, k = walk[start:].double(), posterior.rank
    covariance = torch.diag(used.var(dim=0, correction=0))
    if k > 1:
        counts = torch.arange(1, len(used) + 1)[:, None]
        middle = used.cumsum(dim=0) / counts if center == "running" else used.mean(dim=0)
        d = (used - middle)[-k:]
        covariance = covariance + d.T @ d / (k - 1)
    points = posterior.sample(6, generator=1, scale=1.5)
    truth: Any = torch.distributions.MultivariateNormal(used.mean(dim=0), 1.5 * covariance)
    found = posterior.log_prob(points, scale=1.5, memory_bytes=memory_bytes)
    torch.testing.assert_close(found, truth.log_prob(flat(points)), rtol=1e-4, atol=1e-3)
    one = {name: values[2] for name, values in points.items()}
    torch.testing.assert_close(posterior.log_prob(one, scale=1.5), found[2])


def test_draws_are_as_probable_as_they_should_be() -> None:
    # Twice the fall of the log density from the mean is chi-square of as many degrees of freedom as
    # there are weights, in whatever blocks the trajectory is read.
    posterior = collected(iterates(30, n=5000))
    draws = posterior.sample(200, generator=0)
    fall = 2 * (posterior.log_prob(posterior.mean()) - posterior.log_prob(draws))
    assert abs(fall.mean().item() - 5000) < 5 * math.sqrt(2 * 5000 / 200)
    assert abs(fall.var().item() / 10_000 - 1) < 5 * math.sqrt(2 / 200)


def test_a_model_can_be_asked_about() -> None:
    walk = iterates(5)
    posterior = collected(walk)
    found = posterior.log_prob(dict(Weights(walk[2]).named_parameters()))
    assert found.shape == ()
    assert not found.requires_grad


def test_what_has_no_density_is_refused() -> None:
    walk = iterates(8)
    posterior = collected(walk)
    points = posterior.sample(2)
    with pytest.raises(ValueError, match="scale=0"):
        posterior.log_prob(points, scale=0)
    with pytest.raises(ModelError, match="second is missing"):
        posterior.log_prob({"first": points["first"]})
    with pytest.raises(ModelError, match="second has shape"):
        posterior.log_prob({**points, "second": points["second"][0]})
    walk[:, 7] = 3
    with pytest.raises(WindowError, match="1 of 11 weights did not change"):
        collected(walk).log_prob(points)


# -- mixtures -------------------------------------------------------------------------------------


def test_a_mixture_of_one_and_of_equals() -> None:
    posterior = collected(iterates(9))
    points = posterior.sample(4, generator=0)
    for mixture in (swag.MultiSWAG([posterior]), swag.MultiSWAG([posterior] * 3)):
        torch.testing.assert_close(mixture.log_prob(points), posterior.log_prob(points))


def test_draws_come_from_every_part_in_equal_shares() -> None:
    parts = [collected(iterates(9, seed) + 100 * seed) for seed in range(3)]
    draws = swag.MultiSWAG(parts).sample(3000, generator=5)
    part = (flat(draws).mean(dim=1) / 100).round().long()
    counts = torch.bincount(part, minlength=3)
    assert len(counts) == 3
    assert (counts - 1000).abs().max() < 5 * math.sqrt(3000 * 2 / 9)
    again = swag.MultiSWAG(parts).sample(3000, generator=5)
    torch.testing.assert_close(flat(again), flat(draws))
    for i, posterior in enumerate(parts):
        inside = flat(draws)[part == i]
        expected = flat(posterior.mean())
        spread = flat(posterior.variance()).sqrt() + 0.1
        assert ((inside.mean(dim=0) - expected).abs() < spread).all()


def test_predictions_are_averages_over_the_parts() -> None:
    models = [nn.Linear(3, 2) for _ in range(3)]
    parts = []
    for model in models:
        parts.append(swag.SWAG(model))
        parts[-1].update_parameters(model)
    inputs = torch.from_numpy(np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32))
    expected = torch.stack([m(inputs).softmax(dim=1) for m in models]).mean(dim=0).detach()
    mixture = swag.MultiSWAG(parts)
    found = mixture.predict(nn.Linear(3, 2), inputs, activation="softmax", samples=1)
    torch.testing.assert_close(found, expected)
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    with swag.MultiSWAG(parts).sampled(model, generator=0):
        assert any(torch.equal(model.weight, other.weight) for other in models)
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize(
    "other",
    [
        nn.Sequential(nn.Linear(3, 2)),
        nn.Linear(2, 2),
        nn.Linear(3, 2, bias=False),
        nn.Linear(3, 2).double(),
    ],
)
def test_a_mixture_of_other_models_is_refused(other: nn.Module) -> None:
    with pytest.raises(ModelError, match="posterior 1 is of other parameters"):
        swag.MultiSWAG([swag.SWAG(nn.Linear(3, 2)), swag.SWAG(other)])


def test_a_mixture_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        swag.MultiSWAG([])


@pytest.mark.parametrize("seed", range(4))
def test_a_posterior_has_no_distance_from_itself(seed: int) -> None:
    """And not a negative one, which rounding makes: Hellinger's takes a root of it."""
    p = collected(iterates(40, seed).double())
    for distance in (kl_divergence, jeffreys_divergence, bhattacharyya_distance):
        assert 0 <= distance(p, p) < 1e-9


@pytest.mark.parametrize("scale", [0, -1, math.nan, math.inf])
def test_a_density_needs_a_scale(scale: float) -> None:
    with pytest.raises(ValueError, match="scale is a factor of the covariance"):
        collected(iterates(40)).multivariate_normal(scale=scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("every", [1, 2])
def test_a_window_far_from_the_first_iterate(dtype: torch.dtype, every: int) -> None:
    """As of weights that decay: what they have moved by is no part of how they vary."""
    spread = 1e-7 if dtype == torch.float32 else 1e-12
    noise = torch.randn(60, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    walk = torch.cat([torch.ones(1, 11), 1e-3 + spread * noise]).to(dtype)
    window = collected(walk).window(1, every)
    expected = walk[1::every].double()
    variance = flat(window.variance())
    torch.testing.assert_close(variance, expected.var(0, correction=0), rtol=1e-5, atol=0)
    off = (flat(window.mean()) - expected.mean(0)).abs() / expected.std(0)
    assert float(off.max()) < (1e-3 if dtype == torch.float32 else 0.05)
    found = window.multivariate_normal().covariance_matrix if every == 1 else None
    if found is not None:
        torch.testing.assert_close(found, torch.cov(expected.T), rtol=1e-4, atol=1e-4 * spread**2)
    draws = flat(window.sample(2000, generator=0))
    torch.testing.assert_close(draws.std(0), expected.std(0), rtol=0.1, atol=0)


@pytest.mark.parametrize("function", [kl_divergence, jeffreys_divergence, bhattacharyya_distance])
def test_a_mixture_has_no_divergence_in_closed_form(function: Any) -> None:
    posterior = collected(iterates(20))
    mixture = swag.MultiSWAG([posterior])
    for pair in ((mixture, posterior), (posterior, mixture), (posterior, posterior.mean())):
        with pytest.raises(TypeError, match=r"(MultiSWAG|dict): give swag\.SWAG"):
            function(*pair)


def test_weights_are_as_precise_as_they_are_given() -> None:
    """Iterates of float32 about 1 that differ by a hundred steps of it: draws lie between."""
    walk = 1 + 1e-5 * iterates(30)
    posterior = collected(walk).window(rank=0)
    used = walk.double()
    mean, std = used.mean(dim=0), used.std(dim=0, correction=0)
    points = mean + std * torch.randn(11, generator=torch.Generator().manual_seed(0)).double()
    normal: Any = torch.distributions.Normal(mean, std)
    found = posterior.log_prob({"first": points[:4].reshape(2, 2), "second": points[4:]})
    torch.testing.assert_close(found, normal.log_prob(points).sum(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("rank", [0, 5])
def test_what_is_infinitely_far_has_no_density(rank: int) -> None:
    posterior = collected(iterates(20)).window(rank=rank)
    draws = {name: values.double() for name, values in posterior.sample(4, generator=0).items()}
    alone = posterior.log_prob(draws)
    draws["second"][0, 3] = math.inf
    draws["first"][1, 0, 0] = -1e200
    draws["second"][2, 0] = math.nan
    for part in (posterior, swag.MultiSWAG([posterior, posterior])):
        found = part.log_prob(draws)
        assert found[:2].tolist() == [-math.inf, -math.inf]
        assert found[2].isnan()
        torch.testing.assert_close(found[3], alone[3])

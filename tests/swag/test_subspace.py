"""The principal subspace against an SVD in memory; its sampler against a density in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import swag
from pmarray.errors import BudgetError
from swag.errors import ModelError, WindowError
from swag.sampling import Center
from swag.subspace import elliptical_slice


def walk(count: int, n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.3 * torch.randn(count, n, generator=generator)).cumsum(dim=0)


def collected(iterates: torch.Tensor, **options: Any) -> swag.SWAG:
    model = nn.Linear(iterates.shape[1], 1, bias=False)
    posterior = swag.SWAG(model, **options)
    for values in iterates:
        model.weight.data[0] = values
        posterior.update_parameters(model)
    return posterior


@pytest.mark.parametrize("center", ["running", "mean"])
@pytest.mark.parametrize(("rank", "k"), [(None, 3), (7, 6), (7, 1)])
@pytest.mark.parametrize("memory_bytes", [0, 1 << 30])
def test_the_subspace_is_that_of_an_svd(
    center: Any, rank: int | None, k: int, memory_bytes: int
) -> None:
    iterates = walk(20, 3000)
    posterior = collected(iterates).window(start=2, rank=rank, center=center)
    used = iterates[2:].double()
    counts = torch.arange(1, len(used) + 1)[:, None]
    middle = used.cumsum(dim=0) / counts if center == "running" else used.mean(dim=0)
    deviations = (used - middle)[-posterior.rank :]
    _, values, directions = torch.linalg.svd(deviations, full_matrices=False)
    values = values / math.sqrt(posterior.rank - 1)

    found = posterior.subspace(k, memory_bytes=memory_bytes)
    assert found.k == k
    torch.testing.assert_close(found.singular_values, values, rtol=1e-5, atol=1e-5)
    overlap = (found.basis.double() @ directions[:k].T / values[:k]).diagonal()
    torch.testing.assert_close(overlap.abs(), values[:k] / values[:k], rtol=1e-4, atol=0)
    torch.testing.assert_close(found.basis.norm(dim=1).double(), values[:k], rtol=1e-4, atol=0)
    explained = float(values[:k].square().sum() / values.square().sum())
    assert found.explained == pytest.approx(explained, rel=1e-4)

    points = torch.randn(4, k, generator=torch.Generator().manual_seed(1))
    weights = found.weights(points)["weight"].reshape(4, -1)
    torch.testing.assert_close(found.coordinates(weights), points, rtol=1e-3, atol=1e-3)


def test_elliptical_slices_come_from_the_density() -> None:
    # A normal prior and a Gaussian likelihood: normal with precision 1 + 1/s².
    observed, s = torch.tensor([2.0, -1.0]), 0.5
    source = torch.Generator().manual_seed(0)

    def log_density(z: torch.Tensor) -> float:
        return float(-(z - observed).square().sum() / (2 * s * s))

    z = torch.zeros(2)
    height = log_density(z)
    chain = []
    for _ in range(3000):
        z, height = elliptical_slice(z, height, log_density, source)
        assert height == pytest.approx(log_density(z), abs=1e-4)
        chain.append(z)
    kept = torch.stack(chain[500:])
    precision = 1 + 1 / s**2
    torch.testing.assert_close(kept.mean(dim=0), observed / s**2 / precision, atol=0.07, rtol=0)
    torch.testing.assert_close(kept.var(dim=0), torch.full((2,), 1 / precision), rtol=0.15, atol=0)


def test_a_linear_model_has_the_posterior_of_its_subspace() -> None:
    # y = x . theta with known noise: in a subspace the posterior is Gaussian, in closed form.
    generator = torch.Generator().manual_seed(0)
    posterior = collected(walk(30, 6)).window(center="mean")
    subspace = posterior.subspace(2)
    inputs = torch.randn(40, 6, generator=generator)
    targets = (inputs @ subspace.mean)[:, None] + 0.3 * torch.randn(40, 1, generator=generator)
    temperature, prior_scale, noise = 4.0, 2.0, 0.3
    model = nn.Linear(6, 1, bias=False)
    own = model.weight.detach().clone()

    def log_likelihood(model: nn.Module) -> torch.Tensor:
        off = model(inputs) - targets
        result: torch.Tensor = -off.square().sum() / (2 * noise**2)
        return result

    points = subspace.sample(
        model,
        log_likelihood,
        1500,
        temperature=temperature,
        prior_scale=prior_scale,
        burn_in=200,
        generator=1,
    )
    along = inputs.double() @ subspace.basis.double().T
    left = targets.double()[:, 0] - inputs.double() @ subspace.mean.double()
    precision = along.T @ along / (noise**2 * temperature) + torch.eye(2) / prior_scale**2
    covariance = torch.linalg.inv(precision)
    mean = covariance @ (along.T @ left) / (noise**2 * temperature)
    spread = covariance.diagonal().sqrt()
    assert ((points.mean(dim=0) - mean).abs() < 0.2 * spread).all()
    assert ((points.std(dim=0) / spread - 1).abs() < 0.12).all()
    assert torch.equal(model.weight, own)
    found = subspace.predict(model, inputs, points[:7], activation="none")
    weights = subspace.weights(points[:7])["weight"]
    each = torch.stack([inputs @ w.T for w in weights])
    torch.testing.assert_close(found, each.mean(dim=0), rtol=1e-4, atol=1e-4)
    batches = list(torch.split(inputs, 9))
    again = subspace.predict(model, iter(batches), points[:7], activation="none", memory_bytes=1)
    torch.testing.assert_close(again, found, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"\(n, k\)"):
        subspace.predict(model, inputs, points[0], activation="none")
    again = subspace.sample(model, log_likelihood, 5, generator=1)
    assert torch.equal(again, subspace.sample(model, log_likelihood, 5, generator=1))


def test_what_cannot_be_is_refused() -> None:
    posterior = collected(walk(5, 4))
    with pytest.raises(WindowError, match="at most 4 directions"):
        posterior.subspace(5)
    with pytest.raises(WindowError, match="0 columns"):
        posterior.window(rank=0).subspace(1)
    with pytest.raises(ModelError):
        posterior.subspace(2).sample(nn.Linear(3, 1), lambda model: 0.0, 1)
    with pytest.raises(ValueError, match="NaN"):
        posterior.subspace(2).sample(nn.Linear(4, 1, bias=False), lambda model: math.nan, 1)
    with pytest.raises(ValueError, match="temperature=0"):
        posterior.subspace(2).sample(nn.Linear(4, 1), lambda model: 0.0, 1, temperature=0)


def test_too_many_columns_are_refused_with_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swag._factors.MAX_RANK", 4)
    with pytest.raises(BudgetError, match="bytes"):
        collected(walk(6, 4)).subspace(2)


def test_the_subnetwork_is_that_of_laplace_torch() -> None:
    # As laplace.utils.subnetmask has it: the first of the scores sorted, then their places.
    iterates = walk(12, 9)
    posterior = collected(iterates)
    scores = iterates.var(dim=0, correction=0)
    indices = torch.argsort(scores, descending=True)[:4].sort().values
    mask = posterior.largest_variance(4)["weight"]
    assert mask.shape == (1, 9)
    assert torch.equal(mask.flatten().nonzero().flatten(), indices)
    assert not posterior.largest_variance(0)["weight"].any()
    with pytest.raises(ValueError, match="9 weights"):
        posterior.largest_variance(10)


def test_the_whole_covariance_is_that_of_the_iterates() -> None:
    iterates = walk(50, 5)
    posterior = collected(iterates)
    for window in (posterior, posterior.window(center="mean")):
        found = window.multivariate_normal(scale=2.0)
        torch.testing.assert_close(found.mean, iterates.double().mean(dim=0), rtol=1e-5, atol=1e-5)
        expected = 2 * torch.cov(iterates.double().T)
        torch.testing.assert_close(found.covariance_matrix, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(WindowError, match="needs more"):
        posterior.window(rank=5).multivariate_normal()


@pytest.mark.parametrize("factor", [1.0, 3.0, -1.0, 0.7])
@pytest.mark.parametrize("count", [10, 200])
def test_a_covariance_that_is_singular_but_for_rounding_is_refused(
    factor: float, count: int
) -> None:
    """The third weight follows from the first, and rounding gave it a width of its own."""
    x, y = torch.randn(2, count, generator=torch.Generator().manual_seed(0)).double()
    model = nn.Linear(3, 1, bias=False).double()
    for near, singular in ((1e-4, False), (0.0, True)):
        posterior = swag.SWAG(model)
        for weights in torch.stack([x, y, factor * (x + near * x.flip(0))], dim=1):
            with torch.no_grad():
                model.weight.copy_(weights[None])
            posterior.update_parameters(model)
        if singular:
            with pytest.raises(WindowError, match="the covariance is singular"):
                posterior.multivariate_normal()
        else:
            assert posterior.multivariate_normal().scale_tril.isfinite().all()


@pytest.mark.parametrize("center", ["running", "mean"])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_directions_of_rounding_are_refused(center: Center, offset: float) -> None:
    """Iterates in a plane, which rounding leaves by next to nothing."""
    generator = torch.Generator().manual_seed(0)
    iterates = (torch.randn(30, 2, generator=generator) * torch.tensor([1.0, 1e-3])).double()
    iterates[1:] += offset  # from the first, which distances are held from
    plane = iterates @ torch.randn(2, 12, generator=generator).double()
    model = nn.Linear(12, 1, bias=False).double()
    posterior = swag.SWAG(model)
    for weights in plane:
        with torch.no_grad():
            model.weight.copy_(weights[None])
        posterior.update_parameters(model)
    window = posterior.window(center=center)
    basis = window.subspace(2).basis
    residual = plane.float() - plane.float() @ torch.linalg.pinv(basis) @ basis
    assert residual.abs().max() < 1e-3 * plane.abs().max()
    with pytest.raises(WindowError, match=r"move along 2 directions.*k=3"):
        window.subspace(3)


def test_statistics_of_other_weights_are_refused() -> None:
    """The error of `predict` advises a loader, which `sample` has not."""
    linear, layer = nn.Linear(3, 4), nn.BatchNorm1d(4)
    model = nn.Sequential(linear, layer)
    for frozen in (False, True):
        layer.train(not frozen)
        posterior = swag.SWAG(model)
        for seed in range(5):
            nn.init.normal_(linear.weight, generator=torch.Generator().manual_seed(seed))
            posterior.update_parameters(model)
        subspace = posterior.subspace(2)
        if frozen:
            assert subspace.sample(model, lambda net: 0.0, 2, burn_in=0).shape == (2, 2)
        else:
            with pytest.raises(ModelError, match="into evaluation mode"):
                subspace.sample(model, lambda net: 0.0, 2)
    with pytest.raises(TypeError, match="a model is"):
        subspace.sample(model.parameters(), lambda net: 0.0, 2)  # type: ignore[arg-type]

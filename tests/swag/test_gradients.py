"""The relations of gradients and steps, where they hold, where they do not, and term by term."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from swag._projections import Projections
from swag.burn_in import judge
from swag.gradients import Gradients, discrepancy


def no_window(*_: Any) -> Any:
    raise NotImplementedError


def descend(
    steps: int, *, start: float, momentum: float, decay: float = 0.0, seed: int = 0
) -> tuple[Gradients, list[Tensor]]:
    """SGD on a quadratic whose gradients are noisy, and where it was before and after each step."""
    generator = torch.Generator().manual_seed(seed)
    weights = nn.Parameter(torch.full((40,), start, dtype=torch.float64))
    curvature = torch.linspace(0.5, 1, 40, dtype=torch.float64)
    optimizer = torch.optim.SGD([weights], lr=0.2, momentum=momentum, weight_decay=decay)
    places = [weights.detach().clone()]
    with Gradients(optimizer) as gradients:
        for _ in range(steps):
            noise = torch.randn(40, generator=generator, dtype=torch.float64)
            weights.grad = curvature * weights.detach() + noise
            optimizer.step()
            places.append(weights.detach().clone())
    weights.grad = None
    optimizer.step()  # no longer looked at
    return gradients, places


def test_gradients_of_an_embedding_may_be_sparse() -> None:
    rows = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Embedding(5, 3, sparse=sparse)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Gradients(optimizer) as gradients:
            for i in range(3):
                optimizer.zero_grad()
                model(torch.tensor([i, 4, 4])).square().sum().backward()
                optimizer.step()
            rows.append(gradients.values)
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.6])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_terms_are_those_of_the_steps(momentum: float, decay: float) -> None:
    gradients, places = descend(50, start=1.0, momentum=momentum, decay=decay)
    steps = [(a - b) / 0.2 for a, b in pairwise(places)]
    velocity = torch.zeros(40, dtype=torch.float64)
    for row, before, step in zip(gradients.values, places, steps, strict=False):
        gradient = step - momentum * velocity
        velocity = step
        expected = [
            before @ gradient, (1 + momentum) / 2 * 0.2 * (step @ step), before @ step,
            0.1 * (step @ step),
        ]  # fmt: skip
        np.testing.assert_allclose(row, [float(e) for e in expected], rtol=1e-9, atol=1e-9)
    assert len(gradients.values) == 50
    gradients.clear()
    assert gradients.values.shape == (0, 4)


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_the_relations_hold_once_it_has_settled(momentum: float) -> None:
    values = descend(3000, start=3.0, momentum=momentum)[0].values
    settled, travelling = values[200:], values[:5]
    for left in (0, 2):
        means = settled[:, left].mean(), settled[:, left + 1].mean()
        assert means[0] == pytest.approx(means[1], rel=0.1)
        assert abs(discrepancy(settled[:, left], settled[:, left + 1])) < 4
        assert travelling[:, left].mean() > 1.5 * travelling[:, left + 1].mean()


def test_they_are_tests_of_the_burn_in() -> None:
    gradients, places = descend(600, start=3.0, momentum=0.0)
    path = Projections(40).of(torch.stack(places[1:]).float().numpy())
    loss = np.random.default_rng(0).standard_normal(600)
    without = judge(path, range(600), no_window)
    left_out = [check for check in without.checks if check.holds is None]
    assert [check.name for check in left_out] == [
        "Geweke's z of the loss", "Yaida's relation", "SASA+",
    ]  # fmt: skip
    assert all(check.note for check in left_out)
    found = judge(path, range(600), no_window, loss, gradients.values)
    assert all(check.holds is not None for check in found.checks)
    assert found.start is not None
    assert found.start == without.start
    falling = loss - np.linspace(0, 5, 600)
    denied = judge(path, range(600), no_window, falling)
    assert denied.start is None
    assert "loss" in denied.why
    with pytest.raises(ValueError, match="600 iterates are held"):
        judge(path, range(600), no_window, loss[1:])


def test_other_optimizers_are_refused() -> None:
    weights = [nn.Parameter(torch.zeros(2))]
    with pytest.raises(TypeError, match="Adam"):
        Gradients(torch.optim.Adam(weights))
    with pytest.raises(ValueError, match="nesterov"):
        Gradients(torch.optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True))

"""A small network, and a loop that trains it, for processes that import little."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import swag

Facts = dict[str, Any]


def facts(posterior: swag.Posterior) -> Facts:
    """Everything that a posterior says, to be compared bit for bit."""
    return {
        "n_averaged": posterior.n_averaged,
        "rank": posterior.rank,
        "mean": posterior.mean(),
        "variance": posterior.variance(),
        "draws": posterior.sample(2, generator=0),
    }


def stored(store: str) -> Facts:
    with swag.load(store) as posterior:
        return facts(posterior)


def same(one: Facts, other: Facts) -> bool:
    assert one["n_averaged"] == other["n_averaged"]
    assert one["rank"] == other["rank"]
    for what in ("mean", "variance", "draws"):
        assert one[what].keys() == other[what].keys()
        for name, value in one[what].items():
            assert torch.equal(value, other[what][name]), (what, name)
    return True


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def steps(model: Any, count: int) -> Iterator[None]:
    """Train, and stop after each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(8, 3, generator=generator)).square().mean().backward()
        optimizer.step()
        yield

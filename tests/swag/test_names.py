"""Whatever wraps a model, its parameters are called what the model calls them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.distributed
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import swag


class Network(nn.Module):
    """Has a part of its own called "module", and batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(3, 4)
        self.body = nn.Sequential(nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.body(self.module(x))
        return result


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    place = f"file://{tmp_path / 'processes'}"
    torch.distributed.init_process_group("gloo", init_method=place, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def inside(model: Network, wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    model.body[2] = wrap(model.body[2])
    return model


WRAPPED: dict[str, Callable[..., nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "DataParallel of compile": lambda model: nn.DataParallel(
        cast(nn.Module, torch.compile(model, backend="eager"))
    ),
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "DataParallel inside": lambda model: inside(model, nn.DataParallel),
    "checkpointing inside": lambda model: inside(model, checkpoint_wrapper),
}


@pytest.mark.parametrize("how", WRAPPED)
@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # on import, by torch itself
def test_wrapped_and_plain_models_share_a_store(how: str, scratch: Path) -> None:
    names = [name for name, _ in Network().named_parameters()]
    for number, (first, second) in enumerate([(WRAPPED[how], Network), (Network, WRAPPED[how])]):
        store = f"memmap:{scratch / str(number)}"
        one = first(Network()) if number == 0 else Network()
        other = Network() if number == 0 else second(Network())
        with swag.SWAG(one, store) as posterior:
            posterior.update_parameters(one)
        with swag.SWAG(other, store, mode="a") as posterior:
            posterior.update_parameters(other)
            assert list(posterior.mean()) == names
            assert set(posterior._last_buffers().tensors) == set(dict(Network().named_buffers()))
            mean = posterior.mean()
            posterior.install_mean(one, loader=[torch.randn(8, 3)])
        for name, parameter in zip(names, one.parameters(), strict=True):
            assert torch.equal(parameter, mean[name])


def test_a_frozen_layer_of_a_wrapped_model_stays_frozen(scratch: Path) -> None:
    wrapped = nn.DataParallel(Network().train())
    wrapped.module.body[0].eval()
    with swag.SWAG(wrapped, f"memmap:{scratch}") as posterior:
        posterior.update_parameters(wrapped)
        assert posterior._last_buffers().frozen == ("body.0",)
        plain = Network()
        posterior.predict(plain, torch.zeros(2, 3), activation="none", samples=1)

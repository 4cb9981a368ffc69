"""Whatever wraps a model, its parameters are called what the model calls them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # which DTensor imports when it is first used
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DataParallel, DistributedDataParallel

import swag
from swag.errors import ModelError
from tests.swag.sharded import fully_shard, whole

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the library, about others
    import accelerate


class Network(nn.Module):
    """Has a part of its own called "module", and batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(3, 4)
        self.body = nn.Sequential(nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.body(self.module(x))
        return result


NAMES = [name for name, _ in Network().named_parameters()]
BUFFERS = {name for name, _ in Network().named_buffers()}


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group(
        "gloo", store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


def compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def first_fsdp(model: nn.Module, *, use_orig_params: bool = True) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one process shards nothing
        return FullyShardedDataParallel(
            model, use_orig_params=use_orig_params, device_id=torch.device("cpu")
        )


def prepared(model: nn.Module) -> Any:
    return accelerate.Accelerator(cpu=True).prepare(model)


def inside(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[Any], nn.Module]:
    def wrapped(model: Any) -> nn.Module:
        model.body[2] = wrap(model.body[2])
        return model  # type: ignore[no-any-return]

    return wrapped


WRAPS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda model: model,
    "DataParallel": DataParallel,
    "DDP": DistributedDataParallel,
    "compile": compiled,
    "FSDP1": first_fsdp,
    "FSDP2": fully_shard,
    "accelerate": prepared,
    "DataParallel of compiled": lambda model: DataParallel(compiled(model)),
    "DDP of compiled": lambda model: DistributedDataParallel(compiled(model)),
    "compiled DDP": lambda model: compiled(DistributedDataParallel(model)),
    "compiled FSDP1": lambda model: compiled(first_fsdp(model)),
    "FSDP1 inside FSDP1": lambda model: first_fsdp(inside(first_fsdp)(model)),
    "compiled FSDP2": lambda model: compiled(fully_shard(model)),
    "FSDP2 of compiled": lambda model: fully_shard(compiled(model)),
    "DataParallel inside": inside(DataParallel),
    "compiled inside DDP": lambda model: DistributedDataParallel(inside(compiled)(model)),
    "checkpointing inside": inside(checkpoint_wrapper),
    "checkpointing inside FSDP2": lambda model: fully_shard(inside(checkpoint_wrapper)(model)),
}
"""What people do to a model before they train it."""


def _where_there(names: Iterable[str]) -> list[Any]:
    skip = pytest.mark.skipif(
        fully_shard is None, reason="FSDP2: torch.distributed.fsdp.fully_shard is of PyTorch 2.6"
    )
    return [pytest.param(name, marks=[skip] if "FSDP2" in name else []) for name in names]


@pytest.mark.parametrize("other", _where_there(["plain", "compiled DDP", "FSDP2"]))
@pytest.mark.parametrize("how", _where_there(WRAPS))
@pytest.mark.usefixtures("group")
@pytest.mark.filterwarnings("ignore:::torch")  # on import, and of FSDP1 about its end
def test_however_wrapped_models_share_a_posterior(how: str, other: str, scratch: Path) -> None:
    for number, (first, second) in enumerate([(how, other), (other, how)]):
        store = f"memmap:{scratch / str(number)}"
        one, two = WRAPS[first](Network()), WRAPS[second](Network())
        with swag.SWAG(one, store) as posterior:
            posterior.update_parameters(one)
        if ("FSDP2" in first) == ("FSDP2" in second):  # in parts, or not
            nn.init.ones_(next(two.parameters()))
            with swag.SWAG(two, store, mode="a") as posterior:
                posterior.update_parameters(two)
        with swag.load(store) as read:
            mean = read.mean()
            assert list(mean) == NAMES
            assert set(read._last_buffers().tensors) == BUFFERS
            options: dict[str, Any] = {"activation": "none", "generator": 0, "draws_at_once": 1}
            options |= {"samples": 2, "loader": [torch.randn(8, 3)]}
            inputs = torch.ones(4, 3)
            expected = read.predict(Network(), inputs, **options)
            assert torch.equal(read.predict(two, inputs, **options), expected)
            for model in (one, two):
                read.install_mean(model, loader=[torch.randn(8, 3)])
                for name, weights in zip(NAMES, whole(model).values(), strict=True):
                    assert torch.equal(weights, mean[name]), name


@pytest.mark.usefixtures("group")
@pytest.mark.filterwarnings("ignore:::torch")
def test_one_parameter_made_of_all_is_refused(scratch: Path) -> None:
    flat = first_fsdp(Network(), use_orig_params=False)
    with pytest.raises(ModelError, match="use_orig_params=True"):
        swag.SWAG(flat)
    plain = Network()
    posterior = swag.SWAG(plain)
    posterior.update_parameters(plain)
    with pytest.raises(ModelError, match="use_orig_params=True"):
        posterior.install_mean(flat, loader=[torch.randn(8, 3)])


def test_a_frozen_layer_of_a_wrapped_model_stays_frozen(scratch: Path) -> None:
    wrapped = DataParallel(Network().train())
    wrapped.module.body[0].eval()
    with swag.SWAG(wrapped, f"memmap:{scratch}") as posterior:
        posterior.update_parameters(wrapped)
        assert posterior._last_buffers().frozen == ("body.0",)
        plain = Network()
        posterior.predict(plain, torch.zeros(2, 3), activation="none", samples=1)

"""What processes of a sharded training do, for tests that start them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which DTensor imports when it is first used
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

import swag
import swag.collect
from tests.swag.nets import Facts, facts


class Net(nn.Module):
    """Rows that no number of processes divides, fewer than there are, and none of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.layers = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs) * self.temperature
        return outputs


def sharded(kind: str) -> nn.Module:
    model: Any = Net()
    if kind == "plain":
        return model
    size = dist.get_world_size()
    names = ("replicate", "shard")
    mesh = (
        init_device_mesh("cpu", (2, size // 2), mesh_dim_names=names)
        if kind == "hybrid"
        else init_device_mesh("cpu", (size,))
    )
    options: dict[str, Any] = {"mesh": mesh, "ignored_params": {model.temperature}}
    if kind == "columns":
        plan: Any = RowwiseParallel(input_layouts=Replicate())
        parallelize_module(model.layers[0], mesh, plan)
        return model
    fully_shard(model.layers[0], **options)
    fully_shard(model, **options)
    return model


def whole(model: nn.Module) -> dict[str, Tensor]:
    """The weights, put together; every process calls it."""
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in model.named_parameters()
    }


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> Iterator[int]:
    for step in range(count):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(8, 3, generator=generator)).square().mean().backward()
        for parameter in model.parameters():  # which fully_shard leaves alone
            if not isinstance(parameter, DTensor) and parameter.grad is not None:
                dist.all_reduce(parameter.grad)
        optimizer.step()
        yield step


def collect(kind: str, store: str, count: int, attach: bool = True, mode: str = "w-") -> Facts:
    """Collect, and return what a plain loop makes of the same iterates."""
    model, plain = sharded(kind), Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    beside = swag.SWAG(plain)
    with swag.SWAG(model, store=store, mode=mode) as posterior:  # type: ignore[arg-type]
        if attach:
            posterior.attach(optimizer)
        for _ in steps(model, optimizer, count):
            posterior.update_parameters(model)
            with torch.no_grad():
                plain.load_state_dict(whole(model), strict=False)
            beside.update_parameters(plain)
    return facts(beside)


def killed(store: str, folder: Path, seconds: float) -> int:
    """Collect until the second process is killed; note the weights of each iterate before it."""
    model = sharded("rows")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with swag.SWAG(model, store=store, mode="a", checkpoint_every=4) as posterior:
        posterior.attach(optimizer)
        if dist.get_rank() == 1:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        for _ in steps(model, optimizer, 10_000):
            torch.save(whole(model), folder / str(posterior.n_averaged))
            posterior.update_parameters(model)
    return posterior.n_averaged

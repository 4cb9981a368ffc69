"""What processes of a sharded training do, for tests that start them."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch._dynamo  # which DTensor imports when it is first used
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

import swag
import swag.collect
from swag.integrations.distributed import PosteriorState
from tests.swag.nets import Facts, facts, same, stored

try:
    from torch.distributed.tensor import DTensor, Replicate
except ImportError:  # PyTorch 2.4 has them in private
    from torch.distributed._tensor import DTensor, Replicate  # type: ignore[attr-defined]

fully_shard: Any = getattr(torch.distributed.fsdp, "fully_shard", None)
"""FSDP2, which is public since PyTorch 2.6; None before."""
USUAL = "columns" if fully_shard is None else "rows"
"""How a model is spread over processes where it does not matter."""


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


def sharded(kind: str) -> Any:
    model = Net()
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
    return torch.compile(model, backend="eager") if kind == "compiled" else model


def whole(model: nn.Module) -> dict[str, Tensor]:
    """The weights, put together; every process calls it."""
    plain: nn.Module = getattr(model, "_orig_mod", model)
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in plain.named_parameters()
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


def collect(kind: str, store: str, count: int, attach: bool = True, **options: Any) -> Facts:
    """Collect, and return what a plain loop makes of the same iterates."""
    model, plain = sharded(kind), Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    beside = swag.SWAG(plain, **options)
    with swag.SWAG(model, store=store, **options) as posterior:
        if attach:
            posterior.attach(optimizer)
        for _ in steps(model, optimizer, count):
            posterior.update_parameters(model)
            with torch.no_grad():
                plain.load_state_dict(whole(model), strict=False)
            beside.update_parameters(plain)
    return facts(beside)


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(store: str, folder: Path, seconds: float | None, max_rank: int | None) -> int:
    """Collect until the second process is killed; note the weights of each iterate before it.

    After so many seconds, or, if None, at a checkpoint that the first process takes.
    """
    model = sharded(USUAL)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with swag.SWAG(model, store, max_rank, mode="a", checkpoint_every=4) as posterior:
        posterior.attach(optimizer)
        for step in steps(model, optimizer, 10_000):
            torch.save(whole(model), folder / str(posterior.n_averaged))
            posterior.update_parameters(model)
            if step == 2:
                posterior.flush()
                if dist.get_rank() == 1 and seconds is None:
                    vars(posterior._store)["checkpoint"] = _die
                elif dist.get_rank() == 1:
                    threading.Timer(seconds or 0, _die).start()
    return posterior.n_averaged


def told(work: Any) -> str:
    """What an error says."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def used(store: str) -> dict[str, Any]:
    """Everything that is not collecting, in one go."""
    found: dict[str, Any] = {}
    model, plain, inputs = sharded("rows"), Net(), torch.ones(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    found["memory"] = told(lambda: swag.SWAG(model, store="dram:"))
    found["own checkpoints"] = told(lambda: swag.SWAG(model, store=store, on_checkpoint=print))
    posterior = swag.SWAG(model, store=store)
    for step in steps(model, optimizer, 6):
        with torch.no_grad():
            model(inputs)  # leaves the outermost parameters gathered
        if step == 3 and dist.get_rank() == 1:
            local = cast(Any, model).layers[0].weight.to_local().detach()
            kept = local.clone()
            local.fill_(torch.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            posterior.update_parameters(model)
            posterior.wait()
            if step == 4:
                posterior.update_parameters(model)
        if step == 3:
            found["nonfinite"] = posterior.n_nonfinite, posterior.n_averaged
            if dist.get_rank() == 1:
                local.copy_(kept)
    found["repeated"] = posterior.n_repeated, posterior.n_averaged
    found["rewound"] = posterior.rewind(to=4 if dist.get_rank() else 5)
    posterior.update_parameters(model)
    found["part"] = told(posterior.mean)
    posterior.close()
    found["again"] = told(lambda: swag.SWAG(model, store=store))
    with swag.load(store) as read:
        found["count"] = read.n_averaged
        before = whole(model)
        options: dict[str, Any] = {"activation": "none", "samples": 3, "generator": 0}
        found["predicted"] = torch.equal(
            read.predict(model, inputs, **options), read.predict(plain, inputs, **options)
        )
        found["restored"] = all(torch.equal(v, before[k]) for k, v in whole(model).items())
        read.install_mean(model)
        mean = read.mean()
        found["mean"] = all(torch.equal(v, mean[k]) for k, v in whole(model).items())
        weights = dict(model.named_parameters())
        found["density"] = torch.equal(
            read.window(rank=0).log_prob(weights), read.window(rank=0).log_prob(mean)
        )
    return found


def gone_on(store: str) -> str:
    """Go on with another number of processes."""
    return told(lambda: swag.SWAG(sharded("rows"), store=store, mode="a"))


def checkpointed(store: str, folder: str) -> tuple[int, int]:
    """Collect, save a checkpoint in between, and load it in the end."""
    model = sharded("rows")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with swag.SWAG(model, store=store) as posterior:
        state = {"posterior": PosteriorState(posterior, model)}
        for step in steps(model, optimizer, 7):
            posterior.update_parameters(model)
            if step == 3:
                save(state, checkpoint_id=folder)
        before = posterior.n_averaged
        load(state, checkpoint_id=folder)
        return before, posterior.n_averaged


def in_pieces(store: str, orig: bool) -> dict[str, Any]:
    """Collect what the first FSDP has cut into pieces, where it puts them together."""
    torch.manual_seed(0)
    model: Any = FullyShardedDataParallel(
        Net().layers, use_orig_params=orig, device_id=torch.device("cpu")
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    plain = Net().layers
    beside, found = swag.SWAG(plain), dict[str, Any]()
    found["sharded"] = told(lambda: swag.SWAG(model, store=store))
    posterior: Any = None
    for step in range(4):
        optimizer.zero_grad()
        inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        model(inputs).square().mean().backward()
        optimizer.step()
        with FullyShardedDataParallel.summon_full_params(model, writeback=False):
            if dist.get_rank() == 0:
                if posterior is None:
                    posterior = swag.SWAG(model, store=store)
                    posterior.attach(optimizer)
                posterior.update_parameters(model)
                state = {name: p.detach().clone() for name, p in model.named_parameters()}
                plain.load_state_dict(state)
                beside.update_parameters(plain)
    if dist.get_rank() == 0:
        found["later"] = told(lambda: posterior.update_parameters(model))
        posterior.close()
        found["same"] = same(stored(store), facts(beside))
    dist.barrier()
    with swag.load(store) as read:
        found["used"] = told(lambda: read.install_mean(model))
        with FullyShardedDataParallel.summon_full_params(model):
            read.install_mean(model)
            mean = read.mean()
            found["mean"] = all(torch.equal(p, mean[n]) for n, p in model.named_parameters())
    return found


def replicated(store: str) -> bool:
    """Collect what the first FSDP has whole in each process."""
    model = FullyShardedDataParallel(
        Net().layers,
        use_orig_params=True,
        device_id=torch.device("cpu"),
        sharding_strategy=ShardingStrategy.NO_SHARD,
    )
    first = dist.get_rank() == 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    plain = Net().layers
    posterior, beside = swag.SWAG(model, store=store) if first else None, swag.SWAG(plain)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(8, 3)).square().mean().backward()
        optimizer.step()
        state = {n.removeprefix("_fsdp_wrapped_module."): p for n, p in model.named_parameters()}
        with torch.no_grad():
            plain.load_state_dict(state)
        beside.update_parameters(plain)
        if posterior is not None:
            posterior.update_parameters(model)
    if posterior is not None:
        posterior.close()
        assert same(stored(store), facts(beside))
    return True


def first_fsdp(own: str, one: str, whole: str) -> list[dict[str, Any]]:
    """The first FSDP in every way: with the names, with one parameter, and not in pieces."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is a second FSDP
        replicated(whole)
        return [in_pieces(own, True), in_pieces(one, False)]

"""What of a model's parameters this process holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from swag._boxes import Box, Shard, axes
from swag.errors import ModelError

__all__ = [
    "full_of",
    "held_box",
    "is_sharded",
    "is_summoned",
    "local_of",
    "locals_of",
    "placement_of",
    "refuse_flattened",
    "reshard",
    "spread_as",
    "take",
]


def is_sharded(parameters: Iterable[Tensor]) -> bool:
    """Whether one of them is spread over processes."""
    return any(map(_is_distributed, parameters))


def _is_distributed(parameter: Any) -> TypeGuard[Any]:
    """Whether it is a `torch.distributed.tensor.DTensor`, which takes seconds to import."""
    return hasattr(parameter, "device_mesh") and hasattr(parameter, "placements")


def _is_first_fsdp(module: Any) -> TypeGuard[Any]:
    """Whether it is a `torch.distributed.fsdp.FullyShardedDataParallel`, which is not imported."""
    return type(module).__name__ == "FullyShardedDataParallel"


def is_summoned(module: nn.Module) -> bool:
    """Whether the first FSDP has put a module's parameters together, for a while."""
    return _is_first_fsdp(module) and module.training_state.name == "SUMMON_FULL_PARAMS"


def refuse_flattened(model: nn.Module) -> None:
    """Raise if the first FSDP has parameters in pieces, or all of them in one.

    Raises
    ------
    ModelError
        It has: pieces do not say where they belong, and one parameter has none of the names.
    """
    for module in model.modules():
        if not _is_first_fsdp(module) or is_summoned(module):
            continue
        if module.sharding_strategy.name != "NO_SHARD":
            raise ModelError(
                "the model is wrapped by FullyShardedDataParallel, and only pieces of its "
                "parameters are here: use torch.distributed.fsdp.fully_shard (FSDP2); or do this "
                "inside FullyShardedDataParallel.summon_full_params(model), which all processes "
                "enter, and make the posterior and collect in the first of them"
            )
        if any(name.endswith("_flat_param") for name, _ in module.named_parameters()):
            raise ModelError(
                "the model is wrapped by FullyShardedDataParallel, which has made one parameter of "
                "all: give it use_orig_params=True"
            )


def placement_of(parameter: Tensor) -> str:
    """How it is laid out over a mesh of processes, in words."""
    if not _is_distributed(parameter):
        return "on the first process"
    mesh: Any = parameter.device_mesh
    return f"{tuple(parameter.placements)} on {tuple(mesh.shape)} {mesh.mesh_dim_names or ''}"


def held_box(name: str, parameter: Tensor, rank: int) -> Box:
    """The items of a parameter that the process of this rank collects.

    Each item has one process: of replicas, the first; of what is not spread at all, rank 0.

    Raises
    ------
    ModelError
        It is spread in a way that is not known here.
    """
    shape = axes(parameter.shape)
    if not _is_distributed(parameter):
        return Box.whole(shape) if rank == 0 else Box.none(shape)
    mesh: Any = parameter.device_mesh
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return Box.none(shape)
    shards, is_first = [], True
    for dimension, placement in enumerate(parameter.placements):
        which, pieces = coordinate[dimension], mesh.size(dimension)
        if placement.is_replicate():
            is_first &= which == 0
        elif placement.is_shard() and type(placement).__name__ == "Shard":
            shards.append(Shard(placement.dim % len(shape), pieces, which))
        else:
            raise ModelError(
                f"{name} is laid out as {placement} over its mesh of processes: Shard and "
                "Replicate can be collected"
            )
    box = Box.cut(shape, shards)
    local = tuple(local_of(parameter).shape)
    if axes(local) != box.shape and box.size:
        raise ModelError(f"{name} has shape {local} on rank {rank}, where {box.shape} is expected")
    return box if is_first else Box.none(shape)


@torch.no_grad()
def local_of(parameter: Tensor) -> Tensor:
    """What this process has of it; no communication."""
    local: Tensor = parameter.to_local() if _is_distributed(parameter) else parameter
    return local


def locals_of(parameters: Sequence[nn.Parameter], boxes: Sequence[Box]) -> list[Tensor]:
    """What this process collects of each; no communication.

    Raises
    ------
    ModelError
        One is not laid out as it was.
    """
    found = []
    for parameter, box in zip(parameters, boxes, strict=True):
        local = local_of(parameter)
        if not box.size:
            local = local.detach().reshape(-1)[:0].reshape(box.shape)
        elif axes(local.shape) != box.shape:
            raise ModelError(
                f"a parameter of shape {tuple(parameter.shape)} has {tuple(local.shape)} here, and "
                f"had {box.shape} when collection began: begin another posterior"
            )
        found.append(local)
    return found


def reshard(model: nn.Module) -> None:
    """Let go of what ``fully_shard`` has gathered of a model; no communication.

    A forward pass without a backward one leaves the outermost parameters gathered, and later ones
    compute with what was gathered, whatever is written to the parameters.
    """
    for module in model.modules():
        if hasattr(module, "reshard") and hasattr(module, "unshard"):
            fully_sharded: Any = module
            fully_sharded.reshard()


def spread_as(name: str, parameter: Tensor, local: Tensor) -> Tensor:
    """A tensor that is spread as a parameter is, of what each process has; no communication.

    Raises
    ------
    ModelError
        A replica has nothing.
    """
    like: Any = parameter
    if local.numel() != local_of(parameter).numel():
        raise ModelError(f"{name} has replicas, of which only the first has been collected")
    # Its own class makes another one, and need not be imported here, which takes seconds.
    spread: Tensor = type(like.data).from_local(
        local.clone().reshape(local_of(parameter).shape),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
    return spread


def full_of(parameter: Tensor) -> Tensor:
    """All of it; where it is spread over processes, these speak to one another."""
    full: Tensor = parameter.full_tensor() if _is_distributed(parameter) else parameter
    return full


def take(parameter: Tensor, whole: Tensor) -> Tensor:
    """Of a tensor of a parameter's shape, the items that its part here holds; no communication."""
    if not _is_distributed(parameter):
        return whole
    mesh: Any = parameter.device_mesh
    coordinate = mesh.get_coordinate()
    shape = axes(parameter.shape)
    if coordinate is None:
        return whole.reshape(-1)[:0]
    shards = [
        Shard(placement.dim % len(shape), mesh.size(dimension), coordinate[dimension])
        for dimension, placement in enumerate(parameter.placements)
        if placement.is_shard()
    ]
    return whole.reshape(shape)[Box.cut(shape, shards).index]

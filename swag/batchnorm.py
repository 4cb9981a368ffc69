"""Statistics of normalisation layers, for weights that no training step has seen."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from swag._buffers import frozen_in, normalisations
from swag._forward import Forward, device_of, outputs_of, rows_of

__all__ = ["has_running_statistics", "recompute", "refuse_no_loader", "update_bn"]


def has_running_statistics(model: nn.Module, frozen: Collection[str] = ()) -> bool:
    """Whether a model has layers whose output depends on statistics of its training data.

    Parameters
    ----------
    model
        To look at.
    frozen
        Names of layers that do not count, since their statistics stay as they are.

    Examples
    --------
    >>> has_running_statistics(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    True
    """
    return any(name not in frozen for name, _ in normalisations(model))


def update_bn(loader: Iterable[Any], model: nn.Module, *, forward: Forward | None = None) -> None:
    """Recompute the running mean and variance of every batch normalisation in a model.

    Averaged or sampled weights give activations that the stored statistics do not describe. Only
    the normalisation layers are put in training mode while the data go through, so dropout stays
    off, no random number is drawn, and the modes are restored. Whatever a layer is given counts by
    its size, also where it is given something several times a batch, or for some batches alone; one
    that is given nothing has the statistics of a new layer. A layer that is in evaluation mode
    while other parts of the model are in training mode is frozen, and keeps its statistics.

    Parameters
    ----------
    loader
        Gives batches: tensors of inputs, or tuples or lists that begin with what the model takes.
        They are moved to the model's device. Not touched if the model has no such layer.
    model
        Its statistics are replaced, in place.
    forward
        As for `Posterior.predict`.

    Raises
    ------
    TypeError
        The loader is a tensor.
    ValueError
        The loader gives no batch.

    Examples
    --------
    >>> import torch, swag
    >>> model = torch.nn.BatchNorm1d(1)
    >>> swag.update_bn([torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])], model)
    >>> model.running_mean, model.running_var
    (tensor([4.]), tensor([2.]))
    """
    recompute(loader, model, frozen_in(model), forward)


def refuse_no_loader(loader: object) -> None:
    """Raise if something gives rows where batches are wanted.

    Raises
    ------
    TypeError
        It is a tensor.
    """
    if isinstance(loader, Tensor):
        raise TypeError("a loader gives batches, and a tensor its rows: give [tensor], or batches")


class _Counting:
    """Gives a layer the momentum with which all that it has been given counts the same."""

    def __init__(self) -> None:
        self._seen = 0

    def __call__(self, layer: _NormBase, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else kwargs["input"]
        values = given.numel() // layer.num_features
        self._seen += values
        layer.momentum = values / self._seen if self._seen else None


@torch.no_grad()
def recompute(
    loader: Iterable[Any], model: nn.Module, frozen: Collection[str], forward: Forward | None
) -> None:
    """`update_bn` for all layers but those with the names given."""
    refuse_no_loader(loader)
    layers: list[_NormBase] = [layer for name, layer in normalisations(model) if name not in frozen]
    if not layers:
        return
    modes = {module: module.training for module in model.modules()}
    momenta = [layer.momentum for layer in layers]
    device = device_of(model)
    model.eval()
    seen = 0
    hooks = []
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.train()
            hooks.append(layer.register_forward_pre_hook(_Counting(), with_kwargs=True))
        for batch in loader:
            seen += rows_of(batch)
            outputs_of(model, batch, device, forward)
    finally:
        for hook in hooks:
            hook.remove()
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, training in modes.items():
            module.training = training
    if not seen:
        raise ValueError(
            "the loader gave no batch, or no more: it is gone through for every network, and an "
            "iterator can be gone through once"
        )

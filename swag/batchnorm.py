"""Statistics of normalisation layers, for weights that no training step has seen."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from swag._buffers import Buffers, normalisations
from swag._forward import Forward, device_of, outputs_of, rows_of

__all__ = ["has_running_statistics", "recompute", "update_bn"]


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
    off, no random number is drawn, and the modes are restored. Batches count by their size. A layer
    that is in evaluation mode while other parts of the model are in training mode is frozen, and
    keeps its statistics.

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
    recompute(loader, model, Buffers.of(model).frozen, forward)


@torch.no_grad()
def recompute(
    loader: Iterable[Any], model: nn.Module, frozen: Collection[str], forward: Forward | None
) -> None:
    """`update_bn` for all layers but those with the names given."""
    layers: list[_NormBase] = [layer for name, layer in normalisations(model) if name not in frozen]
    if not layers:
        return
    modes = {module: module.training for module in model.modules()}
    momenta = [layer.momentum for layer in layers]
    device = device_of(model)
    model.eval()
    seen = 0
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.train()
        for batch in loader:
            rows = rows_of(batch)
            seen += rows
            for layer in layers:
                layer.momentum = rows / seen if seen else None
            outputs_of(model, batch, device, forward)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, training in modes.items():
            module.training = training
    if not seen:
        raise ValueError("the loader gave no batch: the statistics would be those of a new layer")

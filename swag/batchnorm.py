"""Statistics of normalisation layers, for weights that no training step has seen."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["first_tensor", "has_running_statistics", "update_bn"]


def has_running_statistics(model: nn.Module) -> bool:
    """Whether a model has layers whose output depends on statistics of its training data.

    Examples
    --------
    >>> has_running_statistics(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    True
    """
    return bool(_layers(model))


@torch.no_grad()
def update_bn(loader: Iterable[Any], model: nn.Module) -> None:
    """Recompute the running mean and variance of every batch normalisation in a model.

    Averaged or sampled weights give activations that the stored statistics do not describe. Only
    the normalisation layers are put in training mode while the data go through, so dropout stays
    off, no random number is drawn, and the modes are restored. Batches count by their size.

    Parameters
    ----------
    loader
        Gives batches: tensors of inputs, or tuples or lists whose first item is one. They are moved
        to the model's device. Not touched if the model has no such layer.
    model
        Its statistics are replaced, in place.

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
    layers = _layers(model)
    if not layers:
        return
    modes = {module: module.training for module in model.modules()}
    momenta = [layer.momentum for layer in layers]
    device = next(chain(model.parameters(), model.buffers())).device
    model.eval()
    seen = 0
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.train()
        for batch in loader:
            inputs = first_tensor(batch).to(device)
            seen += len(inputs)
            for layer in layers:
                layer.momentum = len(inputs) / seen if seen else None
            model(inputs)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, training in modes.items():
            module.training = training
    if not seen:
        raise ValueError("the loader gave no batch: the statistics would be those of a new layer")


def first_tensor(batch: Any) -> Tensor:
    """The inputs of a batch: the batch itself, or its first item.

    Raises
    ------
    TypeError
        Neither is a tensor.
    """
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(inputs, Tensor):
        raise TypeError(
            f"a batch is a tensor, or a tuple or list that begins with one, not {type(batch)}"
        )
    return inputs


def _layers(model: nn.Module) -> list[_NormBase]:
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]

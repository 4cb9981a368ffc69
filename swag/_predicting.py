"""Running a model with weights that are not its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from swag.batchnorm import first_tensor

__all__ = ["average_softmax", "batches_of", "weights_restored"]


@contextmanager
def weights_restored(model: nn.Module, parameters: Sequence[Tensor]) -> Iterator[None]:
    """Put parameters, buffers and modes of a model back at the end, bit for bit."""
    changed = [tensor.detach() for tensor in (*parameters, *model.buffers())]
    saved = [tensor.clone() for tensor in changed]
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(changed, saved, strict=True):
                tensor.copy_(value)
        for module, training in modes.items():
            module.training = training


def batches_of(inputs: Tensor | Iterable[Any], batch_size: int) -> Iterable[Any]:
    """Something that gives the same batches each time it is gone through.

    Raises
    ------
    ValueError
        That cannot be had from `inputs`.
    """
    if isinstance(inputs, Tensor):
        return torch.split(inputs, batch_size)
    if iter(inputs) is inputs:
        raise ValueError(
            "the inputs can be gone through only once, and every network has to: give a list or a "
            "DataLoader"
        )
    if isinstance(inputs, DataLoader) and isinstance(inputs.sampler, RandomSampler):
        raise ValueError(
            "the inputs are shuffled anew each time, so that predictions of different samples "
            "would be averaged: use a DataLoader with shuffle=False"
        )
    return inputs


@torch.no_grad()
def average_softmax(networks: Iterator[nn.Module], batches: Iterable[Any]) -> Tensor:
    """Average the probabilities that some networks give each input.

    Parameters
    ----------
    networks
        Each is used before the next is asked for.
    batches
        Gone through for each of them.

    Returns
    -------
    torch.Tensor
        Shape (n, ..., classes), float32.
    """
    sums: list[Tensor] = []
    count = 0
    for network in networks:
        network.eval()
        device = next(network.parameters()).device
        for i, batch in enumerate(batches):
            logits = network(first_tensor(batch).to(device))
            probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32)
            if count:
                sums[i] += probabilities
            else:
                sums.append(probabilities)
        count += 1
    return torch.cat(sums) / count

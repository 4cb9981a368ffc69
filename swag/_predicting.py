"""Averages over networks drawn from posteriors, in one pass over the inputs."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

import pmarray
from swag._forward import Forward, device_of, outputs_of, size_of
from swag._target import Target
from swag.errors import SwagWarning
from swag.sampling import Gaussian, Seeds, draw

__all__ = ["Activation", "Draws", "activation_of", "average", "batches_of"]

Activation = Literal["softmax", "sigmoid", "none"] | Callable[[Tensor], Tensor]
"""What makes outputs of a network into what is averaged."""


def activation_of(activation: Activation) -> Callable[[Tensor], Tensor]:
    """The function that is meant.

    Raises
    ------
    ValueError
        There is none of that name.
    """
    if callable(activation):
        return activation
    known = {"softmax": _softmax, "sigmoid": torch.sigmoid, "none": lambda outputs: outputs}
    if activation not in known:
        raise ValueError(
            f"activation={activation!r}: use {', '.join(map(repr, known))} or a function, such as "
            "torch.nn.Softmax(dim=1)"
        )
    return cast("Callable[[Tensor], Tensor]", known[activation])


def _softmax(outputs: Tensor) -> Tensor:
    if outputs.ndim != 2:
        raise ValueError(
            f"the network gives outputs of shape {tuple(outputs.shape)}, and which axis the "
            "classes are on has to be said: activation=torch.nn.Softmax(dim=1), for example"
        )
    return torch.softmax(outputs, dim=1)


def batches_of(inputs: Any, batch_size: int) -> Iterable[Any]:
    """The batches of some inputs.

    Raises
    ------
    ValueError
        They are shuffled.
    TypeError
        They are nothing that batches can be had from.
    """
    if isinstance(inputs, Tensor):
        if not inputs.ndim:
            raise TypeError("the inputs are a single number: their first axis is the batch")
        return torch.split(inputs, batch_size)
    if isinstance(inputs, Dataset):
        # A generator of its own, or the loader takes a number from the global one.
        return DataLoader(inputs, batch_size=batch_size, generator=torch.Generator())
    if isinstance(inputs, DataLoader):
        random = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
        if isinstance(inputs.sampler, random):
            raise ValueError(
                "the inputs are shuffled, and the rows of the result would be in an order that "
                "nobody knows: use a DataLoader with shuffle=False"
            )
        return inputs
    if isinstance(inputs, str | bytes | dict) or not isinstance(inputs, Iterable):
        raise TypeError(
            "the inputs are a tensor, a dataset, a DataLoader or an iterable of batches, not a "
            f"{type(inputs).__name__}"
        )
    return inputs


@dataclass(frozen=True)
class Draws:
    """Draws from one posterior, made a memory's worth at a time."""

    target: Target
    """Takes them."""
    gaussian: Gaussian
    """What is drawn from."""
    seeds: Seeds
    """One for each draw."""
    scale: float
    """Factor of the covariance."""
    memory_bytes: int
    """For draws and for what they are made from."""

    def once(self) -> Iterator[Tensor]:
        """The draws, one after another, shape (n,) each."""
        at_once = max(1, self.memory_bytes // 2 // (self.gaussian.anchor.nbytes or 1))
        for first in range(0, len(self.seeds), at_once):
            some = self.seeds.part(first, first + at_once)
            yield from draw(self.gaussian, some, self.scale, self.memory_bytes // 2)

    def kept(self) -> Iterable[Tensor]:
        """The same, to be gone through again: in memory if they find room, else on the disk."""
        anchor = self.gaussian.anchor
        if len(self.seeds) * anchor.nbytes <= self.memory_bytes // 2:
            return list(self.once())
        return _Spooled(self, len(anchor), anchor.dtype)


class _Spooled:
    """Draws in a file without a name, which goes when nobody reads it any more."""

    def __init__(self, draws: Draws, n: int, dtype: torch.dtype) -> None:
        self._group = pmarray.open_group(f"dram:?spill={tempfile.gettempdir()}")
        shape = (n, len(draws.seeds))
        name = str(dtype).removeprefix("torch.")
        self._columns = self._group.create("draws", shape, name, layout="col")
        for i, vector in enumerate(draws.once()):
            self._columns[:, i] = vector.numpy()

    def __iter__(self) -> Iterator[Tensor]:
        for i in range(self._columns.shape[1]):
            yield torch.from_numpy(self._columns[:, i])

    def __del__(self) -> None:
        if hasattr(self, "_group"):
            self._group.close()


@torch.no_grad()
def average(
    parts: Sequence[Draws],
    batches: Iterable[Any],
    activation: Callable[[Tensor], Tensor],
    forward: Forward | None,
    memory_bytes: int,
) -> Tensor:
    """Average what networks make of each input, over all draws.

    The batches are gone through once, as many at a time as find room; every network sees these
    before the next ones are asked for. So it does not matter whether they could be had again, or
    in which order.

    Parameters
    ----------
    parts
        What is drawn; each into the same model.
    batches
        Of inputs.
    activation
        Applied to each output, as float32 or wider.
    forward
        As for `outputs_of`.
    memory_bytes
        For the batches that are held at a time.

    Returns
    -------
    torch.Tensor
        Shape (n, ...), in the order in which the inputs came.

    Raises
    ------
    ValueError
        There is no batch.
    """
    model = parts[0].target.model
    blocks = _blocks(batches, memory_bytes)
    first, second = next(blocks, None), next(blocks, None)
    if first is None:
        raise ValueError("the inputs gave no batch: there is nothing to predict")
    several = second is not None
    draws = [part.kept() if several else part.once() for part in parts]
    statistics: list[list[Tensor] | None] = [None] * sum(len(part.seeds) for part in parts)
    effect = _Effect()
    results: list[Tensor] = []
    for block in chain([first], [] if second is None else chain([second], blocks)):
        sums: list[Tensor] = []
        networks = (
            (part.target, vector)
            for part, vectors in zip(parts, draws, strict=True)
            for vector in vectors
        )
        for i, (target, vector) in enumerate(networks):
            target.put(vector, statistics[i])
            if several and statistics[i] is None:
                statistics[i] = target.statistics()
            for j, outputs in enumerate(_run(model, block, forward)):
                effect.see(i, j, vector, outputs)
                wide = outputs if outputs.dtype == torch.float64 else outputs.float()
                found = activation(wide)
                if i:
                    sums[j] += found
                else:
                    sums.append(found.clone())
        results += [total / len(statistics) for total in sums]
        effect.over()
    return torch.cat(results)


def _run(model: nn.Module, block: Sequence[Any], forward: Forward | None) -> Iterator[Tensor]:
    model.eval()
    device = device_of(model)
    for batch in block:
        outputs = outputs_of(model, batch, device, forward)
        if not isinstance(outputs, Tensor):
            raise TypeError(
                f"the model gives a {type(outputs).__name__}, not a tensor: give forward=, for "
                "example forward=lambda model, batch: model(**batch).logits"
            )
        yield outputs


def _blocks(batches: Iterable[Any], memory_bytes: int) -> Iterator[Sequence[Any]]:
    """As many batches as find room, at least one, then as many more."""
    if isinstance(batches, list | tuple):  # in memory already
        if batches:
            yield batches
        return
    block: list[Any] = []
    used = 0
    for batch in batches:
        size = size_of(batch)
        if block and used + size > memory_bytes:
            yield block
            block, used = [], 0
        block.append(batch)
        used += size
    if block:
        yield block


class _Effect:
    """Whether weights make a difference; says so where they do not."""

    def __init__(self) -> None:
        self._weights: Tensor | None = None
        self._outputs: Tensor | None = None
        self._none = self._decided = False

    def see(self, network: int, batch: int, weights: Tensor, outputs: Tensor) -> None:
        """Look at the outputs of the first batch."""
        if self._decided or batch:
            return
        if not network:
            self._weights, self._outputs = weights.clone(), outputs.clone()
        elif self._weights is not None and not torch.equal(self._weights, weights):
            self._none = self._outputs is not None and torch.equal(self._outputs, outputs)
            self._decided = not self._none

    def over(self) -> None:
        """All networks were seen."""
        if self._none and not self._decided:
            warnings.warn(
                "networks of different weights give the same outputs, bit for bit: the model seems "
                "to compute with other weights than those collected",
                SwagWarning,
                stacklevel=4,
            )
        self._decided = True
        self._weights = self._outputs = None

"""Many networks, one pass over the inputs: what posteriors predict."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from swag._forward import Forward, rows_of, size_of
from swag._networks import Networks, Source
from swag._reductions import Reduction
from swag._target import Target
from swag.errors import SwagWarning

__all__ = ["Watch", "batches_of", "reduced", "rows_in"]

R = TypeVar("R")

Watch = Callable[[int, int | None], None]
"""Called with the inputs that networks have seen, each for each, and how many there will be."""


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
        samplers = [inputs.sampler, getattr(inputs.batch_sampler, "sampler", None)]
        if any(isinstance(one, random) or getattr(one, "shuffle", False) for one in samplers):
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


def rows_in(inputs: Any) -> int | None:
    """How many inputs there are, where that can be told without going through them."""
    if isinstance(inputs, DataLoader):
        inputs = None if inputs.batch_sampler is None or inputs.drop_last else inputs.dataset
    if isinstance(inputs, Tensor):
        return len(inputs)
    if isinstance(inputs, Dataset) and hasattr(inputs, "__len__"):
        return len(inputs)
    return None


@torch.no_grad()
def reduced(
    parts: Sequence[tuple[Target, Source]],
    batches: Iterable[Any],
    reduction: Reduction[R],
    forward: Forward | None,
    memory_bytes: int,
    draws_at_once: int | None = None,
    watch: Callable[[int], None] | None = None,
) -> R:
    """What a reduction makes of the outputs of networks, over all draws.

    The batches are gone through once, as many at a time as find room; every network sees these
    before the next ones are asked for. So it does not matter whether they could be had again, or
    in which order.

    Parameters
    ----------
    parts
        What is drawn, and what takes it; all of the same model.
    batches
        Of inputs.
    reduction
        Takes the outputs.
    forward
        As for `outputs_of`.
    memory_bytes
        For the batches that are held at a time, and again for networks that run at once.
    draws_at_once
        As for `Networks`.
    watch
        Called with the number of inputs that networks have seen.

    Raises
    ------
    ValueError
        There is no batch, or the outputs of two do not fit together.
    """
    blocks = _blocks(batches, memory_bytes)
    first, second = next(blocks, None), next(blocks, None)
    if first is None:
        raise ValueError("the inputs gave no batch: there is nothing to predict")
    several = second is not None
    runs = [
        Networks(target, draws, reduction.take, forward, memory_bytes, draws_at_once, again=several)
        for target, draws in parts
    ]
    effect, shapes = _Effect(), _Shapes()
    seen = 0
    for block in chain([first], [] if second is None else chain([second], blocks)):
        before = 0
        for run in runs:
            for network, batch, weights, taken in run.through(block):
                effect.see(before + network, batch, weights, taken[0])
                shapes.see(taken)
                reduction.add(before + network, batch, taken)
                if watch is not None:
                    seen += rows_of(block[batch])
                    watch(seen)
            before += len(run)
        reduction.over()
        effect.over()
    return reduction.result()


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


class _Shapes:
    """Whether the outputs of batches can be put one after another; raises where they cannot."""

    def __init__(self) -> None:
        self._first: list[torch.Size] | None = None

    def see(self, taken: Sequence[Tensor]) -> None:
        """Compare the axes behind the first."""
        found = [part.shape for part in taken]
        if self._first is None:
            self._first = found
        for one, other in zip(self._first, found, strict=True):
            if one[1:] != other[1:] or len(one) != len(other) or not other:
                raise ValueError(
                    f"a batch gives outputs of shape {tuple(other)}, and the first one of shape "
                    f"{tuple(one)}: the first axis is that of the inputs, which squeeze() may take "
                    "away, and all others are the same in each batch: pad the inputs, or make the "
                    "outputs fit by forward="
                )


class _Effect:
    """Whether weights make a difference; says so where they do not."""

    def __init__(self) -> None:
        self._weights: Tensor | None = None
        self._outputs: Tensor | None = None
        self._none = self._decided = False

    def see(self, network: int, batch: int, weights: Tensor, outputs: Tensor) -> None:
        """Look at the outputs of the first batch."""
        if self._decided or batch or not outputs.numel():
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
                stacklevel=6,  # through no_grad, _reduced and predict, to who called that
            )
        self._decided = True
        self._weights = self._outputs = None

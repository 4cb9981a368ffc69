"""Minibatches in a shuffled order that a seed determines and two integers can resume."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["ShuffledBatches"]


class ShuffledBatches(Iterator[Tensor]):
    """Endless minibatches of indices, each epoch one permutation of the whole data set.

    The permutation of an epoch follows from the seed and the epoch's number alone, so that the
    position is two integers and resuming in the middle of an epoch costs one permutation.

    Parameters
    ----------
    length
        Number of samples.
    batch_size
        Indices in a minibatch; the last of an epoch holds the rest.
    seed
        The same seed gives the same order.

    Raises
    ------
    ValueError
        A number below 1.

    Examples
    --------
    >>> batches = ShuffledBatches(5, batch_size=2, seed=0)
    >>> first = [next(batches) for _ in range(3)]
    >>> [len(indices) for indices in first], sorted(torch.cat(first).tolist())
    ([2, 2, 1], [0, 1, 2, 3, 4])
    >>> place = batches.state_dict()
    >>> place
    {'epoch': 1, 'batch': 0}
    >>> again = ShuffledBatches(5, batch_size=2, seed=0)
    >>> again.load_state_dict(place)
    >>> bool(next(again).equal(next(batches)))
    True
    """

    def __init__(self, length: int, *, batch_size: int, seed: int) -> None:
        if length < 1 or batch_size < 1:
            raise ValueError(
                f"neither {length} samples nor batches of {batch_size} can be iterated over"
            )
        self._length = length
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0
        self._batch = 0
        self._order = self._permutation()

    def __len__(self) -> int:
        """Minibatches in an epoch."""
        return math.ceil(self._length / self._batch_size)

    def __next__(self) -> Tensor:
        """The next minibatch: indices of shape (batch_size,) or fewer, int64."""
        start = self._batch * self._batch_size
        indices = self._order[start : start + self._batch_size]
        self._batch += 1
        if self._batch == len(self):
            self._epoch, self._batch = self._epoch + 1, 0
            self._order = self._permutation()
        return indices

    def state_dict(self) -> dict[str, int]:
        """The position: the epoch and the minibatch in it that come next, both from 0."""
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position that `state_dict` gave."""
        self._epoch, self._batch = int(state["epoch"]), int(state["batch"])
        self._order = self._permutation()

    def _permutation(self) -> Tensor:
        # SeedSequence mixes the two numbers: seed 1 of epoch 0 and seed 0 of epoch 1 are unrelated.
        mixed = np.random.SeedSequence([self._seed, self._epoch]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        return torch.randperm(self._length, generator=generator, device="cpu")

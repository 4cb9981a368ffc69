"""Draws one after another, in memory or on the disk, from one reading of the trajectory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import pmarray
from swag._target import Target
from swag.sampling import Gaussian, Seeds, draw

__all__ = ["Draws"]


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

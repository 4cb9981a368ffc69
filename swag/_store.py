"""What a posterior keeps in its group.

=================== =============== ====================================================
name                shape           contents
=================== =============== ====================================================
``anchor``          (n,)            weights at the first collection, float32 or float64
``trajectory``      (n, columns)    iterates less the anchor, float32, column-major
``mean``            (n,)            running mean less the anchor, float32
``sum_of_squares``  (n,)            sum of squared deviations, float32
=================== =============== ====================================================

Iterate t, from 0, is column t of the trajectory; where only the last K are kept, it is column
``t % (K + C)``, C being the number of collections from one checkpoint to the next. The C spare
columns are what makes the moments recoverable: those of a checkpoint are rolled forward with the
columns since, none of which is overwritten before the next checkpoint is durable. With K = 0 there
is no trajectory, and a checkpoint is where a reopened store goes on.

Every collection is one transaction: its column and the counters, and, where a checkpoint is due,
the moments and whatever the caller adds to it.

The attribute ``swag`` holds what never changes: the format's version, the table of parameters, K
and C. The attribute ``swag.progress`` holds what does: the iterates collected, and the iterates in
the last checkpoint.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import pmarray
from swag._moments import accumulate
from swag._parameters import ParameterTable
from swag._trajectory import Columns, row_blocks
from swag.errors import StoreError, WindowError

__all__ = ["Configuration", "Moments", "Store"]

Vector = NDArray[np.float32]
Location = str | os.PathLike[str] | pmarray.Group

_CONSTANT = "swag"
_PROGRESS = "swag.progress"
_FORMAT = 1
_AUTO_CACHE_BYTES = 256 << 20
_ROLL_MEMORY_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Configuration:
    """What never changes in a store."""

    table: ParameterTable
    """Names, shapes and places of the parameters."""
    max_rank: int | None
    """Iterates kept: the last so many, or None for all."""
    checkpoint_every: int
    """Collections from one checkpoint to the next."""

    def to_json(self) -> dict[str, Any]:
        """As the attribute holds it."""
        return {
            "format": _FORMAT,
            "max_rank": self.max_rank,
            "checkpoint_every": self.checkpoint_every,
            "parameters": self.table.to_json(),
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read the attribute back.

        Raises
        ------
        StoreError
            It is of a format that is not known here, or damaged.
        """
        if not isinstance(value, dict) or "format" not in value:
            raise StoreError("the store's description is damaged")
        if value["format"] != _FORMAT:
            raise StoreError(f"the store has format {value['format']}, known here is {_FORMAT}")
        try:
            table = ParameterTable.from_json(value["parameters"])
            max_rank, every = value["max_rank"], value["checkpoint_every"]
        except KeyError as error:
            raise StoreError(f"the store's description is damaged: it lacks {error}") from error
        ranks = () if max_rank is None else (max_rank + 1 if type(max_rank) is int else max_rank,)
        if any(type(number) is not int or not 0 < number < 1 << 53 for number in (*ranks, every)):
            raise StoreError(
                f"the store's description is damaged: max_rank={max_rank!r:.40}, "
                f"checkpoint_every={every!r:.40}"
            )
        return cls(table, max_rank, every)


@dataclass(frozen=True, slots=True)
class Moments:
    """Running moments in anchor coordinates."""

    count: int
    """Columns in them."""
    mean: Vector
    """Shape (n,)."""
    sum_of_squares: Vector
    """Shape (n,)."""

    @classmethod
    def none(cls, n: int) -> Self:
        """Moments of no columns."""
        return cls(0, np.zeros(n, np.float32), np.zeros(n, np.float32))

    def copy(self) -> Moments:
        """The same in memory of their own."""
        return Moments(self.count, self.mean.copy(), self.sum_of_squares.copy())

    def rolled_forward(self, columns: Columns) -> Moments:
        """Take further columns in, bit for bit as they would have been one by one.

        Reads every column once, in blocks of rows; copies.
        """
        mean, squares = self.mean.copy(), self.sum_of_squares.copy()
        if len(columns):
            for start, stop in row_blocks(len(mean), len(columns), _ROLL_MEMORY_BYTES):
                for which, values in columns.pieces(start, stop, _ROLL_MEMORY_BYTES):
                    for i, column in enumerate(values, self.count + which.start + 1):
                        accumulate(column, mean[start:stop], squares[start:stop], i)
        return Moments(self.count + len(columns), mean, squares)


class Store:
    """A posterior's arrays and counters in a group.

    Parameters
    ----------
    group
        Holds them.
    owned
        Whether `close` closes the group.
    configuration
        Of the store.
    """

    def __init__(self, group: pmarray.Group, configuration: Configuration, *, owned: bool) -> None:
        self.group = group
        self.configuration = configuration
        self.table = configuration.table
        self._owned = owned
        try:
            self._anchor = group["anchor"]
            self._mean = group["mean"]
            self._squares = group["sum_of_squares"]
            self.trajectory = None if configuration.max_rank == 0 else group["trajectory"]
            progress = group.attrs[_PROGRESS]
            self.checkpointed: int = progress["checkpointed"]
            self.collected: int = progress["collected"]
            self._latest: tuple[range, Moments] | None = None
            self._check()
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"the posterior in {group.url} is damaged: {error}") from error

    def _check(self) -> None:
        """Raise ValueError where arrays and counters do not belong together."""
        n = self.table.size
        vectors = [self._anchor, self._mean, self._squares]
        if self.trajectory is not None and self.trajectory.shape[:1] != (n,):
            raise ValueError(f"its trajectory has the shape {self.trajectory.shape}")
        if any(vector.shape != (n,) for vector in vectors):
            raise ValueError(f"its vectors have not {n} items")
        counters = self.checkpointed, self.collected
        if any(type(count) is not int for count in counters) or not (
            0 <= counters[0] <= counters[1] < 1 << 53
        ):
            raise ValueError(f"its counters are {counters}")

    @classmethod
    def create(
        cls, location: Location, model: nn.Module, max_rank: int | None, checkpoint_every: int
    ) -> Self:
        """Open the posterior at a location to go on with it, or make one there.

        Raises
        ------
        StoreError
            There is a posterior of another model or configuration; the message says what differs.
        ModelError
            The model cannot be collected.
        """
        configuration = Configuration(ParameterTable.of(model), max_rank, checkpoint_every)
        n = configuration.table.size
        group, owned = _open(location, "a", n)
        try:
            if _CONSTANT in group.attrs:
                there = Configuration.from_json(group.attrs[_CONSTANT])
                differences = there.table.differences(model)
                for name in ("max_rank", "checkpoint_every"):
                    mine, theirs = getattr(configuration, name), getattr(there, name)
                    if mine != theirs:
                        differences.append(f"{name} is {mine}, not {theirs}")
                if differences:
                    raise StoreError(
                        f"{group.url} holds a posterior of another kind: {'; '.join(differences)}"
                    )
                return cls(group, there, owned=owned)
            dtype = str(configuration.table.dtype).removeprefix("torch.")
            with group.transaction():
                group.create("anchor", (n,), dtype)
                group.create("mean", (n,), "float32")
                group.create("sum_of_squares", (n,), "float32")
                if configuration.max_rank != 0:
                    group.create("trajectory", (n, 0), "float32", layout="col")
                group.attrs.update(
                    {
                        _PROGRESS: {"collected": 0, "checkpointed": 0},
                        _CONSTANT: configuration.to_json(),
                    }
                )
            return cls(group, configuration, owned=owned)
        except BaseException:
            if owned:
                group.close()
            raise

    @classmethod
    def open(cls, location: Location) -> Self:
        """Open the posterior at a location to read it.

        Raises
        ------
        StoreError
            There is none, or it is damaged.
        pmarray.errors.GroupNotFoundError
            There is no group.
        """
        group, owned = _open(location, "r", 0)
        try:
            if _CONSTANT not in group.attrs:
                raise StoreError(f"{group.url} holds no posterior")
            configuration = Configuration.from_json(group.attrs[_CONSTANT])
            if owned and _cache_for(configuration.table.size) != "auto":
                url = group.url
                group.close()
                group, owned = _open(url, "r", configuration.table.size)
            return cls(group, configuration, owned=owned)
        except BaseException:
            if owned:
                group.close()
            raise

    @property
    def ring(self) -> int | None:
        """Columns that are used in turn, where not all iterates are kept."""
        rank = self.configuration.max_rank
        return None if rank is None else rank + self.configuration.checkpoint_every

    @property
    def kept(self) -> int:
        """Number of the last iterates that the trajectory holds for good."""
        rank = self.configuration.max_rank
        return self.collected if rank is None else min(rank, self.collected)

    def slot(self, iterate: int) -> int:
        """Index of the column that holds an iterate."""
        return iterate if self.ring is None else iterate % self.ring

    def columns(self, iterates: range) -> Columns:
        """The columns of some iterates."""
        if self.trajectory is None:
            raise WindowError("no iterates were kept: the posterior was collected with max_rank=0")
        return Columns(self.trajectory, iterates, self.ring)

    # -- anchor and moments ---------------------------------------------------------------------

    def read_anchor(self) -> Tensor:
        """The weights at the first collection, shape (n,), of the table's dtype."""
        return torch.from_numpy(np.asarray(self._anchor[:]))

    def write_anchor(self, anchor: Tensor) -> None:
        """Store the weights at the first collection."""
        self._anchor[:] = anchor.numpy()

    def moments_of(self, iterates: range) -> Moments:
        """Moments of some iterates, which must be held; the latest ones asked for are at hand."""
        if self._latest is None or self._latest[0] != iterates:
            none = Moments.none(self.table.size)
            self._latest = iterates, none.rolled_forward(self.columns(iterates))
        return self._latest[1]

    def moments(self) -> Moments:
        """Moments of all iterates: those of the last checkpoint, rolled forward.

        Raises
        ------
        StoreError
            The iterates since are not there.
        """
        moments = Moments(self.checkpointed, self._mean[:], self._squares[:])
        since = range(self.checkpointed, self.collected)
        if not since:
            return moments
        held = 0 if self.trajectory is None else self.trajectory.shape[1]
        if len(since) > held or max(map(self.slot, since)) >= held:
            raise StoreError(
                f"the posterior in {self.group.url} is damaged: iterates {since.start} to"
                f" {since.stop - 1} are not all there"
            )
        return moments.rolled_forward(self.columns(since))

    def rewind(self) -> None:
        """Cut off what was collected since the last checkpoint."""
        trajectory = self.trajectory
        if self.collected == self.checkpointed:
            return
        with self.group.transaction():
            if trajectory is not None and self.ring is None:
                trajectory.resize((trajectory.shape[0], self.checkpointed))
            self.collected = self.checkpointed
            self._note()

    # -- progress -------------------------------------------------------------------------------

    def record(self, collected: int) -> None:
        """Note that so many iterates are collected; in the transaction that adds the last."""
        self.collected = collected
        if self.trajectory is not None:  # else only a checkpoint keeps what was collected
            self._note()

    def checkpoint(self, moments: Moments) -> None:
        """Store the moments of all iterates collected; in a transaction."""
        self._mean[:] = moments.mean
        self._squares[:] = moments.sum_of_squares
        self.collected = self.checkpointed = moments.count
        self._note()

    def _note(self) -> None:
        self.group.attrs[_PROGRESS] = {
            "collected": self.collected,
            "checkpointed": self.checkpointed,
        }

    def close(self) -> None:
        """Close the group, if it was opened here."""
        if self._owned:
            self.group.close()


def _open(location: Location, mode: str, n: int) -> tuple[pmarray.Group, bool]:
    """Open a location; also say whether the caller has to close it."""
    if isinstance(location, pmarray.Group):
        return location, False
    return pmarray.open_group(location, mode=mode, cache=_cache_for(n)), True


def _cache_for(n: int) -> int | str:
    """The cache in which the columns of a large model find room: two on loan, two on their way."""
    need = 4 * (4 * n + 4096)
    return "auto" if need <= _AUTO_CACHE_BYTES else need

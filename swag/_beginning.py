"""What is decided before the first iterate: what is collected, where, and whether it finds room."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

import pmarray
from swag._buffers import refuse_buffers
from swag._counts import count
from swag._held import is_sharded
from swag._location import Location, Mode
from swag._parameters import DTYPES, ParameterTable, chosen_of
from swag._records import Configuration
from swag._schedule import Schedule
from swag._selecting import Chosen, Parameters
from swag._sharding.parts import Part, open_part
from swag._space import bytes_in_words, free_bytes, is_in_memory
from swag._store import Store
from swag._target import refuse_drawn
from swag.errors import SwagWarning

__all__ = ["Begun", "OnFull", "OnNonfinite", "Wishes", "begin"]

OnNonfinite = Literal["skip", "raise"]
OnFull = Literal["raise", "stop"]

_SPARE_BYTES = 4 << 30
_SPARE_IN_MEMORY_BYTES = 256 << 20
"""What the spare columns of a ring may take, where nobody says how many there are to be."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """The arguments of `swag.SWAG`, which explains them.

    Raises
    ------
    ValueError
        One is outside its range, or two do not go together.
    """

    max_rank: int | None
    mode: Mode
    start: int
    every: int
    checkpoint_every: int | None
    has_own_checkpoints: bool
    """Whether the caller adds something to checkpoints."""
    on_nonfinite: OnNonfinite
    on_full: OnFull
    expected: int | None
    parameters: Parameters | None
    dtype: torch.dtype | None

    def __post_init__(self) -> None:
        for counted, least in (("max_rank", 0), ("checkpoint_every", 1), ("expected", 0)):
            if (number := getattr(self, counted)) is not None:
                object.__setattr__(self, counted, count(counted, number, least))
        for name, known in (
            ("mode", Mode),
            ("on_nonfinite", OnNonfinite),
            ("on_full", OnFull),
        ):
            if (value := getattr(self, name)) not in get_args(known):
                raise ValueError(f"{name}={value!r}: use one of {str(get_args(known))[1:-1]}")
        if self.dtype is not None and self.dtype not in DTYPES.values():
            kinds = ", ".join(f"torch.{name}" for name in DTYPES)
            raise ValueError(f"dtype={self.dtype!r}: iterates may be {kinds}")
        if self.dtype is not None and self.max_rank == 0:
            raise ValueError(
                f"dtype={self.dtype} is of the iterates kept, and max_rank=0 keeps none"
            )
        Schedule(self.start, self.every)

    def refuse_spread(self) -> None:
        """Raise if they cannot be had of a model that is spread over processes."""
        if self.has_own_checkpoints:
            raise ValueError(
                "on_checkpoint= is for a model in one process: save the state of training with "
                "torch.distributed.checkpoint after flush(), and go back by rewind(to=...)"
            )
        if self.on_full != "raise":
            raise ValueError(
                "on_full='stop' is for a model in one process: others would wait for this one"
            )


@dataclass(frozen=True, slots=True)
class Begun:
    """A store that is ready to be collected into."""

    store: Store
    """Of this process."""
    part: Part | None
    """What it is of a posterior that is spread over processes."""
    whole: ParameterTable
    """Of the model."""
    chosen: Chosen
    """Which of its parameters are collected."""


def begin(model: nn.Module, location: Location, wishes: Wishes) -> Begun:
    """Make the store of a model, or open the one there; errors and warnings as `swag.SWAG`."""
    refuse_drawn(model)
    refuse_buffers(model)
    chosen = chosen_of(wishes.parameters, model)
    whole = ParameterTable.of(model, chosen)
    url = location.url if isinstance(location, pmarray.Group) else os.fspath(location)
    spare = _SPARE_IN_MEMORY_BYTES if is_in_memory(url) else _SPARE_BYTES
    configuration = Configuration.of(
        whole, wishes.max_rank, wishes.checkpoint_every, wishes.dtype, spare
    )
    trained = whole.find(model)

    def differences(there: ParameterTable) -> list[str]:
        return there.differences(model, chosen)

    if is_sharded(trained):
        wishes.refuse_spread()
        part = open_part(location, configuration, trained, wishes.mode, differences)
        begun = Begun(part.store, part, whole, chosen)
    else:
        store = Store.create(location, configuration, wishes.mode, differences)
        # In the order of what is there: a model may register the same parameters in another.
        begun = Begun(store, None, store.table, chosen)
    try:
        _tell_of_room(begun.store, wishes.expected)
    except BaseException:  # the warning, made an error
        begun.store.close()
        raise
    return begun


def _tell_of_room(store: Store, expected: int | None) -> None:
    """Warn if the columns to come, as far as their number is known, find no room."""
    columns, free = expected if store.ring is None else store.ring, free_bytes(store.url)
    if columns is None or free is None or store.trajectory is None:
        return
    needed = max(0, columns - store.trajectory.shape[1]) * store.column_bytes
    if needed > free:
        warnings.warn(
            f"{columns} iterates of {bytes_in_words(store.column_bytes)} each take "
            f"{bytes_in_words(needed)} more in {store.url}, and {bytes_in_words(free)} are free: "
            "collect fewer (every=, start=, max_rank=), or narrower ones (dtype=torch.bfloat16)",
            SwagWarning,
            stacklevel=4,
        )

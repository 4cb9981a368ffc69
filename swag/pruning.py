"""Giving back the space of iterates that no posterior will use."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

import pmarray
from swag._counts import count
from swag._joining import Joining
from swag._location import Location
from swag._records import Configuration
from swag._sharding.manifest import PART, read_manifest
from swag._store import Store
from swag.errors import StoreError, WindowError

__all__ = ["prune"]

_CHECKPOINTS = "checkpoints"


def prune(store: Location, start: int = 0, every: int = 1) -> int:
    """Keep every so many iterates of a store from one on; the space of the others is given back.

    What remains is what `swag.Posterior.window` of the same numbers has (the weights to the bit,
    what is computed from them to float32 rounding), and may be collected on. One transaction: after
    a crash the store is as before or pruned. The columns that move are in the journal meanwhile, so
    that the medium must have room for them once more.

    Parameters
    ----------
    store
        URL of a group, or an open group. Nobody else may be writing to it.
    start
        Number of the first iterate to keep, from 0.
    every
        Keep every so many from there.

    Returns
    -------
    int
        Iterates that remain.

    Raises
    ------
    StoreError
        The group holds no posterior, or one that keeps the last iterates only, or that several
        processes have collected.
    WindowError
        None would remain.
    pmarray.errors.GroupLockedError
        It is being collected.

    Examples
    --------
    >>> import torch, swag
    >>> model = torch.nn.Linear(4, 2)
    >>> with swag.SWAG(model, store="memmap:./posterior") as posterior:
    ...     for _ in range(10):
    ...         _ = torch.nn.init.normal_(model.weight)
    ...         posterior.update_parameters(model)
    >>> prune("memmap:./posterior", start=4, every=2)
    3
    >>> with swag.load("memmap:./posterior") as posterior:
    ...     posterior.n_averaged
    3
    """
    start, every = count("start", start), count("every", every, 1)
    if not isinstance(store, pmarray.Group) and read_manifest(store) is not None:
        raise StoreError(
            f"{store} is in parts, which cannot lose iterates all at once: choose them by "
            "load(store).window(...)"
        )
    owned = not isinstance(store, pmarray.Group)
    group = store if isinstance(store, pmarray.Group) else pmarray.open_group(store, mode="r+")
    try:
        return _prune(group, start, every)
    finally:
        if owned:
            group.close()


def _prune(group: pmarray.Group, start: int, every: int) -> int:
    if "swag" not in group.attrs:
        raise StoreError(f"{group.url} holds no posterior")
    if PART in group.attrs:
        raise StoreError(
            f"{group.url} is a part of a posterior, and would not fit the others without iterates"
        )
    configuration = Configuration.from_json(group.attrs["swag"])
    store = Store(group, configuration, owned=False)
    if configuration.max_rank is not None:
        raise StoreError(
            f"{group.url} keeps no iterates (max_rank=0), and there are none to take out"
            if not configuration.max_rank
            else f"{group.url} keeps the last {configuration.max_rank} iterates alone, in columns "
            "that are used in turn: taking some out would free no space"
        )
    store.become_writer(Joining(group))  # whoever was writing until now may have collected more
    trajectory, progress = store.trajectory, store.progress()
    assert trajectory is not None
    kept = range(start, progress.collected, every)
    if not kept:
        raise WindowError(f"{progress.collected} iterates are collected: none from {start} on")
    if len(kept) == progress.collected:
        return len(kept)
    with Joining(group):
        for place, iterate in enumerate(kept):
            if place != iterate:  # which comes later, so that nothing is read that was overwritten
                trajectory[:, place] = trajectory[:, iterate]
        store.statistics.keep(kept)
        store.cut(len(kept))
        group["anchor"][:] = trajectory[:, 0]
        store._note(
            replace(
                progress,
                collected=len(kept),
                checkpointed=len(kept),
                in_moments=0,
                rewound=progress.rewound + 1,
            )
        )
        if _CHECKPOINTS in group and len(group[_CHECKPOINTS]):
            # Of the checkpoints of training, all iterates that are left are known at the last.
            last = int(group[_CHECKPOINTS][-1, 0])
            group[_CHECKPOINTS].resize((1, 2))
            group[_CHECKPOINTS][:] = np.array([[last, len(kept)]])
    group.flush()
    return len(kept)

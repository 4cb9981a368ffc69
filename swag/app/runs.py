"""A training run on MNIST and its posterior in one store: make it, describe it, read it back."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import pmarray
from swag._sharding.manifest import part_place, read_manifest
from swag._state import pack, unpack
from swag.app.recipe import Recipe
from swag.app.training import Step, Trainer
from swag.collect import SWAG
from swag.datasets import mnist_part
from swag.errors import StoreError, WindowError
from swag.models import build
from swag.posterior import Posterior, load
from swag.preemption import Preemption

__all__ = ["Done", "Run", "describe", "read", "train"]

# Names in the group beside those of the posterior itself.
_ATTRIBUTE = "training"
_STATE = "training.state"
_DESCRIPTION = "training.description"
_STEP = "training.step"
_SECONDS = "training.seconds"


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a call of `train`."""

    steps: int
    """Minibatches of the whole training."""
    n_averaged: int
    """Iterates collected."""
    trained: bool
    """Whether there was anything left to do."""
    finished: bool
    """Whether nothing is left; else a signal ended the training after a step."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a store tells of the training that made it."""

    recipe: Recipe
    """As the run was started with."""
    step: int
    """Minibatches done."""
    model: nn.Module
    """The network with the weights of the last iterate, in evaluation mode, on the CPU."""
    losses: NDArray[np.float64]
    """Loss of each minibatch, shape (steps,), nats; NaN for those not done."""
    seconds: NDArray[np.float64]
    """Wall time of each minibatch, shape (steps, 2): training, and collection or NaN.

    Training has what the optimizer's step waits for the iterate before to be copied.
    """


def train(
    store: str,
    recipe: Recipe,
    *,
    data: Path | str | None = None,
    fresh: bool = False,
    checkpoint_every: int = 100,
    watch: Callable[[Trainer, Step, int], None] | None = None,
) -> Done:
    """Train on MNIST by a recipe, collecting into a store.

    The state of training is stored with the posterior every `checkpoint_every` minibatches, in one
    transaction. Where the store holds a training by the same recipe that was interrupted, it goes
    on from there, and ends with the same numbers, bit for bit, as if it had not been. On the main
    thread, SIGTERM ends it after a step, with the state stored.

    Parameters
    ----------
    store
        URL of the group.
    recipe
        What to do. Its `threads` is not applied; see :func:`torch.set_num_threads`.
    data
        Folder of the MNIST files; None for those shipped.
    fresh
        Replace what the store holds.
    checkpoint_every
        Minibatches, or collections once there are any, after which the state is stored.
    watch
        Called after each minibatch with the trainer, the step, and the bytes of iterates given to
        the store so far.

    Returns
    -------
    Done
        How much there is, and whether it was there before.

    Raises
    ------
    StoreError
        The store holds something else, or a training by another recipe; the message says what
        differs.
    pmarray.errors.GroupLockedError
        It is being trained already.
    DatasetError
        The data are missing or damaged.
    """
    images = mnist_part("train", data)
    model = build(recipe.model, seed=recipe.seed)
    with pmarray.open_group(store, mode="w" if fresh else "a") as group:
        _claim(group, recipe, checkpoint_every)
        state = None if fresh else _saved_state(group)
        before = None if state is None else group[_SECONDS][:]
        claimed = dict(group.attrs)

    def save(group: pmarray.Group) -> None:
        _save(group, trainer, seconds)

    main = threading.current_thread() is threading.main_thread()
    # By its URL: in a group of its own the posterior copies iterates while training goes on.
    with (
        Preemption((signal.SIGTERM,) if main else ()) as preemption,
        SWAG(
            model,
            store=store,
            max_rank=recipe.rank,
            mode="a",
            checkpoint_every=checkpoint_every,
            on_checkpoint=save,
        ) as posterior,
    ):
        group = posterior.group
        if _ATTRIBUTE not in group.attrs:  # of memory without a name, the claim is gone
            group.attrs[_ATTRIBUTE] = claimed[_ATTRIBUTE]

        def collect(model: nn.Module) -> None:
            posterior.update_parameters(model, loss=trainer.losses[trainer.step - 1])

        trainer = Trainer(model, images, recipe, collect)
        posterior.attach(trainer.optimizer)
        posterior.rewind()
        if state is not None:
            trainer.load_state_dict(_with_weights(state, posterior))
        seconds = np.full((trainer.n_steps, 2), np.nan) if before is None else before
        begun = trainer.step
        column_bytes = 0 if recipe.rank == 0 else sum(p.nbytes for p in model.parameters())
        for step in trainer:
            seconds[step.index] = step.train_seconds, step.collect_seconds
            if not posterior.n_averaged and trainer.step % checkpoint_every == 0:
                with group.transaction(wait=False):  # the burn-in is worth keeping too
                    save(group)
            if watch is not None:
                watch(trainer, step, posterior.n_averaged * column_bytes)
            if preemption.requested:
                break
        posterior.flush()
        with group.transaction():
            save(group)
        finished = trainer.step == trainer.n_steps
        return Done(trainer.step, posterior.n_averaged, trainer.step > begun, finished)


def read(store: str) -> Run:
    """Read back what `train` left of the training itself.

    Parameters
    ----------
    store
        URL of the group.

    Returns
    -------
    Run
        The recipe, the last iterate and the history.

    Raises
    ------
    pmarray.errors.GroupNotFoundError
        There is no such store.
    StoreError
        The store was not made by `train`, or its training did not get to the end.
    """
    with pmarray.open_group(store, mode="r") as group:
        about = _about(group)
        state = _saved_state(group)
        if state is None or np.isnan(state["losses"].numpy()[-1]):
            raise StoreError(
                f"the training into {group.url} did not get to its end; the same swag train "
                "command goes on with it"
            )
        with load(group) as posterior:
            state = _with_weights(state, posterior)
        seconds = np.asarray(group[_SECONDS][:])
    recipe = Recipe.from_json(about["recipe"])
    model = build(recipe.model)
    model.load_state_dict(state["model"])
    return Run(recipe, state["step"], model.eval(), state["losses"].numpy(), seconds)


def describe(store: str) -> dict[str, Any]:
    """Say what a store holds, in values that JSON can carry.

    Parameters
    ----------
    store
        URL of the group.

    Returns
    -------
    dict
        `url`; `arrays`: shape, dtype, layout and nbytes by name, those of all parts where several
        processes have collected; `recipe`, and `step`, the
        minibatches done at the last checkpoint (None before the first), where `train` made the
        store.

    Raises
    ------
    pmarray.errors.GroupNotFoundError
        There is no such store.
    """
    manifest = read_manifest(store)
    if manifest is not None:
        arrays = {}
        for number in range(len(manifest.layout.boxes)):
            with pmarray.open_group(part_place(store, number), mode="r") as group:
                named = _arrays_of(group)
                arrays.update({f"part-{number:05d}/{name}": fact for name, fact in named.items()})
        return {"url": store, "arrays": arrays, "recipe": None, "step": None}
    with pmarray.open_group(store, mode="r") as group:
        about = group.attrs.get(_ATTRIBUTE, {})
        return {
            "url": group.url,
            "arrays": _arrays_of(group),
            "recipe": about.get("recipe"),
            "step": group.attrs.get(_STEP),
        }


def _arrays_of(group: pmarray.Group) -> dict[str, Any]:
    return {
        name: {
            "shape": list(group[name].shape),
            "dtype": str(group[name].dtype),
            "layout": group[name].layout,
            "nbytes": group[name].nbytes,
        }
        for name in group
    }


def _claim(group: pmarray.Group, recipe: Recipe, checkpoint_every: int) -> None:
    """Say what is being trained into the group, or refuse if it is something else."""
    mine = {"recipe": recipe.to_json(), "checkpoint_every": checkpoint_every}
    if _ATTRIBUTE not in group.attrs:
        if len(group) or group.attrs:
            raise StoreError(
                f"{group.url} holds something that swag train did not make; --fresh replaces it"
            )
        with group.transaction():
            group.attrs[_ATTRIBUTE] = mine
        return
    about = _about(group)
    apart = recipe.differences(Recipe.from_json(about["recipe"]))
    if about["checkpoint_every"] != checkpoint_every:
        there = about["checkpoint_every"]
        apart.append(f"checkpoint_every: {checkpoint_every!r} here, {there!r} there")
    if apart:
        # As they are typed.
        names, values = zip(*(line.split(": ", 1) for line in apart), strict=True)
        options = (f"--{name.replace('_', '-')}" for name in names)
        told = "; ".join(f"{o}: {v}" for o, v in zip(options, values, strict=True))
        raise StoreError(
            f"{group.url} holds another training ({told}); go on with its "
            "recipe, or replace it with --fresh"
        )


def _save(group: pmarray.Group, trainer: Trainer, seconds: NDArray[np.float64]) -> None:
    """Store the training state and the history; in a transaction."""
    description, data = pack(_without_weights(trainer.state_dict(), group))
    # Some kilobytes, and not an attribute: those are written again at every commit.
    text = np.frombuffer(json.dumps(description).encode(), np.uint8)
    for name, values in ((_STATE, data), (_DESCRIPTION, text), (_SECONDS, seconds)):
        if name not in group:
            group.create(name, shape=values.shape, dtype=values.dtype)
        elif group[name].shape != values.shape:
            group[name].resize(values.shape)
        group[name][...] = values
    group.attrs[_STEP] = trainer.step


def _without_weights(state: dict[str, Any], group: pmarray.Group) -> dict[str, Any]:
    """The state of training without the weights that the last iterate holds, bit for bit."""
    with load(group) as posterior:
        last = posterior.n_averaged - 1
        try:
            weights = posterior.iterate(last)
        except WindowError:  # none was collected yet, or none is kept
            return state
    rest = {
        name: value
        for name, value in state["model"].items()
        if name not in weights or not _same_bytes(value, weights[name])
    }
    return {**state, "model": rest, "iterate": last}


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    views = (t.detach().cpu().reshape(-1).view(torch.uint8) for t in (one, other))
    return one.dtype == other.dtype and torch.equal(*views)


def _with_weights(state: dict[str, Any], posterior: Posterior) -> dict[str, Any]:
    """The state of training as it was before `_without_weights`."""
    if "iterate" not in state:
        return state
    if state["iterate"] >= posterior.n_averaged:
        raise StoreError(
            "iterates of this training were taken out since (swag prune), and with them the "
            "weights to go on from: evaluate what is there, or train again with --fresh"
        )
    weights = posterior.iterate(state["iterate"])
    return {**state, "model": {**weights, **state["model"]}}


def _saved_state(group: pmarray.Group) -> Any:
    """The training state of the last checkpoint; None before the first."""
    if _STATE not in group:
        return None
    try:
        description = json.loads(group[_DESCRIPTION][:].tobytes())
    except (ValueError, RecursionError) as error:
        raise StoreError(f"the state of training in {group.url} is damaged: {error}") from error
    return unpack(description, np.asarray(group[_STATE][:]))


def _about(group: pmarray.Group) -> dict[str, Any]:
    about = group.attrs.get(_ATTRIBUTE)
    if not isinstance(about, dict):
        raise StoreError(f"{group.url} does not say how it was trained; swag train did not make it")
    return about

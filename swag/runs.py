"""A training run on MNIST and its posterior in one store: make it, describe it, read it back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

import pmarray
from swag._state import pack, unpack
from swag.collect import SWAG
from swag.datasets import mnist
from swag.errors import StoreError
from swag.models import build
from swag.recipe import Recipe
from swag.training import Step, Trainer

__all__ = ["Run", "describe", "read", "train"]

# Names in the group beside those of the posterior itself.
_ATTRIBUTE = "training"
_STATE = "training.state"
_SECONDS = "training.seconds"


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
    """Wall time of each minibatch, shape (steps, 2): training, and collection or NaN."""


def train(
    store: str,
    recipe: Recipe,
    *,
    data: Path | str | None = None,
    fresh: bool = False,
    watch: Callable[[Trainer, Step, int], None] | None = None,
) -> None:
    """Train on MNIST by a recipe, collecting into a new store.

    When it returns, the posterior, the last iterate and the history are durable. What an interrupt
    leaves is a posterior of the iterates so far, without the last iterate and the history.

    Parameters
    ----------
    store
        URL of the group to make.
    recipe
        What to do. Its `threads` is not applied; see :func:`torch.set_num_threads`.
    data
        Folder of the MNIST files; None for those shipped.
    fresh
        Replace what the store holds.
    watch
        Called after each minibatch with the trainer, the step, and the bytes of iterates given to
        the store so far.

    Raises
    ------
    pmarray.errors.GroupExistsError
        The store exists and `fresh` is false.
    DatasetError
        The data are missing or damaged.
    """
    images = mnist(data).train
    model = build(recipe.model, seed=recipe.seed)
    with (
        pmarray.open_group(store, mode="w" if fresh else "w-") as group,
        SWAG(model, store=group, max_rank=recipe.rank) as posterior,
    ):
        trainer = Trainer(model, images, recipe, posterior.update_parameters)
        # Said at the start, so that `describe` can tell what is being trained.
        group.attrs[_ATTRIBUTE] = {"recipe": recipe.to_json(), "step": None, "state": None}
        seconds = np.full((trainer.n_steps, 2), np.nan)
        column_bytes = 0 if recipe.rank == 0 else sum(p.nbytes for p in model.parameters())
        for step in trainer:
            seconds[step.index] = step.train_seconds, step.collect_seconds
            if watch is not None:
                watch(trainer, step, posterior.n_averaged * column_bytes)
        posterior.flush()
        _save(group, trainer, seconds)


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
        if _STATE not in group:
            raise StoreError(
                f"the training into {group.url} did not get to its end; train again with --fresh"
            )
        state = unpack(about["state"], np.asarray(group[_STATE][:]))
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
        `url`; `arrays`: shape, dtype, layout and nbytes by name; `recipe`, and `step`, the
        minibatches done (None for a training that did not get to its end), where `train` made the
        store.

    Raises
    ------
    pmarray.errors.GroupNotFoundError
        There is no such store.
    """
    with pmarray.open_group(store, mode="r") as group:
        about = group.attrs.get(_ATTRIBUTE, {})
        return {
            "url": group.url,
            "arrays": {
                name: {
                    "shape": list(group[name].shape),
                    "dtype": str(group[name].dtype),
                    "layout": group[name].layout,
                    "nbytes": group[name].nbytes,
                }
                for name in group
            },
            "recipe": about.get("recipe"),
            "step": about.get("step"),
        }


def _save(group: pmarray.Group, trainer: Trainer, seconds: NDArray[np.float64]) -> None:
    """Store the training state and the history, durably."""
    description, data = pack(trainer.state_dict())
    for name, values in ((_STATE, data), (_SECONDS, seconds)):
        if name not in group:
            group.create(name, shape=values.shape, dtype=values.dtype)
        group[name][...] = values
    group.attrs[_ATTRIBUTE] = {
        "recipe": trainer.recipe.to_json(),
        "step": trainer.step,
        "state": description,
    }
    group.flush()


def _about(group: pmarray.Group) -> dict[str, Any]:
    about = group.attrs.get(_ATTRIBUTE)
    if not isinstance(about, dict):
        raise StoreError(f"{group.url} does not say how it was trained; swag train did not make it")
    return about

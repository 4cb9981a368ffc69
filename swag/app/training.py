"""SGD with momentum on a constant, then annealed, rate, and a call for every iterate to collect."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import SWALR
from torch.utils.data import TensorDataset

from swag.app.batches import ShuffledBatches
from swag.app.recipe import Recipe

__all__ = ["Step", "Trainer"]


@dataclass(frozen=True, slots=True)
class Step:
    """One minibatch, as the trainer reports it."""

    index: int
    """Number of the minibatch, from 0 at the start of training."""
    loss: float
    """Cross-entropy of the minibatch before the update, in nats."""
    lr: float
    """Learning rate of the update."""
    train_seconds: float
    """Wall time of forward, backward and update."""
    collect_seconds: float
    """Wall time for which collecting the iterate held up training; NaN where none was collected."""


class Trainer(Iterator[Step]):
    """Train a classifier by a recipe, one minibatch for each `next`.

    All that the next step depends on is in `state_dict`: a new trainer of the same model, data and
    recipe goes on from it with the same numbers, bit for bit, on the same machine with the same
    number of threads. Collections are not part of it.

    Parameters
    ----------
    model
        Takes (batch, ...) inputs, gives (batch, classes) logits. It is trained in place, on the
        device where its parameters are.
    data
        Inputs (n, ...) and labels (n,); minibatches are moved to the model's device.
    recipe
        Optimizer, schedule and lengths. Its `model`, `rank` and `threads` are the caller's affair.
    collect
        Called with the model after each iterate to collect; None for plain training.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> from swag.models import fully_connected
    >>> data = TensorDataset(torch.eye(8), torch.arange(8) % 2)
    >>> recipe = Recipe(epochs=4, batch_size=2, burn_in=2, anneal=1, interval=3)
    >>> collected = []
    >>> trainer = Trainer(fully_connected(8, 2), data, recipe, collected.append)
    >>> steps = list(trainer)
    >>> len(steps), len(collected), trainer.n_collections
    (16, 3, 3)
    >>> [step.index for step in steps if step.collect_seconds >= 0]
    [8, 11, 14]
    """

    def __init__(
        self,
        model: nn.Module,
        data: TensorDataset,
        recipe: Recipe,
        collect: Callable[[nn.Module], object] | None = None,
    ) -> None:
        self.model = model
        self.recipe = recipe
        self._inputs, self._labels = (part[: recipe.images] for part in data.tensors)
        self._collect = collect
        self._device = next(model.parameters()).device
        self._batches = ShuffledBatches(
            len(self._inputs), batch_size=recipe.batch_size, seed=recipe.seed
        )
        self._optimizer = torch.optim.SGD(
            model.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        self._first_collection = recipe.first_collection(len(self._batches))
        # SWALR counts its own calls, "epochs" to it; here they are minibatches. Told none, it sets
        # the last rate at once, which is right only where collection starts with training.
        anneal_steps = round(recipe.anneal * len(self._batches))
        anneal_steps = min(max(1, anneal_steps), self._first_collection)
        self._first_anneal = self._first_collection - anneal_steps
        self._scheduler = SWALR(
            self._optimizer,
            swa_lr=recipe.swa_lr,
            anneal_epochs=anneal_steps,
            anneal_strategy=recipe.anneal_strategy,
        )
        self._step = 0
        self._losses = torch.full((self.n_steps,), math.nan, dtype=torch.float64, device="cpu")

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What steps the weights; `swag.SWAG.attach` takes it."""
        return self._optimizer

    @property
    def step(self) -> int:
        """Minibatches done so far."""
        return self._step

    @property
    def steps_per_epoch(self) -> int:
        """Minibatches in one pass over the data."""
        return len(self._batches)

    @property
    def n_steps(self) -> int:
        """Minibatches in the whole of training."""
        return self.recipe.epochs * len(self._batches)

    @property
    def n_collections(self) -> int:
        """Iterates collected in the whole of training."""
        return sum(map(self._collects_after, range(self.n_steps)))

    @property
    def losses(self) -> Tensor:
        """Loss of every minibatch of training, shape (n_steps,), float64; NaN for those to come."""
        return self._losses

    def __next__(self) -> Step:
        """Train on the next minibatch and collect the iterate if it is its turn."""
        if self._step >= self.n_steps:
            raise StopIteration
        index = self._step
        started = time.perf_counter()
        lr = float(self._optimizer.param_groups[0]["lr"])
        loss = self._descend(next(self._batches))
        if index >= self._first_anneal:
            self._scheduler.step()
        trained = time.perf_counter()
        # Before the call, so that a checkpoint taken in it is of a step that is done.
        self._losses[index] = loss
        self._step = index + 1
        collect_seconds = math.nan
        if self._collect is not None and self._collects_after(index):
            self._collect(self.model)
            collect_seconds = time.perf_counter() - trained
        return Step(index, loss, lr, trained - started, collect_seconds)

    def _collects_after(self, index: int) -> bool:
        since = index - self._first_collection
        return since >= 0 and since % self.recipe.interval == 0

    def _descend(self, indices: Tensor) -> float:
        self.model.train()
        inputs = self._inputs[indices].to(self._device)
        labels = self._labels[indices].to(self._device)
        loss = nn.functional.cross_entropy(self.model(inputs), labels)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self._optimizer.step()
        return loss.item()

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on, and the losses so far.

        Returns
        -------
        dict
            Of dicts, lists, tuples, numbers, strings and tensors. The tensors of the model and the
            optimizer are not copies.
        """
        return {
            "step": self._step,
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            # Older ones have a function there, by which they do not go on either.
            "scheduler": {
                key: value
                for key, value in self._scheduler.state_dict().items()
                if not callable(value)
            },
            "batches": self._batches.state_dict(),
            "rng": _random_state(),
            "losses": self._losses,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the point in training at which `state_dict` was called.

        The global random generators of PyTorch, NumPy and Python are set too, since a model may
        draw from them (dropout does).

        Parameters
        ----------
        state
            From `state_dict` of a trainer of the same model, data and recipe.

        Raises
        ------
        ValueError
            The state belongs to training of another length.
        """
        if state["losses"].shape != self._losses.shape:
            raise ValueError(
                f"the state is of a training of {len(state['losses'])} minibatches,"
                f" this one has {self.n_steps}"
            )
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        self._batches.load_state_dict(state["batches"])
        self._losses.copy_(state["losses"])
        self._step = int(state["step"])
        _set_random_state(state["rng"])


def _random_state() -> dict[str, Any]:
    """State of the global generators."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": (name, torch.from_numpy(np.asarray(keys)), position, has_gauss, gauss),
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy(), position, has_gauss, gauss))  # noqa: NPY002
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])

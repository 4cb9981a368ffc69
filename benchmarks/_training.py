"""Training on MNIST with and without collection, as the rounds of a race."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import swag
from benchmarks._harness import Contender
from benchmarks._reference import PlainCopies, RowMajorCollector
from swag.app.recipe import Recipe
from swag.app.training import Trainer
from swag.datasets import mnist
from swag.models import build

__all__ = ["Collecting", "TrainingContenders", "TrainingRun"]


Collecting = tuple[Callable[[nn.Module], object], Callable[[], object]]
"""What is called with the model after every minibatch, and what makes all of it durable."""


class TrainingRun:
    """A training step, followed by a collection, at a time."""

    def __init__(self, trainer: Trainer, flush: Callable[[], object]) -> None:
        self.step = trainer.__next__
        self.finish = flush


class TrainingContenders:
    """The ways to train one network, all from the same first weights over the same minibatches.

    Parameters
    ----------
    model
        Name of one of ``swag.models``.
    steps
        Most steps of any run.
    directory
        Where files are written, each run's own removed after it.
    """

    def __init__(self, model: str, *, steps: int, directory: Path) -> None:
        self._data: TensorDataset = mnist().train
        self._directory, self._steps = directory, steps
        steps_per_epoch = math.ceil(len(self._data) / 100)
        self._recipe = Recipe(
            model=model, epochs=math.ceil(steps / steps_per_epoch), lr=0.05, swa_lr=0.05,
            anneal=0, burn_in=0,
        )  # fmt: skip

    def alone(self) -> Contender:
        """Plain training."""

        @contextmanager
        def start() -> Iterator[TrainingRun]:
            yield TrainingRun(self._trainer(self._model(), None), lambda: None)

        return Contender("training alone", start)

    def collecting(
        self,
        scheme: str,
        *,
        attached: bool = False,
        max_rank: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Contender:
        """Training, and one collection a minibatch.

        Parameters
        ----------
        scheme
            Of the store.
        attached
            Whether the optimizer waits, and `update_parameters` does not.
        max_rank, dtype
            As for `swag.SWAG`.
        """
        how = [
            *(["attached"] if attached else []),
            *([] if max_rank is None else [f"rank {max_rank}"]),
            *([] if dtype is None else [str(dtype).removeprefix("torch.")]),
        ]
        url = "dram:" if scheme == "dram" else f"{scheme}:{{}}"
        return self.storing(
            ", ".join([f"SWAG on {scheme}:", *how]),
            url,
            attached=attached,
            max_rank=max_rank,
            dtype=dtype,
        )

    def storing(
        self,
        name: str,
        url: str,
        directory: Path | None = None,
        *,
        attached: bool = False,
        max_rank: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Contender:
        """The same at a URL, in which ``{}`` stands for a directory that is new in every round.

        Parameters
        ----------
        name
            What tables call it.
        url
            Of a `pmarray` group. Without a ``{}`` it names a place whose contents are replaced.
        directory
            Where the new directory is made, if not where all others are.
        attached, max_rank, dtype
            As for `collecting`.
        """

        @contextmanager
        def start() -> Iterator[TrainingRun]:
            model = self._model()
            scratch = self._scratch(directory) if "{}" in url else nullcontext("")
            with scratch as path:
                posterior = swag.SWAG(model, url.format(path), max_rank, mode="w", dtype=dtype)
                try:
                    trainer = self._trainer(model, posterior.update_parameters)
                    if attached:
                        posterior.attach(trainer.optimizer)
                    yield TrainingRun(trainer, posterior.flush)
                finally:
                    posterior.close()

        return Contender(name, start)

    def reference(self, *, rank: int, mapped: bool, most_steps: int) -> Contender:
        """Training, and a column written to a row-major matrix of `rank` columns."""

        @contextmanager
        def start() -> Iterator[TrainingRun]:
            model = self._model()
            shape = sum(p.numel() for p in model.parameters()), rank
            with self._scratch() as path:
                if mapped:
                    file = f"{path}/deviations"
                    collector = RowMajorCollector(np.memmap(file, np.float32, "w+", shape=shape))
                else:
                    collector = RowMajorCollector(np.zeros(shape, dtype=np.float32))
                trainer = self._trainer(model, collector.update_parameters)
                yield TrainingRun(trainer, collector.flush)

        where = "np.memmap" if mapped else "in DRAM"
        return Contender(f"row-major {where}", start, most_steps)

    def plain(self, *, write: bool) -> Contender:
        """Training, and what cannot be left out: the weights are copied, and written by a thread.

        Parameters
        ----------
        write
            Whether they are written.
        """

        @contextmanager
        def start() -> Iterator[TrainingRun]:
            model = self._model()
            size = sum(p.numel() for p in model.parameters())
            with self._scratch() as path:
                plain = PlainCopies(size, self._steps, Path(path, "plain") if write else None)
                try:
                    yield TrainingRun(self._trainer(model, plain.collect), plain.flush)
                finally:
                    plain.close()

        return Contender("copied and written, no more" if write else "copied, no more", start)

    def calling(
        self, name: str, start: Callable[[nn.Module], AbstractContextManager[Collecting]]
    ) -> Contender:
        """Training, and something of the caller's own after every minibatch."""

        @contextmanager
        def begin() -> Iterator[TrainingRun]:
            model = self._model()
            with start(model) as (collect, finish):
                yield TrainingRun(self._trainer(model, collect), finish)

        return Contender(name, begin)

    def _model(self) -> nn.Module:
        return build(self._recipe.model, seed=0)

    def _trainer(self, model: nn.Module, collect: Callable[[nn.Module], object] | None) -> Trainer:
        return Trainer(model, self._data, self._recipe, collect)

    @contextmanager
    def _scratch(self, directory: Path | None = None) -> Iterator[str]:
        path = tempfile.mkdtemp(dir=directory or self._directory)
        try:
            yield path
        finally:
            shutil.rmtree(path)

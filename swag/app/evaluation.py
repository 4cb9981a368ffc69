"""Compare what one training run offers: the last SGD iterate, SWA, SWAG-diagonal and SWAG."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from swag.app import runs
from swag.datasets import MNIST_MEAN, MNIST_STD, mnist_part
from swag.metrics import Reliability, Scores, reliability, score
from swag.posterior import Posterior, load

__all__ = ["Evaluation", "Row", "evaluate", "out_of_distribution"]


@dataclass(frozen=True, slots=True)
class Row:
    """One model on the test set."""

    name: str
    """As the table prints it."""
    scores: Scores
    """Accuracy, NLL, ECE and Brier score."""
    reliability: Reliability
    """For the reliability diagram."""
    probabilities: Tensor
    """Of each class for each image, shape (n, classes)."""
    outside: Mapping[str, Tensor] = field(default_factory=dict)
    """The same for images out of distribution, by the name of their set."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything the table and the picture show."""

    rows: tuple[Row, ...]
    """One model each, in the order of the table."""
    labels: Tensor
    """Of the images, shape (n,)."""
    run: runs.Run
    """The training that made the posterior."""
    n_averaged: int
    """Iterates in the mean and the diagonal."""
    rank: int
    """Iterates in the low-rank part of SWAG."""
    samples: int
    """Networks drawn from each posterior."""
    scale: float
    """Factor of the covariance of SWAG."""
    seed: int
    """Of the draws."""


def evaluate(
    store: str,
    *,
    data: Path | str | None = None,
    images: int | None = None,
    samples: int = 30,
    scale: float = 0.5,
    start: int = 0,
    every: int = 1,
    rank: int | None = None,
    seed: int = 0,
    outside: int = 0,
    watch: Callable[[str], None] | None = None,
) -> Evaluation:
    """Evaluate the models of a store that ``swag train`` made on the MNIST test set.

    SWA is the network of the mean weights; SWAG-diagonal and SWAG average the probabilities of
    networks drawn from the Gaussian without and with its low-rank part. The first has the
    covariance diag(variance), the second `scale` times its whole covariance, as their paper has
    it with 1/2. SWAG is left out where fewer than two iterates are kept.

    Parameters
    ----------
    store
        URL of the group.
    data
        Folder of the MNIST files; None for those shipped.
    images
        Evaluate on the first so many images of the test set, for a trial; None for all.
    samples
        Networks drawn from each posterior.
    scale
        Factor of the covariance of SWAG.
    start, every, rank
        The iterates to use, as for `swag.Posterior.window`: by default all.
    seed
        Of the draws; the same seed gives the same figures.
    outside
        Images of each set out of distribution (`out_of_distribution`); 0 to leave them out.
    watch
        Called with the name of each model before it is evaluated.

    Returns
    -------
    Evaluation
        The rows and the run.

    Raises
    ------
    pmarray.errors.GroupNotFoundError
        There is no such store.
    StoreError
        The store was not made by `train`, or its training did not get to the end.
    WindowError
        The store has no such iterates.
    DatasetError
        The data are missing or damaged.
    """
    run = runs.read(store)
    inputs, labels = (tensor[:images] for tensor in mnist_part("test", data).tensors)
    sets = out_of_distribution(inputs[:outside]) if outside else {}
    sizes = [len(inputs), *map(len, sets.values())]
    inputs = torch.cat([inputs, *sets.values()])  # gone through once, by each network
    with load(store) as whole:
        full = whole.window(start=start, every=every, rank=rank)
        diagonal = whole.window(start=start, every=every, rank=0)

        def draws(posterior: Posterior, scale: float) -> Tensor:
            return posterior.predict(
                run.model,
                inputs,
                activation="softmax",
                samples=samples,
                scale=scale,
                generator=seed,
            )

        models: dict[str, Callable[[], Tensor]] = {
            "SGD, last iterate": lambda: _probabilities(run.model, inputs),
            "SWA": lambda: full.predict(
                run.model, inputs, activation="softmax", samples=1, scale=0, generator=seed
            ),
            "SWAG-diagonal": lambda: draws(diagonal, 1.0),
        }
        if full.rank >= 2:
            models["SWAG"] = lambda: draws(full, scale)
        rows = []
        for name, predict in models.items():
            if watch is not None:
                watch(name)
            predicted, *others = torch.split(predict(), sizes)
            found = score(predicted, labels), reliability(predicted, labels)
            rows.append(Row(name, *found, predicted, dict(zip(sets, others, strict=True))))
        return Evaluation(
            tuple(rows),
            labels,
            run,
            full.n_averaged,
            full.rank,
            samples=samples,
            scale=scale,
            seed=seed,
        )


def out_of_distribution(inputs: Tensor) -> dict[str, Tensor]:
    """Images that are no handwritten digits, or none that stand upright.

    Parameters
    ----------
    inputs
        Test images of MNIST, standardised, shape (n, 1, 28, 28).

    Returns
    -------
    dict of str to torch.Tensor
        ``"rotated"``, these turned by 90 degrees, and ``"noise"``, grey values drawn evenly from
        black to white, always the same; shape and scale as `inputs`.
    """
    grey = torch.rand(
        inputs.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu"
    )
    return {"rotated": inputs.rot90(1, (2, 3)), "noise": (grey - MNIST_MEAN) / MNIST_STD}


@torch.no_grad()
def _probabilities(model: nn.Module, inputs: Tensor) -> Tensor:
    """Class probabilities of one network, shape (n, classes)."""
    return torch.cat([model(batch).softmax(dim=1) for batch in torch.split(inputs, 1000)])

"""MNIST, a row a method: SGD, SWA, SWAG at several ranks, subspace, MultiSWAG, deep ensemble.

For every network, the learning rate is the best of some on training images that were held out; then
for every seed as many members are trained as the mixtures have, on all training images. The first
member gives the rows of single trainings, all of them the mixtures. What one member takes on the
disk is deleted after it was evaluated, before the next is trained.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks._records import Record, Recording
from benchmarks._tables import Table
from swag.app import runs
from swag.app.recipe import Recipe
from swag.app.training import Trainer
from swag.datasets import MNIST_MEAN, MNIST_STD, mnist
from swag.metrics import nll, score
from swag.models import build
from swag.posterior import StoredPosterior, load
from swag.uncertainty import auroc, predictive_entropy

__all__ = ["measure", "tables"]

_HELD_OUT = 6
"""One training image in so many."""
_SUBSPACE = 5
_LIKELIHOOD_IMAGES = 10_000
_BATCH = 1000

Predict = Callable[[Tensor], Tensor]


def measure(
    run: Recording,
    *,
    networks: Sequence[str],
    seeds: int,
    members: int,
    epochs: int,
    images: int | None,
    ranks: Sequence[int],
    rates: Sequence[float],
    samples: int,
    data: Path | None,
    directory: Path,
) -> None:
    """Train and evaluate; one record for each network, seed and method."""
    train, test = mnist(data)
    inputs, labels = (part[:images] for part in test.tensors)
    sets = {"test": inputs, "rotated": inputs.rot90(1, (2, 3)), "noise": _noise(inputs)}
    for network in networks:
        recipe = Recipe.of(model=network, epochs=epochs, images=images)
        rate = _best_rate(run, train, recipe, rates)
        recipe = replace(recipe, lr=rate, swa_lr=0.6 * rate)
        for seed in range(seeds):
            sums: dict[str, dict[str, Tensor]] = {}
            for member in range(members):
                run.report(f"{network}, seed {seed}, training member {member + 1} of {members}")
                scratch = tempfile.mkdtemp(dir=directory)
                try:
                    store = f"memmap:{scratch}/store"
                    runs.train(store, replace(recipe, seed=seed * members + member), data=data)
                    trained = runs.read(store).model
                    with load(store) as posterior:
                        methods = _methods(trained, posterior, train, recipe, ranks, samples)
                        for name, predict in methods.items():
                            if member and name not in _MIXTURES:
                                continue
                            run.report(f"{network}, seed {seed}, member {member + 1}: {name}")
                            found = {key: predict(some) for key, some in sets.items()}
                            if not member:
                                _note(run, network, seed, name, found, labels)
                            if name in _MIXTURES:
                                total = sums.setdefault(name, {k: 0 * p for k, p in found.items()})
                                for key, predicted in found.items():
                                    total[key] += predicted / members
                finally:
                    shutil.rmtree(scratch)
            for name, found in sums.items():
                _note(run, network, seed, _MIXTURES[name].format(members), found, labels)


_MIXTURES = {"SGD": "deep ensemble of {}", "SWAG, all": "MultiSWAG of {}"}


def _methods(
    trained: nn.Module,
    posterior: StoredPosterior,
    train: TensorDataset,
    recipe: Recipe,
    ranks: Sequence[int],
    samples: int,
) -> dict[str, Predict]:
    def drawn(window: StoredPosterior, scale: float | None = None) -> Predict:
        return lambda inputs: window.predict(
            trained, inputs, activation="softmax", generator=0, scale=scale,
            samples=1 if scale == 0 else samples,
        )  # fmt: skip

    methods: dict[str, Predict] = {
        "SGD": lambda inputs: _one(trained, inputs),
        "SWA": drawn(posterior, 0.0),
        "SWAG-diagonal": drawn(posterior.window(rank=0)),
    }
    for rank in ranks:
        if rank < posterior.rank:
            methods[f"SWAG, rank {rank}"] = drawn(posterior.window(rank=rank))
    methods["SWAG, all"] = drawn(posterior)
    methods[f"subspace of {_SUBSPACE}"] = _in_subspace(trained, posterior, train, recipe, samples)
    return methods


def _in_subspace(
    model: nn.Module,
    posterior: StoredPosterior,
    train: TensorDataset,
    recipe: Recipe,
    samples: int,
) -> Predict:
    inputs, labels = (part[: recipe.images] for part in train.tensors)
    count = len(inputs)
    some = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:_LIKELIHOOD_IMAGES]
    few, of_few = inputs[some], labels[some]

    def log_likelihood(model: nn.Module) -> float:
        losses = [
            nn.functional.cross_entropy(model(batch), wanted, reduction="sum").item()
            for batch, wanted in zip(
                torch.split(few, _BATCH), torch.split(of_few, _BATCH), strict=True
            )
        ]
        return -sum(losses) * count / len(few)

    points: list[Tensor] = []

    def predict(inputs: Tensor) -> Tensor:
        subspace = posterior.window(rank=min(posterior.rank, 3000)).subspace(_SUBSPACE)
        if not points:  # the same for all sets
            points.append(subspace.sample(
                model, log_likelihood, samples, temperature=count / _SUBSPACE, generator=0
            ))  # fmt: skip
        return subspace.predict(model, inputs, points[0], activation="softmax")

    return predict


def _best_rate(
    run: Recording, train: TensorDataset, recipe: Recipe, rates: Sequence[float]
) -> float:
    """The rate with the least loss on training images that were left out."""
    inputs, labels = (part[: recipe.images] for part in train.tensors)
    kept = torch.arange(len(inputs)) % _HELD_OUT != 0
    data = TensorDataset(inputs[kept], labels[kept])
    found = {}
    for rate in rates:
        run.report(f"{recipe.model}, learning rate {rate}")
        model = build(recipe.model, seed=recipe.seed)
        for _ in Trainer(model, data, replace(recipe, lr=rate, swa_lr=0.6 * rate, images=None)):
            pass
        found[rate] = nll(_one(model.eval(), inputs[~kept]), labels[~kept])
        run.add("rate", network=recipe.model, rate=rate, held_out_nll=found[rate])
    return min(found, key=lambda rate: found[rate])


def _note(
    run: Recording, network: str, seed: int, name: str, found: dict[str, Tensor], labels: Tensor
) -> None:
    scores = score(found["test"], labels)
    entropy = {key: predictive_entropy(predicted) for key, predicted in found.items()}
    run.add(
        "method", network=network, seed=seed, method=name, accuracy=scores.accuracy,
        nll=scores.nll, ece=scores.ece, brier=scores.brier,
        auroc_rotated=auroc(entropy["test"], entropy["rotated"]),
        auroc_noise=auroc(entropy["test"], entropy["noise"]),
    )  # fmt: skip


@torch.no_grad()
def _one(model: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    return torch.cat([model(batch).softmax(dim=1) for batch in torch.split(inputs, _BATCH)])


def _noise(like: Tensor) -> Tensor:
    """Grey values drawn evenly from black to white, as images are standardised."""
    grey = torch.rand(like.shape, generator=torch.Generator().manual_seed(0))
    return (grey - MNIST_MEAN) / MNIST_STD


def tables(run: Recording) -> list[Table]:
    """Lay out a run: a table for each network, mean and standard deviation over the seeds."""
    rows: dict[str, dict[str, list[dict[str, float]]]] = {}
    for one in run.of("method"):
        rows.setdefault(one["network"], {}).setdefault(one["method"], []).append(dict(one))
    rates: dict[str, Record] = {}
    for one in run.of("rate"):
        best = rates.get(one["network"])
        if best is None or one["held_out_nll"] < best["held_out_nll"]:
            rates[one["network"]] = one
    figures = {
        "accuracy %": ("accuracy", 100, 2), "NLL": ("nll", 1, 4), "ECE %": ("ece", 100, 2),
        "Brier": ("brier", 1, 4), "AUROC rotated": ("auroc_rotated", 1, 4),
        "AUROC noise": ("auroc_noise", 1, 4),
    }  # fmt: skip
    laid_out = []
    for network, methods in rows.items():
        seeds = len(next(iter(methods.values())))
        note = (
            f"Mean of {seeds} seeds, ± their standard deviation. Learning rate "
            f"{rates[network]['rate']:g}, the best on training images that were held out. Better "
            "is larger for accuracy and AUROC (by the entropy, against the test set)."
        )
        table = Table(f"MNIST, {network}", ["method", *figures], note=note)
        for method, found in methods.items():
            cells = []
            for key, factor, digits in figures.values():
                values = [factor * one[key] for one in found]
                spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.{digits}f}{spread}")
            table.rows.append([method, *cells])
        laid_out.append(table)
    return laid_out

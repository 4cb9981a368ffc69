"""MNIST, a row a method: SGD, SWA, SWAG at several ranks, subspace, MultiSWAG, deep ensemble.

For every network, the learning rate is the best of some on training images that were held out; then
for every seed as many members are trained as the mixtures have, on all training images. The first
member gives the rows of single trainings, all of them the mixtures: MultiSWAG averages as many
networks as SWAG does, shared out among the members. What one member takes on the disk is deleted
after it was evaluated, before the next is trained.

Seed after seed goes through all networks, and every row is written down when it is known: a run
that is broken off goes on with what it lacks when the same command is given again.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks._records import Record, Recording
from benchmarks._tables import Table
from swag.app import runs
from swag.app.evaluation import out_of_distribution
from swag.app.recipe import Recipe
from swag.app.training import Trainer
from swag.datasets import mnist
from swag.metrics import nll, score
from swag.models import build
from swag.posterior import StoredPosterior, load
from swag.uncertainty import auroc, predictive_entropy

__all__ = ["measure", "tables"]

_HELD_OUT = 6
"""One training image in so many."""
_OUTSIDE_IMAGES = 1000
"""Of each set that is out of distribution."""
_SUBSPACE, _SUBSPACE_ITERATES = 5, 120
"""Directions, and about how many iterates, evenly spaced, whose leading directions they are."""
_LIKELIHOOD_IMAGES = 2000
_BATCH = 250
"""Images that go through a network at a time: more spill the caches of a convolution."""

Predict = Callable[[Tensor], Tensor]
"""Inputs (n, 1, 28, 28) to class probabilities, shape (networks, n, classes)."""


def measure(
    run: Recording,
    *,
    networks: Sequence[str],
    seeds: int,
    members: int,
    epochs: int,
    rate_epochs: int,
    images: int | None,
    ranks: Sequence[int],
    rates: Sequence[float],
    samples: int,
    threads: int | None,
    data: Path | None,
    directory: Path,
) -> None:
    """Train and evaluate; one record for each network, seed and method that has none yet."""
    if threads is not None:
        torch.set_num_threads(threads)
    train, test = mnist(data)
    inputs, labels = (part[:images] for part in test.tensors)
    sets = torch.cat([inputs, *out_of_distribution(inputs[:_OUTSIDE_IMAGES]).values()])
    for seed in range(seeds):
        for network in networks:
            last = f"deep ensemble of {members}"
            if last in _known(run, network, seed):
                continue
            recipe = Recipe.of(model=network, epochs=epochs, images=images)
            rate = _best_rate(run, train, replace(recipe, seed=seed), rates, rate_epochs)
            recipe = replace(recipe, lr=rate, swa_lr=0.6 * rate)
            ensemble, multi = torch.zeros(2, len(sets), 10)
            for member in range(members):
                what = f"{network}, seed {seed}, member {member + 1} of {members}"
                mine = replace(recipe, seed=seed * members + member)
                for name, predict in _methods(run, what, mine, train, ranks, samples, data,
                                              directory):  # fmt: skip
                    if name not in ("SGD", "SWAG, all") and (
                        member or name in _known(run, network, seed)
                    ):
                        continue
                    run.report(f"{what}: {name}")
                    found = predict(sets)
                    if not member:
                        _note(run, network, seed, name, found.mean(dim=0), labels)
                    if name == "SGD":
                        ensemble += found[0] / members
                    elif name == "SWAG, all":
                        multi += found[: samples // members].mean(dim=0) / members
            _note(run, network, seed, f"MultiSWAG of {members}", multi, labels)
            _note(run, network, seed, last, ensemble, labels)


def _known(run: Recording, network: str, seed: int) -> set[str]:
    """The methods that have a record already."""
    return {
        one["method"]
        for one in run.of("method")
        if (one["network"], one["seed"]) == (network, seed)
    }


def _methods(
    run: Recording,
    what: str,
    recipe: Recipe,
    train: TensorDataset,
    ranks: Sequence[int],
    samples: int,
    data: Path | None,
    directory: Path,
) -> Iterator[tuple[str, Predict]]:
    """Train one member, and give what predicts by it, by name; its store is gone afterwards."""

    def drawn(window: StoredPosterior, scale: float | None = None) -> Predict:
        return lambda inputs: window.predict_each(
            trained, inputs, activation="softmax", generator=0, scale=scale, batch_size=_BATCH,
            samples=1 if scale == 0 else samples, draws_at_once=1,
        )  # fmt: skip

    scratch = tempfile.mkdtemp(dir=directory)
    try:
        run.report(f"{what}: training")
        store = f"memmap:{scratch}/store"
        runs.train(store, recipe, data=data)
        trained = runs.read(store).model
        with load(store) as posterior:
            yield "SGD", lambda inputs: _one(trained, inputs)[None]
            yield "SWA", drawn(posterior, 0.0)
            yield "SWAG-diagonal", drawn(posterior.window(rank=0))
            for rank in ranks:
                if rank < posterior.rank:
                    yield f"SWAG, rank {rank}", drawn(posterior.window(rank=rank))
            yield "SWAG, all", drawn(posterior)
            yield (
                f"subspace of {_SUBSPACE}",
                _in_subspace(trained, posterior, train, recipe, samples),
            )
    finally:
        shutil.rmtree(scratch)


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

    def predict(inputs: Tensor) -> Tensor:
        every = max(1, posterior.rank // _SUBSPACE_ITERATES)
        subspace = posterior.window(every=every).subspace(_SUBSPACE)
        points = subspace.sample(
            model, log_likelihood, samples, temperature=count / _SUBSPACE, generator=0
        )
        mean = subspace.predict(
            model, inputs, points, activation="softmax", batch_size=_BATCH, draws_at_once=1
        )
        return mean[None]

    return predict


def _best_rate(
    run: Recording, train: TensorDataset, recipe: Recipe, rates: Sequence[float], epochs: int
) -> float:
    """The rate with the least loss on training images that were left out; as it was found."""
    inputs, labels = (part[: recipe.images] for part in train.tensors)
    kept = torch.arange(len(inputs)) % _HELD_OUT != 0
    data = TensorDataset(inputs[kept], labels[kept])
    found: dict[float, float] = {
        one["rate"]: one["held_out_nll"] for one in run.of("rate") if one["network"] == recipe.model
    }
    for rate in rates:
        if rate in found:
            continue
        run.report(f"{recipe.model}, learning rate {rate}")
        trial = Recipe.of(
            model=recipe.model, epochs=epochs, lr=rate, swa_lr=0.6 * rate, seed=recipe.seed
        )
        model = build(recipe.model, seed=recipe.seed)
        for _ in Trainer(model, data, trial):
            pass
        found[rate] = nll(_one(model.eval(), inputs[~kept]), labels[~kept])
        run.add("rate", network=recipe.model, rate=rate, held_out_nll=found[rate])
    return min(found, key=lambda rate: found[rate])


def _note(
    run: Recording, network: str, seed: int, name: str, found: Tensor, labels: Tensor
) -> None:
    """Write the figures of one method down, if they are not there."""
    if name in _known(run, network, seed):
        return
    outside = (len(found) - len(labels)) // 2
    test, rotated, noise = torch.split(found, [len(labels), outside, outside])
    scores = score(test, labels)
    entropy = predictive_entropy(test)
    run.add(
        "method", network=network, seed=seed, method=name, accuracy=scores.accuracy,
        nll=scores.nll, ece=scores.ece, brier=scores.brier,
        auroc_rotated=auroc(entropy, predictive_entropy(rotated)),
        auroc_noise=auroc(entropy, predictive_entropy(noise)),
    )  # fmt: skip


@torch.no_grad()
def _one(model: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    return torch.cat([model(batch).softmax(dim=1) for batch in torch.split(inputs, _BATCH)])


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
        # A run that was broken off has the first methods of one seed more: they are left out.
        seeds = min(map(len, methods.values()))
        spread = "" if seeds == 1 else ", ± their standard deviation"
        note = (
            f"Mean of {seeds} {'seed' if seeds == 1 else 'seeds'}{spread}. Learning rate "
            f"{rates[network]['rate']:g}, the best on training images that were held out. Better "
            "is larger for accuracy and AUROC (by the entropy, against the test set)."
        )
        if not any(method.startswith("deep ensemble") for method in methods):
            note += " The run was broken off before the rest; the same command goes on with it."
        table = Table(f"MNIST, {network}", ["method", *figures], note=note)
        for method, found in methods.items():
            cells = []
            for key, factor, digits in figures.values():
                values = [factor * one[key] for one in found[:seeds]]
                spread = f" ± {statistics.stdev(values):.{digits}f}" if seeds > 1 else ""
                cells.append(f"{statistics.mean(values):.{digits}f}{spread}")
            table.rows.append([method, *cells])
        laid_out.append(table)
    return laid_out

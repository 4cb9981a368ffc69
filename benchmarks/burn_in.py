"""The suggested burn-in against problems whose answer is known, and what it is worth on MNIST.

SGD with the constant rate eta on a quadratic with curvatures h and gradient noise of variance 1 is
an autoregression for each axis, with a = 1 - eta h:

    theta(t + 1) = a theta(t) - eta noise        E theta(t)² = a^2t theta(0)² + v (1 - a^2t)

where v = eta² / (1 - a²) is what it comes to. The truth is the first iterate whose expected squared
distance, summed over the axes, is within 10 % of its last value: the mixing time.

On MNIST nobody knows the answer. There a network is trained at one constant rate from its first
weights on, every iterate is collected, and the posteriors of windows that begin earlier and later
than suggested are compared by what they predict of the test set.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import swag
from benchmarks._records import Recording
from benchmarks._tables import Table
from swag._projections import Projections
from swag.app.recipe import Recipe
from swag.app.training import Trainer
from swag.burn_in import BurnIn, judge
from swag.datasets import mnist
from swag.metrics import score
from swag.models import build

__all__ = ["Quadratic", "judged", "measure", "tables"]

_RATE = 0.03
_STARTS = (0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8)
"""Of a trained window, as parts of the iterates."""


@dataclass(frozen=True)
class Quadratic:
    """Constant-rate SGD on a quadratic; the curvatures are spaced evenly by their logarithms."""

    axes: int = 200
    rate: float = 0.1
    smallest: float = 0.1
    """Curvature; the largest is 1."""
    distance: float = 20.0
    """Of the first iterate from the minimum, in standard deviations of the last ones."""

    @property
    def decay(self) -> NDArray[np.float64]:
        """The factor of each axis, shape (axes,)."""
        return 1 - self.rate * np.geomspace(self.smallest, 1, self.axes)

    @property
    def variance(self) -> NDArray[np.float64]:
        """What each axis comes to, shape (axes,)."""
        return self.rate**2 / (1 - self.decay**2)

    @property
    def mixing_time(self) -> int:
        """Number of the first iterate that is within 10 %."""
        ratio, t = np.inf, -1
        first, decay = self.distance**2 * self.variance, self.decay
        while abs(ratio - 1) > 0.1:
            t += 1
            left = decay ** (2 * t)
            ratio = float((left * first + (1 - left) * self.variance).sum() / self.variance.sum())
        return t

    def run(self, iterates: int, seed: int) -> NDArray[np.float32]:
        """So many iterates, shape (iterates, axes)."""
        rng = np.random.default_rng(seed)
        signs = rng.choice([-1.0, 1.0], self.axes)
        path = np.empty((iterates, self.axes))
        path[0] = signs * self.distance * np.sqrt(self.variance)
        kicks = self.rate * rng.standard_normal((iterates, self.axes))
        decay = self.decay
        for t in range(1, iterates):
            path[t] = decay * path[t - 1] - kicks[t]
        return path.astype(np.float32)


def judged(path: NDArray[np.float32]) -> BurnIn[Any]:
    """What `Posterior.suggest_burn_in` says of these iterates, without a store."""

    def no_window(*_: Any) -> Any:
        raise NotImplementedError("these iterates are in no store")

    return judge(Projections(path.shape[1]).of(path), range(len(path)), no_window)


def measure(
    run: Recording,
    *,
    seeds: int,
    times: float,
    network: str,
    trainings: int,
    epochs: int,
    images: int | None,
    samples: int,
    data: Path | None,
) -> None:
    """Where the burn-in ends of quadratics, of so many mixing times and fewer; windows of MNIST."""
    _of_quadratics(run, seeds, times)
    train, test = mnist(data)
    inputs, labels = (part[:images] for part in test.tensors)
    # One rate from the first step on: what is collected has all of the burn-in in it.
    recipe = Recipe(
        model=network, epochs=epochs, images=images, lr=_RATE, swa_lr=_RATE, burn_in=0, anneal=0
    )
    for seed in range(trainings):
        run.report(f"{network}, training {seed + 1} of {trainings}")
        model = build(network, seed=seed)
        with swag.SWAG(model, store=f"dram:{uuid.uuid4().hex}") as posterior:
            mine = replace(recipe, seed=seed)
            losses = [s.loss for s in Trainer(model, train, mine, posterior.update_parameters)]
            found = posterior.suggest_burn_in(loss=losses)
            held = posterior.n_averaged
            told = {check.name: check.value for check in found.checks if check.holds is not None}
            run.add(
                "suggested", network=network, seed=seed, held=held, start=found.start,
                why=found.why, checks=told,
            )  # fmt: skip
            starts = {round(part * held) for part in _STARTS}
            for start in sorted(starts | ({found.start} if found.start is not None else set())):
                run.report(f"{network}, seed {seed}, window from {start}")
                predicted = posterior.window(start).predict(
                    model, inputs, activation="softmax", samples=samples, generator=0,
                    batch_size=250, draws_at_once=1,
                )  # fmt: skip
                scores = score(predicted, labels)
                run.add(
                    "window", network=network, seed=seed, start=start, accuracy=scores.accuracy,
                    nll=scores.nll, ece=scores.ece, brier=scores.brier,
                )  # fmt: skip


def _of_quadratics(run: Recording, seeds: int, times: float) -> None:
    problems = {
        "200 axes": Quadratic(),
        "200 axes, alike": Quadratic(smallest=0.5),
        "200 axes, far": Quadratic(distance=1000),
        "5 axes": Quadratic(axes=5),
        "2 axes": Quadratic(axes=2, smallest=0.5),
    }
    for name, problem in problems.items():
        truth = problem.mixing_time
        for held in sorted({times, 10.0, 5.0, 0.8}, reverse=True):
            run.report(f"{name}, {held:g} mixing times")
            count = max(80, round(held * truth))
            for seed in range(seeds):
                start = judged(problem.run(count, seed)).start
                run.add("burn-in", problem=name, truth=truth, held=count, seed=seed, start=start)


def tables(run: Recording) -> list[Table]:
    """Lay out a run: the known answers, of which right is off by at most the mixing time; MNIST."""
    return [_known(run), *_of_windows(run)]


def _known(run: Recording) -> Table:
    cases: dict[tuple[str, int, int], list[int | None]] = {}
    for one in run.of("burn-in"):
        cases.setdefault((one["problem"], one["truth"], one["held"]), []).append(one["start"])
    headings = ["problem", "mixing time", "iterates", "found", "right", "not settled"]
    note = (
        "Right is off by at most the mixing time, which is known; and not settled, where iterates"
        " are fewer than twice that: a boundary is looked for in their first half."
    )
    table = Table("End of the burn-in", headings, note=note)
    for (name, truth, held), found in cases.items():
        known = [start for start in found if start is not None]
        unsettled = len(found) - len(known)
        right = (
            sum(abs(start - truth) <= truth for start in known) if held >= 2 * truth else unsettled
        )
        table.rows.append([
            name, str(truth), str(held), f"{min(known)} to {max(known)}" if known else "-",
            f"{right} of {len(found)}", str(unsettled),
        ])  # fmt: skip
    return table


def _of_windows(run: Recording) -> Iterator[Table]:
    headings = ["window from", "NLL", "ECE %", "Brier", "accuracy %"]
    for found in run.of("suggested"):
        said = (
            f"Not settled: {found['why']}."
            if found["start"] is None
            else f"Suggested is iterate {found['start']}."
        )
        title = f"MNIST, {found['network']}, training {found['seed'] + 1}"
        table = Table(
            title, headings, note=f"{found['held']} iterates from the first step on. {said}"
        )
        for one in run.of("window"):
            if one["seed"] == found["seed"]:
                here = " (suggested)" if one["start"] == found["start"] else ""
                table.rows.append([
                    f"{one['start']}{here}", f"{one['nll']:.4f}", f"{100 * one['ece']:.2f}",
                    f"{one['brier']:.4f}", f"{100 * one['accuracy']:.2f}",
                ])  # fmt: skip
        yield table

"""The suggested burn-in against a problem whose answer is known.

SGD with the constant rate eta on a quadratic with curvatures h and gradient noise of variance 1 is
an autoregression for each axis, with a = 1 - eta h:

    theta(t + 1) = a theta(t) - eta noise        E theta(t)² = a^2t theta(0)² + v (1 - a^2t)

where v = eta² / (1 - a²) is what it comes to. The truth is the first iterate whose expected squared
distance, summed over the axes, is within 10 % of its last value: the mixing time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from swag._projections import Projections
from swag.burn_in import BurnIn, judge

__all__ = ["Quadratic", "judged", "measure"]


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


def judged(path: NDArray[np.float32]) -> BurnIn:
    """What `Posterior.suggest_burn_in` says of these iterates, without a store."""

    def no_window(*_: Any) -> Any:
        raise NotImplementedError("these iterates are in no store")

    return judge(Projections(path.shape[1]).of(path), range(len(path)), no_window)


def measure(console: Console, *, seeds: int, times: float) -> None:
    """Print where the burn-in is found to end, and where it does, in so many mixing times."""
    table = Table(title="end of the burn-in, in iterates", caption="right: off by at most itself")
    for heading in ("problem", "truth", "held", "found", "right", "within a half", "not settled"):
        table.add_column(heading, justify="left" if heading == "problem" else "right")
    problems = {
        "200 axes": Quadratic(),
        "200 axes, alike": Quadratic(smallest=0.5),
        "200 axes, far": Quadratic(distance=1000),
        "5 axes": Quadratic(axes=5),
        "2 axes": Quadratic(axes=2, smallest=0.5),
    }
    for name, problem in problems.items():
        for held in sorted({times, 10.0, 5.0, 0.8}, reverse=True):
            truth = problem.mixing_time
            count = max(80, round(held * truth))
            found = [judged(problem.run(count, seed)).start for seed in range(seeds)]
            known = np.array([start for start in found if start is not None])
            spread = f"{known.min()} .. {known.max()}" if len(known) else "-"
            table.add_row(
                name, str(truth), str(count), spread,
                f"{int((abs(known - truth) <= truth).sum())} of {seeds}",
                f"{int((abs(known - truth) <= truth / 2).sum())}",
                f"{seeds - len(known)}",
            )  # fmt: skip
    console.print(table)

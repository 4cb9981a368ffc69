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

from benchmarks._records import Recording
from benchmarks._tables import Table
from swag._projections import Projections
from swag.burn_in import BurnIn, judge

__all__ = ["Quadratic", "judged", "measure", "tables"]


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


def measure(run: Recording, *, seeds: int, times: float) -> None:
    """Where the burn-in of every problem is found to end, of so many mixing times and fewer."""
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
    """Lay out a run; right is what is off by at most the mixing time."""
    cases: dict[tuple[str, int, int], list[int | None]] = {}
    for one in run.of("burn-in"):
        cases.setdefault((one["problem"], one["truth"], one["held"]), []).append(one["start"])
    headings = [
        "problem",
        "mixing time",
        "iterates",
        "found",
        "right",
        "within half",
        "not settled",
    ]
    table = Table("End of the burn-in", headings, note="Right is off by at most the mixing time.")
    for (name, truth, held), found in cases.items():
        known = [start for start in found if start is not None]
        off = [abs(start - truth) for start in known]
        table.rows.append([
            name, str(truth), str(held),
            f"{min(known)} to {max(known)}" if known else "-",
            f"{sum(o <= truth for o in off)} of {len(found)}",
            str(sum(2 * o <= truth for o in off)), str(len(found) - len(known)),
        ])  # fmt: skip
    return [table]

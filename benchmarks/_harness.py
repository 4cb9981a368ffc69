"""Contenders timed in interleaved rounds, so that a machine's mood falls on all of them alike.

A round lets every contender do the same number of steps, one contender after another, each from a
fresh start; the next round begins with the next contender. What is compared is one round's times
with each other, and then the median of the rounds: a slow minute spoils a round, not a contender.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks._memory import peak_rss, reset_peak_rss

__all__ = ["Contender", "Result", "Run", "Timing", "race"]


class Run(Protocol):
    """One contender at work in one round."""

    def step(self) -> object:
        """Do one step of the work that is timed."""

    def finish(self) -> object:
        """Return when everything done so far is as durable as this contender makes it."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Something to be timed."""

    name: str
    """What the table calls it."""
    start: Callable[[], AbstractContextManager[Run]]
    """Sets up one round and takes it down again; neither is timed."""
    most_steps: int | None = None
    """Fewer steps a round than the others do, and a short warm-up, where one step takes long."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One contender in one round."""

    steps: int
    """Steps timed."""
    step_seconds: float
    """All steps together, up to the end of the last one."""
    finish_seconds: float
    """`Run.finish`, which comes after them."""
    first_seconds: float
    """The first step of the round, which is not among those timed."""
    peak_rss_bytes: int | None
    """Most memory the process held from the set-up on, where the system tells."""

    @property
    def seconds(self) -> float:
        """Seconds a step, the durable end included and spread over the steps."""
        return (self.step_seconds + self.finish_seconds) / self.steps


@dataclass(slots=True)
class Result:
    """One contender over all rounds."""

    name: str
    timings: list[Timing] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Seconds a step, `Run.finish` included: the median round."""
        return statistics.median(timing.seconds for timing in self.timings)

    @property
    def range_seconds(self) -> tuple[float, float]:
        """The same in the fastest and the slowest round."""
        every = [timing.seconds for timing in self.timings]
        return min(every), max(every)

    @property
    def finish_seconds(self) -> float:
        """`Run.finish` alone: the median round."""
        return statistics.median(timing.finish_seconds for timing in self.timings)

    @property
    def first_seconds(self) -> float:
        """The first step: the median round."""
        return statistics.median(timing.first_seconds for timing in self.timings)

    @property
    def peak_rss_bytes(self) -> int | None:
        """Most memory held in any round."""
        return max((t.peak_rss_bytes for t in self.timings if t.peak_rss_bytes), default=None)

    def ratio(self, baseline: Result) -> float:
        """Median over the rounds of this contender's time by the baseline's in the same round.

        Examples
        --------
        >>> alone, other = Result("alone"), Result("other")
        >>> for seconds in (1.0, 2.0, 1.0):  # the machine was busy in the second round
        ...     alone.timings.append(Timing(10, 10 * seconds, 0.0, 1.0, None))
        ...     other.timings.append(Timing(10, 10 * seconds, 2 * seconds, 1.0, None))
        >>> other.ratio(alone)
        1.2
        """
        pairs = zip(self.timings, baseline.timings, strict=True)
        return statistics.median(mine.seconds / theirs.seconds for mine, theirs in pairs)


def race(
    contenders: Sequence[Contender],
    *,
    rounds: int,
    steps: int,
    warm_up: int = 3,
    between: Callable[[], object] = lambda: None,
    report: Callable[[str], object] = lambda _: None,
) -> list[Result]:
    """Time all contenders, interleaved.

    Parameters
    ----------
    contenders
        In the order of the results; the first round runs them in it.
    rounds, steps
        Rounds, and steps timed of each contender in each.
    warm_up
        Steps before those, at least 1: caches fill, code is compiled, buffers are allocated.
    between
        Called once a round, to measure something else under the same conditions.
    report
        Told in words what is being done.

    Examples
    --------
    >>> from contextlib import nullcontext
    >>> class Nothing:
    ...     def step(self): pass
    ...     def finish(self): pass
    >>> lazy = Contender("lazy", lambda: nullcontext(Nothing()), most_steps=2)
    >>> [result] = race([lazy], rounds=3, steps=5)
    >>> [timing.steps for timing in result.timings]
    [2, 2, 2]
    """
    results = [Result(contender.name) for contender in contenders]
    for contender in contenders:  # what only the first of a process pays, nobody shall pay
        report(f"warming up: {contender.name}")
        _time(contender, 1, 1)
    for turn in range(rounds):
        first = turn % len(contenders)
        for at in [*range(first, len(contenders)), *range(first)]:
            report(f"round {turn + 1} of {rounds}: {contenders[at].name}")
            results[at].timings.append(_time(contenders[at], steps, warm_up))
        report(f"round {turn + 1} of {rounds}: the machine")
        between()
    return results


def _time(contender: Contender, steps: int, warm_up: int) -> Timing:
    if contender.most_steps is not None:
        steps, warm_up = min(steps, contender.most_steps), min(warm_up, contender.most_steps)
    gc.collect()
    reset_peak_rss()
    with contender.start() as run:
        started = time.perf_counter()
        run.step()
        first_seconds = time.perf_counter() - started
        for _ in range(warm_up - 1):
            run.step()
        run.finish()
        started = time.perf_counter()
        for _ in range(steps):
            run.step()
        stepped = time.perf_counter()
        run.finish()
        finished = time.perf_counter()
        return Timing(steps, stepped - started, finished - stepped, first_seconds, peak_rss())

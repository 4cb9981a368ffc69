"""Contenders timed in interleaved rounds, so that a machine's mood falls on all of them alike.

A round lets every contender do the same number of steps, one contender after another, each from a
fresh start; the next round begins with the next contender. What is compared is one round's times
with each other, and then the median of the rounds: a slow minute spoils a round, not a contender.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks._counters import Meter, peak_rss, reset_peak_rss
from benchmarks._records import Record, Recording
from benchmarks._tables import Table, in_bytes, in_ms

__all__ = [
    "Contender",
    "Result",
    "Run",
    "Timing",
    "over_limit",
    "race",
    "record",
    "results_of",
    "table_of",
    "time_round",
]


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
    cpu_seconds: float = 0.0
    """Processor time of the whole process over steps and finish."""
    written_bytes: int | None = None
    """Bytes that the process sent to storage meanwhile, as the kernel counts them."""
    device_bytes: int | None = None
    """Bytes that the device wrote meanwhile."""
    wanted_steps: int | None = None
    """Steps that were to be timed, where the time allowed was over before."""

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

    @property
    def steps(self) -> int:
        """Steps timed, of the round that had the fewest."""
        return min(timing.steps for timing in self.timings)

    @property
    def cut_short(self) -> bool:
        """Whether the time allowed was over before all steps were done."""
        return any(timing.wanted_steps is not None for timing in self.timings)

    @property
    def cpu_seconds(self) -> float:
        """Processor seconds a step: the median round."""
        return statistics.median(timing.cpu_seconds / timing.steps for timing in self.timings)

    @property
    def device_bytes(self) -> float | None:
        """Bytes a step that the device wrote: the median round."""
        known = [t.device_bytes / t.steps for t in self.timings if t.device_bytes is not None]
        return statistics.median(known) if known else None

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
    most_seconds: float | None = None,
    least_steps: int = 30,
    directory: Path | None = None,
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
    most_seconds, least_steps
        A round's steps of a contender end when they have taken so many seconds, but not before so
        many steps.
    directory
        On the device whose writes are counted.
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
        time_round(contender, 1, 1)
    for turn in range(rounds):
        first = turn % len(contenders)
        for at in [*range(first, len(contenders)), *range(first)]:
            report(f"round {turn + 1} of {rounds}: {contenders[at].name}")
            results[at].timings.append(
                time_round(
                    contenders[at],
                    steps,
                    warm_up,
                    most_seconds=most_seconds,
                    least_steps=least_steps,
                    directory=directory,
                )
            )
        report(f"round {turn + 1} of {rounds}: the machine")
        between()
    return results


def record(run: Recording, results: Iterable[Result], **case: Any) -> None:
    """Add every round of every contender to a run; `case` tells one race from another."""
    for result in results:
        for turn, timing in enumerate(result.timings):
            run.add("timing", **case, name=result.name, round=turn, **asdict(timing))


def results_of(records: Iterable[Record], **case: Any) -> list[Result]:
    """Take the results of one race out of what was recorded.

    Examples
    --------
    >>> run = Recording({})
    >>> record(run, [Result("a", [Timing(2, 1.0, 0.5, 0.3, None)])], regime="whole")
    >>> [result.seconds for result in results_of(run.records, regime="whole")]
    [0.75]
    """
    names = Timing.__dataclass_fields__
    found: dict[str, Result] = {}
    for one in records:
        if one["what"] == "timing" and all(one.get(key) == value for key, value in case.items()):
            result = found.setdefault(one["name"], Result(one["name"]))
            result.timings.append(Timing(**{key: one[key] for key in names}))
    return list(found.values())


def over_limit(result: Result, alone: Result, bandwidth: float, nbytes: float) -> str:
    """Write a step as a multiple of its limit.

    The limit is the larger of a step of what is done anyway and the time in which the device
    writes the bytes of a step: who writes beside the work needs no more.

    Parameters
    ----------
    result, alone
        The step, and that of what is done anyway.
    bandwidth
        Bytes a second that the device writes.
    nbytes
        Bytes of what a step keeps.

    Examples
    --------
    >>> alone, other = Result("alone"), Result("other")
    >>> alone.timings.append(Timing(10, 0.1, 0.0, 1.0, None))
    >>> other.timings.append(Timing(10, 0.6, 0.0, 1.0, None))
    >>> over_limit(other, alone, 1e9, 1e7), over_limit(other, alone, 1e9, 4e7)
    ('6.00', '1.50')
    """
    return f"{result.seconds / max(alone.seconds, nbytes / bandwidth):.2f}"


def table_of(
    results: Sequence[Result],
    title: str = "",
    *,
    bandwidth: float | None = None,
    most_bytes: float = 0,
) -> Table:
    """Lay out results, the first being what the others are compared with.

    With the `bandwidth` of the device, each is told as a multiple of its limit too, in which the
    device writes what it wrote, but no more than `most_bytes` a step.
    """
    headings = ["", "ms", "x first", "best", "worst", "flush", "first", "CPU ms", "device",
                "peak RSS"]  # fmt: skip
    out = Table(
        title,
        headings if bandwidth is None else [*headings[:3], "x limit", *headings[3:]],
        note="ms a step: the median round, its share of the flush that ends a round included;"
        " the same in the best and the worst round; the share itself; the first step of a round;"
        " processor time; bytes a step that the device wrote; most memory held"
        + ("; * cut short, and extrapolated" if any(r.cut_short for r in results) else ""),
    )
    if bandwidth is not None:
        out.note += (
            "; x limit: over the larger of the first row's and the time in which the device writes"
            " an iterate, if it is written"
        )
    for result in results:
        low, high = result.range_seconds
        out.rows.append(
            [
                result.name + (" *" if result.cut_short else ""),
                in_ms(result.seconds),
                f"{result.ratio(results[0]):.2f}",
                in_ms(low),
                in_ms(high),
                in_ms(result.finish_seconds / result.steps),
                in_ms(result.first_seconds),
                in_ms(result.cpu_seconds),
                in_bytes(result.device_bytes),
                in_bytes(result.peak_rss_bytes),
            ]
        )
        if bandwidth is not None:
            kept = min(result.device_bytes or 0.0, most_bytes)
            out.rows[-1].insert(3, over_limit(result, results[0], bandwidth, kept))
    return out


def time_round(
    contender: Contender,
    steps: int,
    warm_up: int,
    *,
    most_seconds: float | None = None,
    least_steps: int = 30,
    directory: Path | None = None,
) -> Timing:
    """Time one contender in one round; the parameters are those of `race`."""
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
        meter = Meter(directory)
        done = 0
        while done < steps:
            run.step()
            done += 1
            if most_seconds is not None and done >= least_steps and meter.seconds > most_seconds:
                break
        step_seconds = meter.seconds
        run.finish()
        used = meter.read()
        return Timing(
            done,
            step_seconds,
            used.seconds - step_seconds,
            first_seconds,
            peak_rss(),
            used.cpu_seconds,
            used.written_bytes,
            used.device_bytes,
            steps if done < steps else None,
        )

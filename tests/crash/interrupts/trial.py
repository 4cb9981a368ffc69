"""One trial: an operation, exceptions, and a look at what they have left."""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pmarray
from tests.crash.interrupts.aftermath import Aftermath, Violation, kind_of, leaks
from tests.crash.interrupts.contents import Contents
from tests.crash.interrupts.injected import EXCEPTIONS, Delivery, Injected
from tests.crash.interrupts.places import PLACES, slow_barriers
from tests.crash.interrupts.points import Points
from tests.crash.interrupts.scenarios import SCENARIOS, Scenario, Stage
from tests.crash.interrupts.threads import Threads
from tests.crash.interrupts.timers import Timers
from tests.persistent import MEMORY

__all__ = ["MODES", "Outcome", "Trial", "count_points", "measure", "run_trial"]

MODES = ("points", "timers", "threads")


@dataclass(frozen=True, slots=True)
class Trial:
    """What is tried; its text is all it takes to try it again."""

    scenario: str
    place: str
    mode: str
    """points, timers or threads."""
    first: int
    """The number of the point, or how many microseconds after the beginning."""
    second: int
    """The same after the first delivery; 0 for none."""
    seed: int
    """Decides what is raised, and how long barriers take."""

    def __str__(self) -> str:
        return (
            f"{self.scenario}:{self.place}:{self.mode}:{self.first}:{self.second}:{self.seed}"
        )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read it back."""
        scenario, place, mode, first, second, seed = text.split(":")
        return cls(scenario, place, mode, int(first), int(second), int(seed))


@dataclass
class Outcome:
    """What came of it."""

    trial: Trial
    deliveries: list[Delivery] = field(default_factory=list)
    returned: bool = False
    error: str = ""
    violations: list[Violation] = field(default_factory=list)


class _Run:
    """A stage that is set, until it is struck."""

    def __init__(self, scenario: Scenario, place: str) -> None:
        self.scenario = scenario
        self.path = Path(tempfile.mkdtemp(prefix="interrupts-", dir=MEMORY))
        self.stage = Stage(PLACES[place], self.path)
        self.stage.place.prepare(self.path)
        scenario.prepare(self.stage)

    def before(self) -> Contents:
        """What there is."""
        if self.stage.group is not None:
            return Contents.of(self.stage.group)
        with pmarray.open_group(self.stage.url, mode="r") as reader:
            return Contents.of(reader)

    def strike(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.path, ignore_errors=True)


def _attempt(delivery: Any, operate: Any, outcome: Outcome) -> None:
    try:
        delivery.arm()
        operate()
        outcome.returned = True
    finally:
        delivery.disarm()


def _interrupt(delivery: Any, operate: Any, outcome: Outcome) -> None:
    """Run it, and keep nothing of the exception that it ends with."""
    try:
        _attempt(delivery, operate, outcome)
    except BaseException as error:
        outcome.error = f"{type(error).__name__}: {error}"
        if not isinstance(error, Injected):
            outcome.violations.append(Violation(_another(error), outcome.error))
    delivery.disarm()


def _another(error: BaseException) -> str:
    kind = kind_of(error)
    return "another error" if kind == "unusable" else kind


def _delivery(trial: Trial, rng: random.Random) -> Any:
    kinds = [EXCEPTIONS[rng.choice(["interrupt", "interrupt", "exit", "alarm"])] for _ in range(2)]
    if trial.mode == "points":
        return Points(trial.first, trial.second, kinds)
    kind = Timers if trial.mode == "timers" else Threads
    return kind(trial.first, trial.second, kinds[: 2 if trial.second else 1])


def run_trial(trial: Trial) -> Outcome:
    """Do it; in a process that can be thrown away."""
    rng = random.Random(trial.seed)
    scenario = SCENARIOS[trial.scenario]
    outcome = Outcome(trial)
    unraisable: list[str] = []
    sys.unraisablehook = lambda raised: _note_unraisable(raised, unraisable)
    threading.excepthook = lambda raised: _note_unraisable(raised, unraisable)
    run = _Run(scenario, trial.place)
    before = run.before()
    delivery = _delivery(trial, rng)
    with ExitStack() as surroundings:
        if trial.seed % 4 == 0 or trial.mode != "points":
            surroundings.enter_context(slow_barriers())
        if trial.mode == "threads":
            delivery.run(lambda: scenario.operate(run.stage), outcome)
        else:
            _interrupt(delivery, lambda: scenario.operate(run.stage), outcome)
    outcome.deliveries = delivery.deliveries
    outcome.violations += Aftermath(run.stage, scenario, before, outcome.returned).check()
    outcome.violations += [Violation("unraisable", text) for text in unraisable]
    run.stage.group = None
    if not outcome.violations:
        run.stage.kept.clear()
        outcome.violations += leaks(run.path)
    run.strike()
    return outcome


def _note_unraisable(raised: Any, found: list[str]) -> None:
    if not isinstance(raised.exc_value, Injected):
        message = getattr(raised, "err_msg", None) or f"in {getattr(raised, 'thread', None)}"
        found.append(f"{type(raised.exc_value).__name__}: {raised.exc_value} ({message})")


def count_points(scenario: str, place: str) -> tuple[int, list[int]]:
    """How many points an operation has, and which of them stand in the library itself."""
    run = _Run(SCENARIOS[scenario], place)
    points = Points(0, 0, [])
    points.arm()
    try:
        run.scenario.operate(run.stage)
    finally:
        points.disarm()
    run.stage.close()
    run.strike()
    return points.count, points.in_library


def measure(scenario: str, place: str) -> int:
    """How long an operation takes, in microseconds, with barriers that are slow."""
    run = _Run(SCENARIOS[scenario], place)
    with slow_barriers():
        began = time.perf_counter()
        run.scenario.operate(run.stage)
        took = time.perf_counter() - began
    run.stage.close()
    run.strike()
    return int(took * 1e6) + 1

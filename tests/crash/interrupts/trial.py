"""One trial: an operation, exceptions, and a look at what they have left."""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import pmarray
import pmarray._array.loans
from tests.crash.interrupts.aftermath import Aftermath, Violation, kind_of, leaks, locks_held
from tests.crash.interrupts.books import left_open
from tests.crash.interrupts.company import Company
from tests.crash.interrupts.contents import Contents
from tests.crash.interrupts.injected import EXCEPTIONS, Delivery, Injected
from tests.crash.interrupts.places import PLACES, slow_barriers
from tests.crash.interrupts.points import Points
from tests.crash.interrupts.scenarios import Scenario, Stage, find
from tests.crash.interrupts.threads import Threads
from tests.crash.interrupts.timers import Timers
from tests.persistent import MEMORY

__all__ = ["MODES", "Outcome", "Trial", "count_points", "measure", "run_trial"]

MODES = ("points", "timers", "threads", "storm")
STORM = 100
"""How many times an operation is interrupted in a storm."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What is tried; its text is all it takes to try it again."""

    scenario: str
    place: str
    mode: str
    """points, timers, threads; or storm, of timers one after the other."""
    first: int
    """The number of the point, or how many microseconds after the beginning."""
    second: int
    """The same after the first delivery; 0 for none."""
    seed: int
    """Decides what is raised, and how long barriers take."""

    def __str__(self) -> str:
        return f"{self.scenario}:{self.place}:{self.mode}:{self.first}:{self.second}:{self.seed}"

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
    delivered: int = 0
    violations: list[Violation] = field(default_factory=list)

    def count(self, deliveries: list[Delivery]) -> None:
        """Count exceptions that were raised, and keep the last ones."""
        self.delivered += len(deliveries)
        self.deliveries = deliveries or self.deliveries


class _Run:
    """A stage that is set, until it is struck."""

    def __init__(self, scenario: Scenario, place: str) -> None:
        self.scenario = scenario
        self.path = Path(tempfile.mkdtemp(prefix="interrupts-", dir=MEMORY))
        where = PLACES[place]
        self.stage = Stage(where, self.path, cache=where.cache_of(scenario.least_cache_bytes))
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


def _attempt(delivery: Any, operate: Callable[[], None], outcome: Outcome) -> None:
    outcome.returned = False
    try:
        delivery.arm()
        operate()
        outcome.returned = True
    finally:
        delivery.disarm()


def _interrupt(
    delivery: Any, operate: Callable[[], None], outcome: Outcome
) -> BaseException | None:
    """Run it; return what it raised, which keeps alive what it was raised in."""
    raised: BaseException | None = None
    try:
        _attempt(delivery, operate, outcome)
    except BaseException as error:
        raised = error
    delivery.disarm()
    outcome.count(delivery.deliveries)
    try:
        _note_raised(raised, outcome)
        return raised
    finally:
        del raised  # or it would live as long as this frame, which is in its own traceback


def _note_raised(error: BaseException | None, outcome: Outcome) -> None:
    if error is None:
        return
    outcome.error = f"{type(error).__name__}: {error}"
    if not isinstance(error, Injected):
        kind = kind_of(error)
        kind = "another error" if kind == "unusable" else kind
        outcome.violations.append(Violation(kind, outcome.error))


def _kinds(rng: random.Random, count: int) -> list[type[Injected]]:
    return [EXCEPTIONS[rng.choice(["interrupt", "interrupt", "exit", "alarm"])]] * count


def _operate(
    trial: Trial, run: _Run, outcome: Outcome, afterwards: ExitStack
) -> BaseException | None:
    rng = random.Random(trial.seed)

    def operate() -> None:
        run.scenario.operate(run.stage)

    if trial.mode == "storm":
        _storm(trial, rng, run, operate, outcome)
        return None
    kinds = _kinds(rng, 2 if trial.second else 1)
    if trial.mode == "threads":
        threads = Threads(trial.first, trial.second, kinds)
        afterwards.callback(threads.dismiss)
        outcome.returned = threads.run(operate)
        _note_raised(threads.raised, outcome)
        outcome.count(threads.deliveries)
        raised, threads.raised = threads.raised, None
        return raised
    kind = Points if trial.mode == "points" else Timers
    return _interrupt(kind(trial.first, trial.second, kinds), operate, outcome)


def _storm(
    trial: Trial, rng: random.Random, run: _Run, operate: Callable[[], None], outcome: Outcome
) -> None:
    """Interrupt it again and again, with a quick look after each."""
    group = run.scenario.interrupted(run.stage)
    for _ in range(STORM):
        second = rng.randint(1, trial.first) if rng.random() < 0.3 else 0
        timers = Timers(rng.randint(1, trial.first), second, _kinds(rng, 2))
        _interrupt(timers, operate, outcome)
        outcome.violations += [Violation("lock held", name) for name in locks_held(group)]
        if not outcome.violations:
            _roll_back_where_told(run, outcome)
            outcome.violations += [Violation(kind, detail) for kind, detail in left_open(group)]
        if outcome.violations:
            return


def run_trial(trial: Trial, interrupted: Callable[[Outcome], None]) -> Outcome:
    """Do it, in a process that can be thrown away; call `interrupted` before the look."""
    outcome = Outcome(trial)
    unraisable: list[str] = []
    sys.unraisablehook = threading.excepthook = partial(note_unraisable, unraisable)
    run = _Run(find(trial.scenario), trial.place)
    before = run.before()
    company: Company | None = None
    if trial.seed % 3 == 0 and trial.mode != "points" and run.stage.group is not None:
        company = Company(run.scenario, run.stage)
    afterwards = ExitStack()
    with ExitStack() as surroundings:
        if trial.mode != "points" or trial.seed % 4 == 0:
            surroundings.enter_context(slow_barriers())
        if company is not None:
            company.begin()
        raised = _operate(trial, run, outcome, afterwards)
    torn_loan = _came_first_in(pmarray._array.loans.Borrowing.__exit__, outcome)
    if trial.seed % 5 or run.stage.group is None or torn_loan:
        raised = None  # and what it was raised in goes, such as a handle that nobody has closed
    interrupted(outcome)
    alone = company is None or company.end()
    if not outcome.violations or trial.mode != "storm":
        look = Aftermath(run.stage, run.scenario, before, outcome.returned)
        _roll_back_where_told(run, outcome)
        outcome.violations += look.check()
    if not alone:
        outcome.violations.append(Violation("hang", "of a thread that does something meanwhile"))
    if company is not None:
        outcome.violations += [Violation("unusable", text) for text in company.errors]
    outcome.violations += [Violation("unraisable", text) for text in unraisable]
    del raised, company
    afterwards.close()
    run.stage.group = None
    if not outcome.violations:
        run.stage.kept.clear()
        outcome.violations += leaks(run.path)
    run.strike()
    return outcome


def _came_first_in(function: Any, outcome: Outcome) -> bool:
    """Whether an exception came before a line of a function had run.

    In an ``__exit__`` that leaves its object as in the middle of the block, for as long as the
    exception is kept, and it is documented what to do then.
    """
    code = function.__code__
    line = f"{Path(code.co_filename).name}:{code.co_firstlineno} {code.co_name}"
    return any(line in str(delivery) for delivery in outcome.deliveries)


def _roll_back_where_told(run: _Run, outcome: Outcome) -> None:
    """Do what the documentation of `Group.rollback` tells people to do."""
    group = run.stage.group
    came = _came_first_in(pmarray.Transaction.__exit__, outcome)
    if came and group is not None and not group.closed:
        group.rollback()


def note_unraisable(found: list[str], raised: Any) -> None:
    """Note what was raised where nobody could catch it, unless the rig had raised it."""
    if not isinstance(raised.exc_value, Injected):
        message = getattr(raised, "err_msg", None) or f"in {getattr(raised, 'thread', None)}"
        found.append(f"{type(raised.exc_value).__name__}: {raised.exc_value} ({message})")


def count_points(scenario: str, place: str) -> tuple[int, list[int]]:
    """How many points an operation has, and which of them stand in the library itself."""
    run = _Run(find(scenario), place)
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
    run = _Run(find(scenario), place)
    with slow_barriers():
        began = time.perf_counter()
        run.scenario.operate(run.stage)
        took = time.perf_counter() - began
    run.stage.close()
    run.strike()
    return int(took * 1e6) + 1

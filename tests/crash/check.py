"""Crash a program at every instant, in every way, open what is left, and judge it.

1. The program is run once, and what it does to its directory recorded.
2. After each event of the record, the disk may lose power: every image that this could leave is
   put into a directory (`images`, `stage`), opened, and what is found there judged. Equal images
   are opened once; what was found is judged against what had been promised at each instant.
3. Some of the images are crashed again: opened by `Scenario.resume`, which recovers and may work
   on, while that is recorded in turn, and then as in step 2.
4. At some instants the process dies instead, and the machine goes on: `resume` runs on the newest
   state, with everything pending still pending, and the power fails only then.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.crash.events import Event, Mark
from tests.crash.images import Image, PowerCut, images
from tests.crash.recorder import Recorder
from tests.crash.simdisk import Disk
from tests.crash.stage import Stage

__all__ = ["Campaign", "Refused", "Report", "Scenario", "Violation", "record"]

MEMORY = Path("/dev/shm")


class Scenario:
    """A program, how to look at what it leaves, and what may be found there."""

    name = ""
    garbage = True
    """Whether sectors with pending writes may hold noise."""

    def surroundings(self) -> AbstractContextManager[None]:
        """What it runs in, from the preparations to the last look."""
        return nullcontext()

    def prepare(self, path: Path) -> None:
        """Make what is there, and durable, before the program starts."""

    def run(self, path: Path, recorder: Recorder) -> None:
        """Be the program: work in `path`; mark what is promised."""
        raise NotImplementedError

    def reopen(self, path: Path) -> Any:
        """Open what a crash has left, and return what is found; raising is a violation."""
        raise NotImplementedError

    def resume(self, path: Path, recorder: Recorder) -> None:
        """Recover, and perhaps work on; crashed in its turn. The first mark is "recovered"."""
        recorder.mark("recovered", self.reopen(path))

    def objection(self, found: Any, marks: Sequence[Mark]) -> str | None:
        """Say what is wrong with finding this after these marks; None if nothing is."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Refused:
    """What was found: nothing, because opening failed."""

    why: str


@dataclass(frozen=True, slots=True)
class Violation:
    """An image that should have been opened as something else."""

    scenario: str
    seed: int
    history: tuple[str, ...]
    """Where the power failed; more than one line if it failed again."""
    lost: tuple[str, ...]
    """How the image differs from the newest state."""
    found: Any
    objection: str

    def __str__(self) -> str:
        lines = [f"{self.scenario}, seed {self.seed}: {self.objection}"]
        lines += [f"  crashed {place}" for place in self.history]
        lines += [f"  {line}" for line in self.lost[:12]]
        lines.append(f"  found {str(self.found)[:1000]}")
        return "\n".join(lines)


@dataclass(slots=True)
class Report:
    """What a campaign has done."""

    points: int = 0
    """Instants at which the power failed or the process died."""
    judged: int = 0
    """Images, with the repetitions."""
    distinct: int = 0
    """Different images, each opened."""
    again: int = 0
    """Recoveries that were crashed in their turn."""
    violations: list[Violation] = field(default_factory=list)

    def __iadd__(self, other: Report) -> Report:
        self.points += other.points
        self.judged += other.judged
        self.distinct += other.distinct
        self.again += other.again
        self.violations += other.violations
        return self


@contextmanager
def scratch(parent: Path | None = None) -> Iterator[Path]:
    """Lend an empty directory, in memory unless told."""
    where = parent or (MEMORY if MEMORY.is_dir() else None)
    path = Path(tempfile.mkdtemp(prefix="crash-", dir=where))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def record(scenario: Scenario, path: Path) -> tuple[Disk, list[Event]]:
    """Run a program in an empty directory; return what was there before, and what it did."""
    with scenario.surroundings():
        scenario.prepare(path)
        with Recorder(path) as recorder:
            scenario.run(path, recorder)
    after = recorder.before.copy()
    for event in recorder.events:
        after.apply(event)
    Stage(path).compare_with(after)
    return recorder.before, recorder.events


class Campaign:
    """One scenario, crashed in every way.

    Parameters
    ----------
    scenario
        What to crash.
    seed
        Decides what is sampled.
    limit
        All images of an instant are tried if they are no more than this.
    samples
        Random images of an instant where there are more.
    again
        The share of the images, and of the instants, that are crashed a second time.
    instants
        The share of the instants at which the power fails.
    until
        When to stop, by `time.monotonic`; None to go on to the end.
    patience
        Stop after this many violations.
    workplace
        Where the program runs; with direct I/O where that place has it.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        seed: int = 0,
        limit: int = 1 << 12,
        samples: int = 32,
        again: float = 0.02,
        instants: float = 1,
        until: float | None = None,
        patience: int = 10,
        workplace: Path | None = None,
    ) -> None:
        self.scenario = scenario
        self.report = Report()
        self._seed = seed
        self._limit = limit
        self._samples = samples
        self._again = again
        self._instants = instants
        self._until = until
        self._patience = patience
        self._workplace = workplace
        self._found: dict[bytes, Any] = {}
        self._count = self._salt = 0

    def run(self) -> Report:
        """Crash it; return what was seen."""
        with scratch(self._workplace) as path:
            disk, events = record(self.scenario, path)
        with scratch() as path, self.scenario.surroundings():
            self._stage = Stage(path)
            self._explore(disk, events, (), ())
        return self.report

    @property
    def _over(self) -> bool:
        return len(self.report.violations) >= self._patience or (
            self._until is not None and time.monotonic() > self._until
        )

    def _explore(
        self,
        disk: Disk,
        events: Sequence[Event],
        marks: tuple[Mark, ...],
        history: tuple[str, ...],
    ) -> None:
        """Crash a recorded run after each event; step 2."""
        now = disk.copy()
        first = history == ()
        for i, event in enumerate(events):
            now.apply(event)
            if self._over:
                return
            if isinstance(event, Mark):
                marks = (*marks, event)  # the same images, judged by another promise
            else:
                self._count += 1
                self._salt = self._count
            if self._rng("instant").random() >= self._instants:
                continue
            in_flight = [later for later in events[i + 1 :] if later.start < event.end]
            at = now
            if in_flight:
                at = now.copy()
                for later in in_flight:
                    at.begin(later)
            here = (*history, f"after event {i + 1} of {len(events)}: {_describe(event)}")
            salt = self._salt
            self._power_cut(at, marks, here, may_repeat=first)
            self._salt = salt
            if first and not isinstance(event, Mark) and self._rng("kill").random() < self._again:
                self._kill(at, marks, here, clock=events[-1].end)

    def _rng(self, what: str) -> random.Random:
        return random.Random(f"{self._seed}/{self._salt}/{what}")

    def _power_cut(
        self, at: Disk, marks: tuple[Mark, ...], here: tuple[str, ...], *, may_repeat: bool
    ) -> None:
        self.report.points += 1
        rng, repeats = self._rng("images"), self._rng("again")
        newest = PowerCut(at).newest()
        for image in images(
            at,
            rng,
            limit=self._limit if may_repeat else max(16, self._limit // 16),
            samples=self._samples if may_repeat else self._samples // 2,
            garbage=self.scenario.garbage,
        ):
            if self._over:
                return
            is_new = image.key not in self._found
            self._judge(image, at, marks, here)
            if may_repeat and is_new and repeats.random() < self._again:
                self.report.again += 1
                disk = self._stage.show(image)
                self._resume(disk, marks, (*here, *image.differences(newest)), 0)

    def _kill(
        self, at: Disk, marks: tuple[Mark, ...], here: tuple[str, ...], *, clock: int
    ) -> None:
        """Step 4."""
        self.report.again += 1
        image = PowerCut(at).newest()
        self._judge(image, at, marks, (*here, "(killed)"))
        self._stage.show(image)
        self._resume(at, marks, (*here, "(killed)"), clock)

    def _resume(
        self, disk: Disk, marks: tuple[Mark, ...], here: tuple[str, ...], clock: int
    ) -> None:
        """Recover from what the stage shows, on record, and crash that; step 3."""
        with Recorder(self._stage.path, disk.copy()).start_after(clock) as recorder:
            try:
                self.scenario.resume(self._stage.path, recorder)
            except Exception as error:
                self._violation(here, (), Refused(repr(error)), "cannot be recovered")
        after = disk.copy()
        for event in recorder.events:
            after.apply(event)
        self._stage.moved_on(after)
        self._explore(disk, recorder.events, marks, here)

    def _judge(
        self, image: Image, at: Disk, marks: tuple[Mark, ...], here: tuple[str, ...]
    ) -> None:
        self.report.judged += 1
        if image.key not in self._found:
            self._found[image.key] = self._open(image)
        found = self._found[image.key]
        objection = (
            f"refused: {found.why}"
            if isinstance(found, Refused)
            else self.scenario.objection(found, marks)
        )
        if objection is not None:
            lost = image.differences(PowerCut(at).newest())
            self._violation(here, tuple(lost), found, objection)

    def _open(self, image: Image) -> Any:
        """Return what is found in an image."""
        self.report.distinct += 1
        disk = self._stage.show(image)
        found: Any
        with Recorder(self._stage.path, disk.copy()) as recorder:
            try:
                found = self.scenario.reopen(self._stage.path)
            except Exception as error:
                found = Refused(repr(error))
        for event in recorder.events:
            disk.apply(event)
        self._stage.moved_on(disk)
        return found

    def _violation(
        self, here: tuple[str, ...], lost: tuple[str, ...], found: Any, objection: str
    ) -> None:
        self.report.violations.append(
            Violation(self.scenario.name, self._seed, here, lost, found, objection)
        )


def _describe(event: Event) -> str:
    facts = []
    for name in event.__dataclass_fields__:
        value = getattr(event, name)
        facts.append(f"{name}={len(value)} bytes" if name == "data" else f"{name}={value!r}")
    return f"{type(event).__name__}({', '.join(facts)})"[:200]

"""Every library through the same power cuts and kills; counts of what was found."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.check import scratch
from tests.crash.choices import UNITS, forget_pages
from tests.crash.events import Barrier, DirectoryBarrier, Entries, Event, Mark
from tests.crash.images import Image, images
from tests.crash.peers.filesystem import FileSystem, mounted
from tests.crash.peers.judge import Outcome, outcome
from tests.crash.peers.programs import Columns, states
from tests.crash.peers.workers import STEPS_AT_MOST, Reader, empty, kill_once, run_on
from tests.crash.simdisk import Disk, with_changes
from tests.crash.stage import Stage

__all__ = ["MODELS", "Model", "Tally", "as_on_ext4", "cut_power", "kill", "record"]


@dataclass(frozen=True, slots=True)
class Model:
    """What is taken for possible; noise in sectors never is, as no library here speaks of it."""

    ext4: bool
    """Whether the file system does what ext4 does, or no more than POSIX asks for."""
    units: tuple[int, ...]
    """What the medium may write in one step, in bytes."""


MODELS = {
    "ext4": Model(ext4=True, units=(512, 4096)),
    "POSIX": Model(ext4=False, units=UNITS),
}
"""A disk that writes whole sectors, with ext4 on it; and the worst that POSIX allows."""


@dataclass(slots=True)
class Tally:
    """What was found, how often, and the first of each kind that is not whole."""

    counts: Counter[Outcome] = field(default_factory=Counter)
    examples: dict[Outcome, str] = field(default_factory=dict)

    def add(self, found: Outcome, example: str) -> None:
        """Count one."""
        self.counts[found] += 1
        if found != "whole":
            self.examples.setdefault(found, example)

    def __iadd__(self, other: Tally) -> Tally:
        self.counts += other.counts
        self.examples = other.examples | self.examples
        return self


def record(peer: str, workload: str, steps: int) -> tuple[Disk, list[Event]]:
    """Run a program; return what was durable before its updates, and what it did."""
    system = FileSystem()
    with scratch() as place:
        with mounted(system, place):
            run_on(peer, workload, steps, place)
    system.check()
    return system.before, system.events


def as_on_ext4(disk: Disk, events: Sequence[Event]) -> list[Event]:
    """Return the record of the same program on ext4, mounted as usual, which does more than POSIX.

    It keeps a journal of its names: an fsync of any file makes all names durable that were changed
    before it. And the data of a file that is renamed over another are written before the rename
    is (`auto_da_alloc`).
    """
    result: list[Event] = []
    now = disk.copy()
    for event in events:
        now.apply(event)
        if isinstance(event, Entries):
            earlier = now.directories[event.parent]
            names = with_changes(earlier.entries, earlier.pending[:-1])
            result += [
                Barrier(event.start, event.start, entry, failed=False)
                for name, entry in event.changes
                if isinstance(entry, int) and entry in now.files and name in names
            ]
        result.append(event)
        if isinstance(event, Barrier | DirectoryBarrier):
            added = [DirectoryBarrier(event.start, event.end, i, False) for i in now.directories]
            for barrier in added:
                now.apply(barrier)
            result += added
    return result


def cut_power(
    peer: str,
    workload: str,
    model: Model,
    *,
    seed: int,
    steps: int = 4,
    limit: int = 64,
    samples: int = 24,
    until: float | None = None,
) -> Tally:
    """Let the power fail after each event, in as many ways as there are, or in samples of them.

    Each different image is opened once, and counted once for every promise that it is judged by.
    With `until` the sampling is repeated until then, by `time.monotonic`, or nothing new is found.
    """
    disk, events = record(peer, workload, steps)
    if model.ext4:
        events = as_on_ext4(disk, events)
    tally = Tally()
    with closing(Reader(peer)) as reader, scratch() as path:
        opened = _Opened(reader, Stage(path), states(workload, steps))
        rng, known = random.Random(seed), -1
        while known < tally.counts.total():
            known = tally.counts.total()
            for where, low, high, image in _cuts(disk, events, model, rng, limit, samples):
                if until is not None and time.monotonic() > until:
                    break
                judged = opened.judge(image, low, high)
                if judged is not None:
                    verdict, what = judged
                    tally.add(verdict, f"{workload}, {where}, promised {low}, begun {high}: {what}")
            if until is None:
                break
    forget_pages()
    return tally


def _cuts(
    disk: Disk, events: list[Event], model: Model, rng: random.Random, limit: int, samples: int
) -> Iterator[tuple[str, int, int, Image]]:
    """Yield where the power fails, what had been promised and begun then, and what may be left.

    The instants come in a random order: those that take long must not use up the time of all.
    """
    now, low, high = disk.copy(), 0, 0
    instants = []
    for i, event in enumerate(events):
        now.apply(event)
        if isinstance(event, Mark):
            low, high = (low, event.value) if event.label == "begun" else (event.value, high)
        where = f"after event {i + 1} of {len(events)} ({type(event).__name__})"
        instants.append((where, low, high, now.copy()))
    rng.shuffle(instants)
    for where, low, high, then in instants:
        for image in images(
            then, rng, limit=limit, samples=samples, garbage=False, units=model.units
        ):
            yield where, low, high, image


class _Opened:
    """What was found in each image; it is looked at once, and judged by every promise."""

    def __init__(self, reader: Reader, stage: Stage, expected: list[Columns]) -> None:
        self._reader = reader
        self._stage = stage
        self._expected = expected
        # The verdicts for all promises stand in for the content, which would fill the memory.
        self._found: dict[bytes, tuple[dict[tuple[int, int], Outcome], str]] = {}
        self._judged: set[tuple[bytes, int, int]] = set()

    def judge(self, image: Image, low: int, high: int) -> tuple[Outcome, str] | None:
        """Return the verdict and what a person may want to know; None if it was given before."""
        if (image.key, low, high) in self._judged:
            return None
        self._judged.add((image.key, low, high))
        if image.key not in self._found:
            self._stage.clear()  # the library may have changed what was there
            self._stage.show(image)
            content = self._reader.read(self._stage.path)
            last = len(self._expected) - 1
            verdicts = {
                (i, j): outcome(content, self._expected, i, j)
                for i in range(last + 1)
                for j in (i, min(i + 1, last))
            }
            what = self._reader.complaint if content is None else _summary(content)
            self._found[image.key] = verdicts, what
        verdicts, what = self._found[image.key]
        return verdicts[low, high], what


def _summary(found: Columns) -> str:
    """Say for a person which updates the numbers of each column are from; -1 for zeros."""
    return "columns from updates " + ", ".join(
        "+".join(str(s) for s in sorted({int(v) >> 40 if v else -1 for v in column})[:6])
        for column in found
    )


def kill(peer: str, workload: str, *, seed: int, kills: int, until: float | None = None) -> Tally:
    """Kill a program with SIGKILL again and again, each time from its beginning."""
    rng, tally, expected = random.Random(seed), Tally(), states(workload, STEPS_AT_MOST)
    with closing(Reader(peer)) as reader, scratch(Path("/var/tmp")) as parent:
        for i in range(kills):
            if until is not None and time.monotonic() > until:
                break
            with empty(parent / "killed") as place:
                low, high = kill_once(peer, workload, rng, place)
                content = reader.read(place)
                what = reader.complaint if content is None else _summary(content)
                tally.add(
                    outcome(content, expected, low, high),
                    f"{workload}, kill {i}, promised {low}, begun {high}: {what}",
                )
    return tally

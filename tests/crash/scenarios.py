"""Programs on a group, and what a crash may leave of them.

To add one: subclass `GroupScenario`, call ``recorder.mark("begun", n)`` before the work that leads
to state n and ``recorder.mark("committed", n)`` when the library has promised it, and list it in
`SCENARIOS`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import pmarray
from pmarray.testing import State, Workload
from tests.crash.check import Scenario
from tests.crash.events import Mark
from tests.crash.recorder import Recorder

__all__ = ["SCENARIOS", "Flushes", "GroupScenario", "Interrupted", "Transactions"]

_SMALL_CACHE_BYTES = 16384


def _url(path: Path) -> str:
    return f"memmap:{path}/g"


class GroupScenario(Scenario):
    """A group that goes from state to state; which one it is in, its attribute "step" says."""

    states: list[State]

    def reopen(self, path: Path) -> Any:
        """Look as a reader, which changes nothing; recover; look again: it must be the same."""
        url = _url(path)
        try:
            with pmarray.open_group(url, mode="r") as reader:
                seen = State.of_group(reader)
        except pmarray.errors.GroupNotFoundError:
            seen = None
        with pmarray.open_group(url, mode="a") as group:
            group._recover()
            found = State.of_group(group)
        if seen is not None and seen != found:
            raise AssertionError(f"a reader saw {seen}, and recovery made it {found}")
        damage = [finding for finding in pmarray.verify(url) if finding.damaged]
        if damage:
            raise AssertionError(f"recovery left {damage}")
        return found

    def objection(self, found: State, marks: Sequence[Mark]) -> str | None:
        """One of the states from the last that was promised to the last that was begun."""
        low, high = promised(marks)
        step = dict(found.attrs).get("step", 0)
        if not low <= step <= high:
            return f"state {step} is not one of {low} to {high}"
        if found != self.states[step]:
            return f"this is not state {step}, which is {self.states[step]}"
        return None


def promised(marks: Sequence[Mark]) -> tuple[int, int]:
    """Return the states between which a crash may leave the group."""
    low = high = 0
    for mark in marks:
        if mark.label == "begun":
            high = max(high, mark.value)
        elif mark.label == "committed":
            low = mark.value
            high = max(high, low)
        elif mark.label == "recovered":
            low = high = mark.value
    return low, high


class Transactions(GroupScenario):
    """A random workload; some of its transactions are rolled back first.

    Parameters
    ----------
    seed
        Of the workload.
    length
        How many transactions.
    pipelined
        Whether commits are waited for only now and then.
    cache
        Of the group; a small one makes transactions spill.
    """

    def __init__(
        self,
        seed: int,
        length: int = 6,
        *,
        pipelined: bool = False,
        cache: int | str = _SMALL_CACHE_BYTES,
    ) -> None:
        self.name = f"transactions {seed} {'pipelined' if pipelined else 'durable'} cache={cache}"
        self._workload = Workload(seed, length + 2)
        self.states = self._workload.states
        self._seed = seed
        self._length = length
        self._pipelined = pipelined
        self._cache = cache

    def run(self, path: Path, recorder: Recorder) -> None:
        """Make a group and work in it."""
        with pmarray.open_group(_url(path), cache=self._cache) as group:
            self._work(group, recorder, 0, self._length)

    def resume(self, path: Path, recorder: Recorder) -> None:
        """Recover, and commit one more."""
        with pmarray.open_group(_url(path), cache=self._cache) as group:
            group._recover()
            step = group.attrs.get("step", 0)
            recorder.mark("recovered", step)
            self._work(group, recorder, step, min(step + 1, self._length + 2))

    def _work(self, group: pmarray.Group, recorder: Recorder, start: int, stop: int) -> None:
        rng = random.Random(f"{self._seed}/{start}")
        for i in range(start, stop):
            if rng.random() < 0.25:
                self._abandon(group, i)
            recorder.mark("begun", i + 1)
            with group.transaction(wait=not self._pipelined):
                self._workload.apply(i, group)
            if not self._pipelined:
                recorder.mark("committed", i + 1)
            elif rng.random() < 0.3:
                group.flush()
                recorder.mark("committed", i + 1)
        group.flush()
        recorder.mark("committed", stop)

    def _abandon(self, group: pmarray.Group, i: int) -> None:
        try:
            with group.transaction():
                self._workload.apply(i, group)
                raise KeyError("changed my mind")
        except KeyError:
            pass


class Flushes(GroupScenario):
    """Part 1's promise, without transactions: what was flushed before the last flush is there.

    Operations come in batches, each on items that no earlier batch has written, and a flush after
    each. Between two flushes nothing is promised of the items that a batch touches; those of the
    batches before must be whole, and shapes and attributes those of one flush or the next.
    """

    _ROWS = 300

    def __init__(self, seed: int, batches: int = 5, cache: int | str = _SMALL_CACHE_BYTES) -> None:
        self.name = f"flushes {seed} cache={cache}"
        # Noise in a sector destroys its neighbours, of which nothing is promised without a journal.
        self.garbage = False
        self._batches = batches
        self._cache = cache
        self._dtype = np.dtype(random.Random(seed).choice(["float32", "float64", "int8"]))

    def _values(self, i: int) -> Any:
        return np.full(self._ROWS, i + 1, self._dtype)

    def run(self, path: Path, recorder: Recorder) -> None:
        """Grow one array, fill another in place, replace a third."""
        with pmarray.open_group(_url(path), cache=self._cache) as group:
            for i in range(self._batches):
                recorder.mark("begun", i + 1)
                if i == 0:
                    group.create("grows", (self._ROWS, 0), self._dtype, layout="col")
                    group.create("filled", (self._batches, self._ROWS), self._dtype)
                group["grows"].append(self._values(i)[:, None])
                group["filled"][i] = self._values(i)
                if f"made{i - 1}" in group:
                    del group[f"made{i - 1}"]
                group.create(f"made{i}", (3,), "int8")[:] = i + 1
                group.attrs["step"] = i + 1
                group.flush()
                recorder.mark("committed", i + 1)

    def reopen(self, path: Path) -> Any:
        """Return the step, and what is wrong with what belongs to it."""
        with pmarray.open_group(_url(path), mode="a") as group:
            group._recover()
            step = int(group.attrs.get("step", 0))
            return step, tuple(self._faults_of(group, step)) if step else ()

    def _faults_of(self, group: pmarray.Group, step: int) -> Iterator[str]:
        for name in ("grows", "filled"):
            if name not in group:
                yield f"{name} is missing"
                return
        grows, filled = group["grows"], group["filled"]
        # A batch that failed half-way may have got its shapes to the disk and not its step.
        if grows.shape not in ((self._ROWS, step), (self._ROWS, step + 1)):
            yield f"grows has shape {grows.shape}"
            return
        for i in range(step):
            if not np.array_equal(grows[:, i], self._values(i)):
                yield f"grows[:, {i}]"
            if not np.array_equal(filled[i], self._values(i)):
                yield f"filled[{i}]"
        last, after = f"made{step - 1}", f"made{step}"
        if last in group:
            if not np.array_equal(group[last][...], [step] * 3):
                yield last
        elif after not in group and grows.shape[1] == step:
            yield f"{last} is missing"

    def resume(self, path: Path, recorder: Recorder) -> None:
        """Recover."""
        recorder.mark("recovered", self.reopen(path)[0])

    def objection(self, found: Any, marks: Sequence[Mark]) -> str | None:
        """The items of every flush up to the step that the attributes name are there."""
        step, wrong = found
        low, high = promised(marks)
        if not low <= step <= high:
            return f"step {step} is not one of {low} to {high}"
        return f"at step {step}: {', '.join(wrong)}" if wrong else None


class Interrupted(GroupScenario):
    """A large overwrite, and flushed writes in between: old journal records must not come back.

    The before-images take several records. A crash can leave the later ones without the first;
    then work goes on, records are written where those lie, and the power fails again.
    """

    name = "interrupted"
    garbage = False
    _ITEMS = 3 << 18  # 1.5 MiB of int16, more than one record

    def __init__(self) -> None:
        self.states = []

    def prepare(self, path: Path) -> None:
        """Make an array that is all zeros, and a journal."""
        with pmarray.open_group(_url(path)) as group:
            group.create("x", (self._ITEMS,), "int16")[:] = 1
            with group.transaction():
                group.attrs["committed"] = 0

    def run(self, path: Path, recorder: Recorder) -> None:
        """Overwrite all of it in one transaction."""
        with pmarray.open_group(_url(path), mode="r+") as group:
            recorder.mark("begun", 2)
            with group.transaction():
                group["x"][:] = 2
            recorder.mark("committed", 2)

    def resume(self, path: Path, recorder: Recorder) -> None:
        """Overwrite it without a transaction, flush, and then in one transaction."""
        with pmarray.open_group(_url(path), mode="r+") as group:
            group._recover()
            recorder.mark("recovered", int(group["x"][0]))
            recorder.mark("loose")
            group["x"][:] = 3
            group.flush()
            recorder.mark("recovered", 3)
            recorder.mark("begun", 4)
            with group.transaction():
                group["x"][:] = 4
            recorder.mark("committed", 4)

    def reopen(self, path: Path) -> Any:
        """Return all values that are in it."""
        with pmarray.open_group(_url(path), mode="r+") as group:
            group._recover()
            return tuple(int(value) for value in np.unique(group["x"][:]))

    def objection(self, found: Any, marks: Sequence[Mark]) -> str | None:
        """All of one state, but for the time between a loose write and its flush."""
        if not marks:
            return None if found == (1,) else "not the state before"
        if marks[-1].label == "loose":
            return None
        allowed = {1}
        for mark in marks:
            if mark.label == "begun":
                allowed.add(mark.value)
            elif mark.label in ("committed", "recovered"):
                allowed = {mark.value}
        if len(found) == 1 and found[0] in allowed:
            return None
        return f"not all of one of {sorted(allowed)}"


SCENARIOS: dict[str, Callable[[int], Scenario]] = {
    "durable": Transactions,
    "pipelined": lambda seed: Transactions(seed, pipelined=True),
    "cached": lambda seed: Transactions(seed, cache="4 MiB"),
    "uncached": lambda seed: Transactions(seed, cache=0),
    "flushes": Flushes,
    "interrupted": lambda _: Interrupted(),
}
"""By name; each is made from a seed."""

"""Cuts the power at random instants, again and again on the same disks, and judges what is left.

One cycle is one life of the machine:

1. It starts, and mounts the disks as the last cut left them.
2. A reader, who repairs nothing, looks at the group; then a writer recovers it. Both must find the
   state after one and the same transaction of the workload, no earlier than the last one that was
   acknowledged over the serial line and no later than the last one that had begun. Now and then
   the power goes during the recovery, and the next cycle asks the same.
3. The workload goes on from there, until the power goes: some lines later, and some milliseconds.

When the workload is done, or something was wrong, the next cycle begins with new disks.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pmarray.testing import Workload
from tests.powercut.guest import Guest, GuestError, Reply
from tests.powercut.media import Medium
from tests.powercut.rig import Rig, copy_disks
from tests.powercut.verdict import Found, judge, step_of

__all__ = ["Campaign", "Cut"]

_LENGTH = 60
"""Transactions of a workload: several cuts' worth."""


@dataclass(frozen=True, slots=True)
class Cut:
    """One cycle."""

    number: int
    during: str
    """What the power cut interrupted: the workload or the recovery."""
    committed: int
    """Transactions that were acknowledged by then."""
    begun: int
    """And begun."""
    seconds: float
    violation: str = ""
    """What was wrong with what the cut before this one had left."""


class Campaign:
    """Cycles on one medium.

    Parameters
    ----------
    rig
        Has the machines.
    medium
        Where the group is.
    seed
        Decides about workloads and delays. What a delay meets depends on the computer too, so the
        same seed gives other cuts; what a cut has left is kept if something is wrong with it.
    scratch
        An empty directory for the disks, best in memory.
    evidence
        Where the disks are kept, as they were found, when something is wrong.
    """

    def __init__(
        self, rig: Rig, medium: Medium, *, seed: int, scratch: Path, evidence: Path
    ) -> None:
        self._rig = rig
        self._medium = medium
        self._seed = seed
        self._rng = random.Random(f"{medium.name} {seed}")
        self._disks = scratch / "disks"
        self._found = scratch / "found"
        self._evidence = evidence
        self._fresh = True

    def run(self, cycles: int) -> Iterator[Cut]:
        """Yield each cut; the next machine starts when the next one is asked for."""
        for number in range(cycles):
            start = time.monotonic()
            during, violation = "writing", ""
            try:
                during = self._cycle()
            except (GuestError, _ViolationError) as error:
                violation = f"{error}{self._keep(number)}"
                self._fresh = True
            seconds = time.monotonic() - start
            yield Cut(number, during, self._committed, self._begun, seconds, violation)

    def _cycle(self) -> str:
        """Start, look, recover, go on, and cut; return what was interrupted."""
        while True:
            if self._fresh:
                self._start_over()
            copy_disks(self._disks, self._found)
            with self._rig.start(self._disks) as guest:
                guest.do("shell", script=self._medium.mount)
                if not self._fresh and not self._recover(guest):
                    return "recovery"
                if self._fresh and not self._medium.directory:
                    guest.do("make", url=self._medium.url)  # a bare device is formatted, once
                self._fresh = False
                if self._begun < _LENGTH:
                    self._write(guest)
                    return "writing"
            self._fresh = True  # the workload is done, and was found so

    def _start_over(self) -> None:
        self._rig.fresh(self._medium, self._disks)
        self._workload_seed = self._rng.randrange(1 << 30)
        self._workload = Workload(self._workload_seed, _LENGTH)
        self._committed = self._begun = 0

    def _recover(self, guest: Guest) -> bool:
        """Judge what is there; False if the power went in the meantime."""
        looked = guest.do("look", url=self._medium.url)
        self._judge(looked)
        guest.order("recover", url=self._medium.url)
        guest.wait_for("recovering")
        if self._rng.random() < 0.15:
            for reply in guest.replies_for(self._rng.uniform(0, 0.15)):
                _must_not_fail(reply)
            guest.pull_the_plug()
            return False
        recovered = guest.wait_for("done")
        self._judge(looked, recovered)
        self._committed = self._begun = step_of(recovered)
        return True

    def _judge(self, *found: Found) -> None:
        if wrong := judge(self._workload, self._committed, self._begun, *found):
            raise _ViolationError(wrong)

    def _write(self, guest: Guest) -> None:
        """Go on with the workload, and pull the plug in the middle of it, or just after its end."""
        guest.order(
            "write",
            url=self._medium.url,
            seed=self._workload_seed,
            length=_LENGTH,
            begin=self._begun,
            wait=self._rng.random() < 0.5,
        )
        # Half a second passes before the first line: one cut in eight falls into it.
        early = self._rng.random() < 0.125
        lines = 0 if early else self._rng.randint(1, 40)
        if lines:
            for count, reply in enumerate(guest.replies(), start=1):
                self._note(reply)
                if reply.word == "done" or count == lines:
                    break
        for reply in guest.replies_for(self._rng.uniform(0, 0.6 if early else 0.08)):
            self._note(reply)
        for reply in guest.pull_the_plug():
            self._note(reply)

    def _note(self, reply: Reply) -> None:
        _must_not_fail(reply)
        if reply.word == "begun":
            self._begun = reply.value
        elif reply.word == "committed":
            self._committed = reply.value

    def _keep(self, number: int) -> str:
        """Put the disks, as the machine found them, aside; say where, and what to know of them."""
        place = self._evidence / f"{self._medium.name}-{self._seed}-{number}"
        shutil.rmtree(place, ignore_errors=True)
        copy_disks(self._found, place)
        return (
            f"\nafter Workload({self._workload_seed}, {_LENGTH}), "
            f"{self._committed} acknowledged, {self._begun} begun; the disks: {place}"
        )


class _ViolationError(Exception):
    pass


def _must_not_fail(reply: Reply) -> None:
    if reply.word == "failed":
        raise GuestError(f"in the guest:\n{reply.value}")

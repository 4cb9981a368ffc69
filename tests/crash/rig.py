"""Runs a program on the simulated disk, cuts the power everywhere, and looks at what is left."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pmarray
from pmarray import _journal, errors
from pmarray.backends import memmap
from pmarray.testing import State, Workload

from .disk import Disk, Event, Image, Recorder

__all__ = ["Outcome", "Program", "record", "scratch", "survey"]

Program = Callable[[str, Recorder], None]
"""Works on the group at a URL, and marks what has been promised to it."""


@dataclass(slots=True)
class Outcome:
    """What a survey found."""

    images: int = 0
    """Different images that were reopened."""
    recoveries: int = 0
    """Of them, how many were cut again during recovery."""
    violations: list[str] = field(default_factory=list)

    def __iadd__(self, other: Outcome) -> Outcome:
        self.images += other.images
        self.recoveries += other.recoveries
        self.violations += other.violations
        return self


@contextmanager
def scratch() -> Iterator[str]:
    """A directory in memory, where there is one: thousands of images are made in it."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    place = tempfile.mkdtemp(prefix="pmarray-crash-", dir=base)
    # A small journal is retired often, and an image of it is small.
    before = _journal._INITIAL_BYTES, memmap._GROW_MIN_BYTES
    _journal._INITIAL_BYTES = memmap._GROW_MIN_BYTES = 64 << 10
    try:
        yield place
    finally:
        _journal._INITIAL_BYTES, memmap._GROW_MIN_BYTES = before
        shutil.rmtree(place, ignore_errors=True)


def record(program: Program, place: str) -> list[Event]:
    """Run a program once and return what it did."""
    root = os.path.join(place, "recorded")
    os.makedirs(root)
    recorder = Recorder(root)
    with recorder.recording() as events:
        program(f"memmap:{root}/g", recorder)
    shutil.rmtree(root)
    return events


def survey(
    events: list[Event],
    workload: Workload,
    place: str,
    *,
    seed: int,
    per_point: int,
    most_images: int,
    ignore: str | None = None,
    stop_at_violation: bool = False,
    again: float = 0.02,
    spread: bool = True,
) -> Outcome:
    """Cut the power after every event, reopen what is left, and ask whether it may be so.

    Marks in the trace say what is allowed: ``promised`` n, that transactions up to n are durable;
    ``begun`` n, that transaction n may be; ``loose``, that until the next promise only shapes and
    attributes are looked at, which are those before or after. Before the first mark there may be
    no group at all.

    Parameters
    ----------
    again
        Of how many images the recovery is cut, too.
    spread
        Whether to try fewer images an event, so that `most_images` reach to the end of the trace.
    """
    rng = random.Random(seed)
    outcome = Outcome()
    seen: set[bytes] = set()
    # Spread the images over the trace, however long it is.
    share = per_point
    if spread:
        share = max(1, min(per_point, most_images // max(1, len(events)) + 1))
    disk = Disk(ignore)
    low = high = -1
    loose = False
    image_root = os.path.join(place, "image")
    for event in events:
        disk.advance(event)
        if event.kind == "mark":
            loose = event.where == "loose"
            if event.where == "promised":
                low = event.offset
            high = max(high, low, event.offset + loose)
        for image in disk.images(rng, share):
            digest = _digest(image)
            key = digest + f"{low},{high},{loose}".encode()
            if key in seen:
                continue
            seen.add(key)
            image.write(image_root)
            outcome.images += 1
            allowed = workload.states[max(low, 0) : high + 1]
            if loose:
                allowed = [state.outline for state in allowed]
            deep = rng.random() < again
            _inspect(
                image_root,
                allowed,
                event,
                outcome,
                place,
                ignore=ignore,
                may_be_missing=low < 0,
                loose=loose,
                deep=rng if deep and not loose else None,
            )
            if deep and low >= 0 and not loose:
                _kill(disk, allowed, event, outcome, place, rng)
            if outcome.images >= most_images or (stop_at_violation and outcome.violations):
                return outcome
    return outcome


def _digest(image: Image) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for path, contents in sorted(image.entries.items()):
        digest.update(path.encode())
        digest.update(contents.encode() if isinstance(contents, str) else contents)
    return digest.digest()


def _inspect(
    root: str,
    allowed: list[State],
    event: Event,
    outcome: Outcome,
    place: str,
    *,
    ignore: str | None,
    may_be_missing: bool,
    loose: bool,
    deep: random.Random | None,
) -> None:
    """Look at one image as a reader and as the next writer; both must see the same."""
    url = f"memmap:{root}/g"

    def complain(what: str) -> None:
        outcome.violations.append(f"after {event.kind} {event.where} at {event.site}: {what}")

    try:
        with pmarray.open_group(url, mode="r") as reader:
            seen = State.of_group(reader)
    except errors.GroupNotFoundError:
        if not may_be_missing:
            complain("the group is gone")
            return
        seen = None
    except (errors.PMArrayError, OSError, ValueError) as error:
        complain(f"a reader fails: {error!r}")
        return
    shown = seen.outline if seen is not None and loose else seen
    if shown is not None and shown not in allowed and not may_be_missing:
        complain(f"a reader sees {seen}, not one of {len(allowed)} allowed states")
        return
    recorder = Recorder(root)
    disk = Disk(ignore)
    if deep is not None:
        disk.load(root, recorder)
    try:
        with recorder.recording() as events:
            found = _recover(url)
    except (errors.PMArrayError, OSError, ValueError) as error:
        complain(f"recovery fails: {error!r}")
        return
    if seen is not None and found != seen:
        complain(f"a reader sees {seen}, the next writer {found}")
        return
    if deep is not None and seen is not None:
        _cut_again(disk, events, [seen], outcome, place, deep, complain)


def _recover(url: str) -> State:
    with pmarray.open_group(url, mode="a") as group:
        group._recover()
        return State.of_group(group)


def _cut_again(
    disk: Disk,
    events: list[Event],
    allowed: list[State],
    outcome: Outcome,
    place: str,
    rng: random.Random,
    complain: Callable[[str], None],
) -> None:
    """Cut the power at every step of a recovery; the next one must end in an allowed state."""
    root = os.path.join(place, "again")
    for event in events:
        disk.advance(event)
        for image in disk.images(rng, 6):
            image.write(root)
            outcome.recoveries += 1
            try:
                found = _recover(f"memmap:{root}/g")
            except (errors.PMArrayError, OSError, ValueError) as error:
                complain(f"a second recovery, cut after {event.site}: {error!r}")
                return
            if found not in allowed:
                complain(f"a recovery that was cut after {event.site} ends in {found}")
                return


def _kill(
    disk: Disk,
    allowed: list[State],
    event: Event,
    outcome: Outcome,
    place: str,
    rng: random.Random,
) -> None:
    """The process dies here; another one recovers, and then the power fails."""

    def complain(what: str) -> None:
        outcome.violations.append(f"process death after {event.kind} at {event.site}: {what}")

    root = os.path.join(place, "killed")
    recorder = Recorder(root)
    after = disk.survive(root, recorder)
    try:
        with recorder.recording() as events:
            found = _recover(f"memmap:{root}/g")
    except (errors.PMArrayError, OSError, ValueError) as error:
        complain(f"recovery fails: {error!r}")
        return
    outcome.images += 1
    if found not in allowed:
        complain(f"recovery ends in {found}")
        return
    _cut_again(after, events, allowed, outcome, place, rng, complain)
    if not outcome.violations:
        # What recovery has brought back stays.
        _cut_again(
            after, [Event("mark", where="recovered")], [found], outcome, place, rng, complain
        )

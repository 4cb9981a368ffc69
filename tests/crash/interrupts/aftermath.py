"""What must be true after an exception, wherever it arrived."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pmarray
from pmarray.errors import (
    ClosedError,
    GroupLockedError,
    PoisonedError,
    SnapshotExpiredError,
    TransactionError,
)
from tests.crash.interrupts.books import held_locks, left_open, library_threads
from tests.crash.interrupts.contents import Contents
from tests.crash.interrupts.injected import Injected, where
from tests.crash.interrupts.patience import patience
from tests.crash.interrupts.scenarios import Scenario, Stage

__all__ = ["Aftermath", "Violation", "kind_of", "leaks", "locks_held"]

PATIENCE_SECONDS = 1.0
"""After which it is asked whether a lock is held."""
HANG_SECONDS = 8.0
_ENDING_SECONDS = 2.0
_READINGS = 20


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be."""

    kind: str
    detail: str


class _StopError(Exception):
    """There is no use in looking further."""


class Aftermath:
    """Looks a handle and its group over.

    Parameters
    ----------
    stage, scenario
        What was interrupted.
    before
        What the handle held before.
    returned
        Whether the operation did.
    """

    def __init__(self, stage: Stage, scenario: Scenario, before: Contents, returned: bool) -> None:
        self.violations: list[Violation] = []
        self.stage = stage
        self.scenario = scenario
        self.returned = returned
        self._states = scenario.states(before)

    def check(self) -> list[Violation]:
        """Look at everything, or as far as one can get."""
        try:
            self.scenario.examine(self)
        except _StopError:
            pass
        return self.violations

    def note(self, kind: str, detail: str) -> None:
        """Note a violation."""
        self.violations.append(Violation(kind, detail))

    # -- the handle -----------------------------------------------------------------------------

    def check_group(self) -> None:
        """A handle that is open, the group it is one of, and the group once it is closed."""
        stage, scenario = self.stage, self.scenario
        commits = scenario.is_transaction and stage.place.has_readers
        if commits and scenario.is_durable and self.returned:
            self._judge("a reader at once", self._read())
        if stage.group is None:
            self.attempt("open", stage.open)
        group = stage.opened()
        self.in_another_thread("another thread reads", lambda: _look(group))
        found: Contents = self.attempt("read", lambda: Contents.of(group))
        for kind, detail in left_open(group):
            self.note(kind, detail)
        self.check_result()
        self._judge("the handle", found)
        if commits and not scenario.is_dirty:
            self._judge("a reader before the flush", self._read(), durable=scenario.is_durable)
        # Whatever is there, it must be writable, and reach the medium.
        self.attempt("set an attribute", lambda: _when_free(lambda: group.attrs.update(probe=1)))
        self.in_another_thread("another thread writes", lambda: group.attrs.update(probe=2))
        self.attempt("write an item", lambda: _write_item(group))
        self.attempt("flush", group.flush)
        found = self.attempt("read", lambda: Contents.of(group))
        if stage.place.has_readers:
            self._compare("after the flush", found)
        self.attempt("close", stage.close)
        if stage.place.has_readers:
            self._compare("after closing", found)
            self.check_medium()

    def check_result(self) -> None:
        """What it returned, if it did."""
        wrong = self.scenario.objection(self.stage) if self.returned else None
        if wrong:
            self.note("wrong result", wrong)

    def check_closed(self) -> None:
        """A handle that has been closed, or can be."""
        stage = self.stage
        group = stage.opened()
        self.in_another_thread("another thread closes", group.close)
        self.attempt("close again", group.close)
        if not group.closed:
            self.note("not closed", "after close() has returned")
        stage.group = None
        if stage.place.has_readers:
            self._judge("a reader after closing", self._read())
            self.check_medium()

    # -- the medium -----------------------------------------------------------------------------

    def _read(self) -> Contents:
        def read() -> Contents:
            for _ in range(_READINGS):
                try:
                    with pmarray.open_group(self.stage.url, mode="r") as reader:
                        return Contents.of(reader)
                except SnapshotExpiredError:
                    pass  # a pipelined commit has landed meanwhile
            raise AssertionError("the snapshot of a reader expires each time")

        result: Contents = self.attempt("open a reader", read)
        return result

    def _compare(self, when: str, found: Contents) -> None:
        difference = found.difference(self._read())
        if difference:
            self.note("differs", f"{when} the handle and a reader: {difference}")

    def check_medium(self) -> None:
        """There is nothing to complain of, and the next writer can have it."""
        findings = self.attempt("verify", lambda: pmarray.verify(self.stage.url))
        for finding in findings:
            self.note("damaged" if finding.damaged else "left over", str(finding))

        def write() -> None:
            with pmarray.open_group(self.stage.url, mode="r+") as group:
                _when_free(lambda: group.attrs.update(again=1))

        self.attempt("write after closing", write)

    # -- how ------------------------------------------------------------------------------------

    def _judge(self, who: str, found: Contents, *, durable: bool = True) -> None:
        states = self._states
        if self.returned and durable:
            difference = states[-1].difference(found)
            if difference:
                self.note("lost", f"it returned; {who}: {difference}")
            return
        if any(state.difference(found) is None for state in states):
            return
        if self.scenario.by_item and found.is_between(states[0], states[-1]):
            return
        self.note(
            "torn",
            f"{who}: before, {states[0].difference(found)}; after, {states[-1].difference(found)}",
        )

    def attempt(self, step: str, call: Callable[[], Any]) -> Any:
        """Do what must be possible, and stop looking if it is not."""
        try:
            return self.as_told(call)
        except BaseException as error:
            self.fail(step, error)

    def fail(self, step: str, error: BaseException) -> NoReturn:
        """Note that this should have been possible, and stop looking."""
        self.note(kind_of(error), f"{step}: {_told(error)}")
        raise _StopError from None

    def as_told(self, call: Callable[[], Any]) -> Any:
        """Do it; first do what an error says is to be done first."""
        for _ in range(_READINGS):
            group: Any = self.stage.group
            try:
                return call()
            except TransactionError as error:
                if "roll" not in str(error):
                    raise
                group.rollback()
            except SnapshotExpiredError:
                # A handle that nobody has any more has committed, since this one was opened.
                group.refresh()
        return call()

    def in_another_thread(self, step: str, call: Callable[[], Any]) -> None:
        """The same in another thread, which must come to an end."""
        errors: list[BaseException] = []

        def run() -> None:
            try:
                self.as_told(call)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, name="rig", daemon=True)
        thread.start()
        thread.join(PATIENCE_SECONDS)
        if thread.is_alive() and not self._held():
            thread.join(patience(HANG_SECONDS))
        if thread.is_alive():
            frame = sys._current_frames().get(thread.ident or 0)
            names = self._held()
            kind = "lock held" if names else "hang"
            self.note(kind, f"{step} at {where(frame)}; held: {', '.join(names) or 'none'}")
            raise _StopError
        if errors:
            self.fail(step, errors[0])

    def _held(self) -> list[str]:
        return locks_held(self.stage.group) if self.stage.group is not None else []


def locks_held(group: pmarray.Group) -> list[str]:
    """The locks that a new thread cannot have."""
    names: list[str] = []
    thread = threading.Thread(target=lambda: names.extend(held_locks(group)), daemon=True)
    thread.start()
    thread.join()
    return names


def _when_free(call: Callable[[], None]) -> None:
    """Wait for the lock of a handle that is being closed behind the caller's back."""
    until = time.monotonic() + patience(_ENDING_SECONDS)
    while True:
        try:
            return call()
        except GroupLockedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def _look(group: pmarray.Group) -> None:
    """What any thread may ask at any time."""
    len(group.attrs)
    _ = group["x"][0, 0]


def _write_item(group: pmarray.Group) -> None:
    x = group["x"]
    x[1, 1] = 77
    if x[1, 1] != 77:
        raise AssertionError(f"wrote 77 and read {x[1, 1]}")


def kind_of(error: BaseException) -> str:
    """What kind of violation it is that this was raised."""
    if isinstance(error, Injected):
        return "raised later"
    if isinstance(error, PoisonedError):
        return "poisoned"
    if isinstance(error, ClosedError):
        return "closed"
    if isinstance(error, TransactionError):
        return "transaction open"
    return "unusable"


def _told(error: BaseException) -> str:
    """The error, and the line of the library that raised it."""
    at = ""
    for summary in traceback.extract_tb(error.__traceback__):
        if "/pmarray/" in summary.filename or "/swag/" in summary.filename:
            at = f" at {Path(summary.filename).name}:{summary.lineno}"
    return f"{type(error).__name__}: {error}{at}"


def leaks(path: Path) -> list[Violation]:
    """What still refers to a directory after everything in it was closed."""
    until = time.monotonic() + patience(_ENDING_SECONDS)
    while True:
        found = [Violation("descriptor left", where) for where in _descriptors(path)]
        found += [Violation("mapping left", where) for where in _mappings(path)]
        found += [Violation("thread left", name) for name in library_threads()]
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.02)
        gc.collect()  # each time: a thread may have had the last of it until now


def _descriptors(path: Path) -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if target.startswith(f"{path}/"):
            found.append(target.removeprefix(f"{path}/"))
    return found


def _mappings(path: Path) -> list[str]:
    needle = f"{path}/"
    with open("/proc/self/maps") as file:
        return [line.split(needle, 1)[1].strip() for line in file if needle in line]

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
from typing import Any

import pmarray
from pmarray.errors import ClosedError, PoisonedError, TransactionError
from tests.crash.interrupts.books import held_locks, left_open, library_threads
from tests.crash.interrupts.contents import Contents
from tests.crash.interrupts.injected import Injected, where
from tests.crash.interrupts.scenarios import Scenario, Stage

__all__ = ["Aftermath", "Violation", "kind_of", "leaks"]

PATIENCE_SECONDS = 1.0
"""After which it is asked whether a lock is held."""
HANG_SECONDS = 8.0
_ENDING_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be."""

    kind: str
    detail: str


class _Stopped(Exception):
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
        self._stage = stage
        self._scenario = scenario
        self._returned = returned
        self._states = scenario.states(before)

    def check(self) -> list[Violation]:
        """Look at everything, or as far as one can get."""
        try:
            if self._scenario.closes:
                self._check_closed()
            else:
                self._check_handle()
                self._check_reopened()
        except _Stopped:
            pass
        return self.violations

    def _note(self, kind: str, detail: str) -> None:
        self.violations.append(Violation(kind, detail))

    # -- the handle -----------------------------------------------------------------------------

    def _check_handle(self) -> None:
        stage, scenario = self._stage, self._scenario
        if stage.group is None:
            self._try("open", stage.open)
        group = stage.opened()
        self._in_another_thread("another thread reads", lambda: _look(group))
        found: Contents = self._try("read", lambda: Contents.of(group))
        for kind, detail in left_open(group):
            self._note(kind, detail)
        if self._returned:
            wrong = scenario.objection(stage)
            if wrong:
                self._note("wrong result", wrong)
        self._judge("the handle", found)
        if scenario.is_transaction and not scenario.is_dirty and stage.place.has_readers:
            self._judge("a reader before the flush", self._read(), durable=False)
        # Whatever is there, it must be writable, and reach the medium.
        self._try("set an attribute", lambda: group.attrs.update(probe=1))
        self._in_another_thread("another thread writes", lambda: group.attrs.update(probe=2))
        self._try("write an item", lambda: _write_item(group))
        self._try("flush", group.flush)
        found = self._try("read", lambda: Contents.of(group))
        if stage.place.has_readers:
            self._compare("after the flush", found)
        self._try("close", stage.close)
        self._final = found

    def _check_reopened(self) -> None:
        if not self._stage.place.has_readers:
            return
        self._compare("after closing", self._final)
        self._verify()
        self._write_again()

    def _check_closed(self) -> None:
        stage = self._stage
        group = stage.opened()
        self._in_another_thread("another thread closes", group.close)
        self._try("close again", group.close)
        if not group.closed:
            self._note("not closed", "after close() has returned")
        stage.group = None
        if stage.place.has_readers:
            self._judge("a reader after closing", self._read(), durable=True)
            self._verify()
            self._write_again()

    # -- the medium -----------------------------------------------------------------------------

    def _read(self) -> Contents:
        def read() -> Contents:
            with pmarray.open_group(self._stage.url, mode="r") as reader:
                return Contents.of(reader)

        result: Contents = self._try("open a reader", read)
        return result

    def _compare(self, when: str, found: Contents) -> None:
        difference = found.difference(self._read())
        if difference:
            self._note("differs", f"{when} the handle and a reader: {difference}")

    def _verify(self) -> None:
        findings = self._try("verify", lambda: pmarray.verify(self._stage.url))
        for finding in findings:
            self._note("damaged" if finding.damaged else "left over", str(finding))

    def _write_again(self) -> None:
        """The lock has been given up."""

        def write() -> None:
            until = time.monotonic() + _ENDING_SECONDS
            while True:
                try:
                    with pmarray.open_group(self._stage.url, mode="r+") as group:
                        group.attrs["again"] = 1
                    return
                except pmarray.errors.GroupLockedError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.01)

        self._try("write after closing", write)

    # -- how ------------------------------------------------------------------------------------

    def _judge(self, who: str, found: Contents, *, durable: bool = True) -> None:
        states = self._states
        if self._returned and durable:
            difference = states[-1].difference(found)
            if difference:
                self._note("lost", f"it returned; {who}: {difference}")
            return
        if any(state.difference(found) is None for state in states):
            return
        if self._scenario.by_item and found.is_between(states[0], states[-1]):
            return
        self._note(
            "torn",
            f"{who}: before, {states[0].difference(found)}; after, {states[-1].difference(found)}",
        )

    def _try(self, step: str, call: Callable[[], Any]) -> Any:
        try:
            try:
                return call()
            except TransactionError as error:
                if "roll" not in str(error):
                    raise
                self._roll_back(error)
                return call()
        except BaseException as error:
            self._note(kind_of(error), f"{step}: {_told(error)}")
            raise _Stopped from None

    def _roll_back(self, error: TransactionError) -> None:
        """Do as the error says."""
        group: Any = self._stage.opened()
        group.rollback()

    def _in_another_thread(self, step: str, call: Callable[[], Any]) -> None:
        errors: list[BaseException] = []

        def run() -> None:
            try:
                call()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, name="rig", daemon=True)
        thread.start()
        thread.join(PATIENCE_SECONDS)
        if thread.is_alive() and not self._held():
            thread.join(HANG_SECONDS)
        if thread.is_alive():
            frame = sys._current_frames().get(thread.ident or 0)
            names = self._held()
            kind = "lock held" if names else "hang"
            self._note(kind, f"{step} at {where(frame)}; held: {', '.join(names) or 'none'}")
            raise _Stopped
        if errors and not (isinstance(errors[0], TransactionError) and "roll" in str(errors[0])):
            self._note(kind_of(errors[0]), f"{step}: {_told(errors[0])}")
            raise _Stopped

    def _held(self) -> list[str]:
        """The locks that a new thread cannot have."""
        names: list[str] = []
        group = self._stage.group
        if group is not None:
            thread = threading.Thread(target=lambda: names.extend(held_locks(group)), daemon=True)
            thread.start()
            thread.join()
        return names


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
    until = time.monotonic() + _ENDING_SECONDS
    collected = False
    while True:
        found = [Violation("descriptor left", where) for where in _descriptors(path)]
        found += [Violation("mapping left", where) for where in _mappings(path)]
        found += [Violation("thread left", name) for name in library_threads()]
        if not found or (collected and time.monotonic() > until):
            return found
        if not collected:
            gc.collect()
            collected = True
        else:
            time.sleep(0.02)


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

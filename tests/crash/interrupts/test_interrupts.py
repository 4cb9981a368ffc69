"""Interrupts: that the rig finds what there is to find, and a sample of every backend.

All of it: ``make interrupts MINUTES=60``.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from weakref import WeakSet

import numpy as np
import pytest

import pmarray
from pmarray._system.uninterrupted import Task
from tests.crash.interrupts.calibration import PROGRAMS_BY_NAME, Program
from tests.crash.interrupts.collection import COLLECTION
from tests.crash.interrupts.injected import EXCEPTIONS, Delivery, Injected
from tests.crash.interrupts.places import PLACES
from tests.crash.interrupts.points import Points
from tests.crash.interrupts.scenarios import NAMES, SCENARIOS
from tests.crash.interrupts.timers import Timers
from tests.crash.interrupts.trial import Trial

KIND = EXCEPTIONS["interrupt"]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The handlers of signals are afterwards what they were."""
    saved = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)}
    tracer = sys.gettrace()
    yield
    sys.settrace(tracer)
    for number, handler in saved.items():
        signal.signal(number, handler)


def interrupt(name: str, delivery: Points | Timers) -> bool:
    """Run a program of the calibration; return whether its lock is held afterwards."""
    program = Program(PROGRAMS_BY_NAME[name])
    try:
        try:
            delivery.arm()
            program.operate()
        finally:
            delivery.disarm()
    except Injected:
        pass
    delivery.disarm()
    return program.lock.locked()


def everywhere(name: str, second: int = 0) -> tuple[int, int]:
    """Interrupt at each point in turn; count those, and after how many the lock was held."""
    first = held = 0
    while True:
        first += 1
        points = Points(first, second, [KIND, KIND])
        held += interrupt(name, points)
        if not points.deliveries:
            return first - 1, held


def test_a_signal_leaves_no_lock_that_with_has_taken() -> None:
    count, held = everywhere("with")
    assert count >= 7
    assert held == 0


@pytest.mark.parametrize("name", ["guard", "acquire"])
def test_a_signal_leaves_a_lock_that_python_has_taken(name: str) -> None:
    _, held = everywhere(name)
    assert held > 0


def test_a_second_signal_comes_while_the_first_one_is_handled() -> None:
    assert everywhere("twice")[1] == 0
    assert sum(everywhere("twice", second)[1] for second in range(1, 6)) > 0


def test_real_signals_agree() -> None:
    """They are found where the points are: never with the lock held by ``with``."""
    delivered = 0
    for i in range(3000):
        timers = Timers(1 + i % 30, 0, [KIND])
        assert not interrupt("with", timers)
        delivered += len(timers.deliveries)
    assert delivered > 100


def test_a_point_is_the_same_each_time() -> None:
    def deliveries() -> list[Delivery]:
        points = Points(4, 0, [KIND])
        interrupt("with", points)
        return points.deliveries

    assert deliveries() == deliveries() != []


def test_a_trial_can_be_written_down() -> None:
    trial = Trial("durable", "memmap", "points", 812, 3, 7)
    assert Trial.parse(str(trial)) == trial


def test_every_scenario_has_a_name() -> None:
    assert {*SCENARIOS, *COLLECTION} == set(NAMES)


def campaign(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one in a process that has no threads yet, since it forks."""
    return subprocess.run(
        [sys.executable, "-m", "tests.crash.interrupts", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )


# What differs between backends: the commit, what is written in place, and the end.
SAMPLED = (
    "slice-write", "append", "shrink", "create", "delete", "durable", "pipelined", "roll-back",
    "close", "appending",
)  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_no_interrupt_breaks_anything(place: str) -> None:
    scenarios = [word for name in SAMPLED for word in ("--scenario", name)]
    done = campaign(
        "--backend", place, *scenarios, "--mode", "points", "--trials", "2", "--rounds", "1"
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_real_signal_breaks_anything() -> None:
    done = campaign(
        "--backend", "dram", "--backend", "memmap", "--scenario", "item-write", "--scenario",
        "empty", "--mode", "storm", "--mode", "threads", "--trials", "2", "--rounds", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_interrupt_breaks_a_collection() -> None:
    done = campaign(
        "--backend", "memmap", "--scenario", "collect", "--scenario", "collect-close",
        "--mode", "points", "--trials", "2", "--rounds", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_commit_that_is_not_waited_for_is_noticed() -> None:
    """The first exception would come after a minute: what is seen is what returning promises."""
    trial = str(Trial("durable", "memmap", "timers", 60_000_000, 0, seed=1))
    done = campaign("--trial", trial, "--without", "commit")
    assert done.returncode == 1, done.stderr
    assert "lost: it returned" in done.stdout


def test_a_caller_that_comes_next_and_does_not_wait_is_noticed() -> None:
    done = campaign(
        "--backend", "memmap", "--scenario", "durable", "--mode", "timers", "--without", "wait",
        "--trials", "8", "--rounds", "1",
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr


def test_a_task_that_was_given_up_and_not_taken_back_is_not_waited_for() -> None:
    """A second exception arrived between the claim and the taking back: two seeds of an hour."""
    group = pmarray.open_group("dram:")
    task: Task[None] = Task(lambda: None, group._session.over)
    group._session.pending = task
    task._given_up = True
    assert task.claim()
    task.run()  # as the thread does that finds it claimed
    thread = threading.Thread(target=group.attrs.update, args=({"x": 1},), daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert dict(group.attrs) == {"x": 1}


def test_a_loan_that_has_ended_is_not_open_whatever_arrives_at_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Torn(WeakSet[object]):
        def discard(self, item: object) -> None:
            monkeypatch.setattr(a, "_loans", real)
            raise KeyboardInterrupt

    a = pmarray.open("dram:", (3, 2), layout="col")
    loan, real = a.writing(np.s_[:, 1]), a._loans
    with pytest.raises(KeyboardInterrupt):
        with loan as out:
            out[:] = 7
            monkeypatch.setattr(a, "_loans", Torn(real))
    a[:, 0] = 1
    assert not a._loans
    assert (a[:, 1] == 7).all()

"""The locks that CPython 3.14 needs do what those of `threading` do, everywhere."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from pmarray import locks
from tests.crash.interrupts.injected import Injected

KINDS: dict[str, Callable[[], Any]] = {"Lock": locks._Lock, "RLock": locks._RLock}
MAKES = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def free_to_others(lock: Any) -> bool:
    """Whether another thread can have it."""
    had = []

    def take() -> None:
        had.append(lock.acquire(blocking=False))
        if had[0]:
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return bool(had[0])


def test_they_are_taken_where_they_are_needed_and_nowhere_else() -> None:
    if sys.version_info[:2] == (3, 14):
        ours: list[Any] = [locks._Lock, locks._RLock]
        assert [locks.Lock, locks.RLock] == ours
    else:
        assert [locks.Lock, locks.RLock] == [threading.Lock, threading.RLock]


@MAKES
def test_with_holds_it_and_gives_it_back(make: Callable[[], Any]) -> None:
    lock = make()
    with lock as taken:
        assert taken is True
        assert not free_to_others(lock)
    assert free_to_others(lock)
    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError
    assert free_to_others(lock)


def test_one_of_them_may_be_taken_again() -> None:
    once, again = locks._Lock(), locks._RLock()
    with once:
        assert not once.acquire(blocking=False)
    with again, again:
        assert again.acquire(timeout=0.01)
        again.release()
        assert again._is_owned()  # type: ignore[attr-defined]
    assert free_to_others(again)


@MAKES
def test_it_is_gone_without_the_garbage_collector(make: Callable[[], Any]) -> None:
    lock = make()
    with lock:
        pass
    gone = weakref.ref(lock)
    gc.disable()
    try:
        del lock
        assert gone() is None
    finally:
        gc.enable()


@MAKES
def test_no_signal_leaves_it_held(make: Callable[[], Any]) -> None:
    """Signals come at any time, for a second; some hundreds of them reach the block's ends."""

    def handler(_number: int, _frame: FrameType | None) -> None:
        raise Injected

    lock, came = make(), 0
    old = signal.signal(signal.SIGALRM, handler)
    try:
        end = time.monotonic() + 1
        while time.monotonic() < end:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0001)
                while True:
                    with lock:
                        pass
            except Injected:
                came += 1
                assert not lock.locked() if make is locks._Lock else free_to_others(lock)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert came > 100

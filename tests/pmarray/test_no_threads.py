"""Where no thread can be started: the system is full, or the interpreter is ending."""

from __future__ import annotations

import _thread
import ctypes
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import pytest

import pmarray
from pmarray._system import uninterrupted


@pytest.mark.parametrize("scheme", ["dram", "memmap", "zarr"])
def test_the_caller_does_the_work_himself(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "dram:none-to-be-had" if scheme == "dram" else f"{scheme}:{tmp_path / 'g'}"
    pmarray.open(url, (1,), mode="w").close()  # what other libraries start once is there

    def refuse(*_: Any) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    monkeypatch.setattr("pmarray._system.uninterrupted._idle", [])
    with pmarray.open_group(url, cache="64 KiB") as group:
        x = group.create("x", (1000, 0), "float32", layout="col", fill_value=2)
        with group.transaction():
            for i in range(30):
                x.append(np.full(1000, i, "float32"))
            group.attrs["n"] = 30
        with pytest.raises(KeyError), group.transaction():
            x[:, 3] = 7
            raise KeyError
        x[5] = 1
    with pmarray.open(f"{url}#x", mode="r") as x:
        assert (x[5] == 1).all()
        np.testing.assert_array_equal(x[0], np.arange(30))
        assert x.group.attrs["n"] == 30


def test_another_thread_begins_where_one_dies_before_it_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception for who starts a thread may come there (CPython 3.11)."""
    start, died = _thread.start_new_thread, 0

    def dies(run: Any, args: tuple[Any, ...]) -> int:
        nonlocal died
        if type(run).__name__ == "_Start" and died < 20:
            died += 1
            return start(lambda: None, ())  # and `run` is forgotten
        return start(run, args)

    monkeypatch.setattr(_thread, "start_new_thread", dies)
    monkeypatch.setattr("pmarray._system.uninterrupted._idle", [])
    with pmarray.open_group(tmp_path / "g", cache="64 KiB") as group:
        x = group.create("x", (1000, 0), "float32", layout="col")
        with group.transaction():
            for i in range(30):
                x.append(np.full(1000, i, "float32"))
    assert died == 20
    with pmarray.open(f"{tmp_path}/g#x", mode="r") as x:
        np.testing.assert_array_equal(x[0], np.arange(30))


def test_exceptions_for_who_starts_threads_leave_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CPython 3.11 raises some of them in the new thread: without another one, this hangs."""

    class Arrived(BaseException):
        pass

    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # it tells of threads that died
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    done = 0

    def work() -> None:
        nonlocal done
        while done < 500:
            uninterrupted._idle.clear()  # so that each task has to start a thread
            uninterrupted.uninterrupted(lambda: None)
            done += 1

    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    until = time.monotonic() + 60
    thread = threading.Thread()
    while done < 500 and time.monotonic() < until:
        if not thread.is_alive():  # it has got the exception
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
        raise_in(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Arrived))
        time.sleep(0.0004)
    thread.join(10)
    assert done >= 500


def test_who_is_torn_away_while_he_starts_a_thread_gets_the_exception(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At each line of the start, and at the one after: none of them is swallowed by a `__del__`."""
    swallowed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", swallowed.append)
    start_thread = uninterrupted.start_thread

    def raised(*places: int) -> int:
        """Raise at the lines of these numbers; return how many lines were gone through."""
        at = 0

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal at
            if frame.f_code.co_filename != uninterrupted.__file__:
                return None
            if event == "line":
                at += 1
                if at - 1 in places:
                    raise KeyboardInterrupt
            return trace

        tracer = sys.gettrace()
        sys.settrace(trace)
        try:
            start_thread(lambda: None)
        except KeyboardInterrupt:
            arrived = True
        else:
            arrived = False
        finally:
            sys.settrace(tracer)
        assert arrived == (min(places) < at)
        return at

    lines = raised(100)
    for place in range(lines):
        raised(place, place + 1)
    assert swallowed == []

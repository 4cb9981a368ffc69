"""Runs inputs in a process of its own, under limits, and says what went wrong with which."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pmarray.errors import PMArrayError
from tests.fuzz.mutate import CANARY
from tests.persistent import MEMORY

__all__ = ["MODES", "FaultError", "Target", "run_batch", "run_here"]

MODES = (*("parse",) * 30, "r", "r+")
"""Most inputs are for the parser alone, which takes a tenth of the time of a whole group."""
_PATIENCE_S = 60.0
"""An input that takes longer than this hangs."""
_PREPARATION_S = 600.0
_EXTRA_BYTES = 768 << 20
"""Of memory: no input has as many bytes, nor needs a multiple of what it has."""

Target = Callable[[Path], "Callable[[random.Random, str], None]"]
"""Given a directory, prepares what inputs are made from; returns what makes one and uses it.

In the mode "parse" it is given to its parser, in "r" and "r+" to `open_group` in a directory.
"""


class FaultError(AssertionError):
    """What no input may do."""


def run_here(
    make: Target, name: str, seed: int, first: int, count: int, said: Callable[[str], None]
) -> None:
    """Run inputs one after another in this process; `said` is called with the number of each."""
    with tempfile.TemporaryDirectory(prefix="pmarray-fuzz-", dir=MEMORY) as base:
        before = os.getcwd()
        os.chdir(base)
        canary = Path(base, CANARY)
        canary.mkdir()
        (canary / "file").write_bytes(b"precious" * 1000)
        (canary / "zarr.json").write_text('{"precious": true}')
        seen = _seen(canary)
        ignored: list[str] = []
        hooks = sys.unraisablehook, threading.excepthook
        sys.unraisablehook = lambda args: ignored.append(
            f"ignored in {args.object!r}: {args.exc_value!r}"
        )
        threading.excepthook = lambda args: ignored.append(f"in a thread: {args.exc_value!r}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                use = make(Path(base))
                for number in range(first, first + count):
                    said(str(number))
                    use(random.Random(f"{name} {seed} {number}"), MODES[number % len(MODES)])
                    if _seen(canary) != seen:
                        raise FaultError("something outside of the group was changed")
                    if ignored:
                        raise FaultError("; ".join(ignored))
        finally:
            sys.unraisablehook, threading.excepthook = hooks
            os.chdir(before)


def _seen(canary: Path) -> list[Any]:
    result: list[Any] = []
    for path in (canary, *(canary / name for name in sorted(os.listdir(canary)))):
        found = os.lstat(path)
        result.append(
            (str(path), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        )
    return result


def permitted(error: BaseException) -> bool:
    """Whether an error is of the tree, and not for want of memory."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause) is MemoryError:
            return False
        cause = cause.__cause__
    return isinstance(error, PMArrayError) or type(error).__module__ == "swag.errors"


def run_batch(name: str, seed: int, first: int, count: int) -> list[tuple[int, str]]:
    """Run inputs in processes of their own; return the faults, by the number of the input."""
    faults: list[tuple[int, str]] = []
    stop = first + count
    while first < stop:
        done, fault = _run_process(name, seed, first, stop - first)
        if fault is None:
            break
        faults.append((done, fault))
        first = done + 1
    return faults


def _run_process(name: str, seed: int, first: int, count: int) -> tuple[int, str | None]:
    command = [sys.executable, "-m", "tests.fuzz.watch", name, str(seed), str(first), str(count)]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        last, finished = first - 1, threading.Event()
        heard = time.monotonic() + _PREPARATION_S

        def watch() -> None:
            while not finished.wait(1.0):
                if time.monotonic() - heard > _PATIENCE_S:
                    process.kill()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        for line in process.stdout:
            last, heard = int(line), time.monotonic()
        code = process.wait()
        hung = time.monotonic() - heard > _PATIENCE_S
        finished.set()
        watcher.join()
        errors.seek(0)
        text = errors.read().decode(errors="replace")
    if code == 0:
        return last, None
    if last < first:
        raise RuntimeError(f"{name} cannot be prepared:\n{text}")
    return last, f"hangs\n{text}" if hung else f"exit status {code}\n{text}"


def _main() -> None:
    from tests.fuzz.targets import TARGETS

    name, seed, first, count = sys.argv[1], *map(int, sys.argv[2:])
    make = TARGETS[name]
    resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + _EXTRA_BYTES,) * 2)
    try:
        run_here(make, name, seed, first, count, lambda text: print(text, flush=True))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _data_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("no VmData")


if __name__ == "__main__":
    _main()

"""How long opening takes: of an array that is far larger than the disk, and after a kill.

Opening reads what describes the arrays, and nothing of them. After a kill it undoes what the last
transaction had not ended, which depends on the transaction and not on the array.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pmarray
from benchmarks._records import Recording
from benchmarks._tables import Table, in_bytes, in_ms

__all__ = ["measure", "tables"]

_ROWS = 1 << 20
_COLUMN_BYTES = _ROWS * 4

_CRASH = f"""
import os, signal, sys, pmarray
url, columns = sys.argv[1], int(sys.argv[2])
# A cache of four columns: what does not fit is written behind, in the middle of the transaction.
with pmarray.open_group(url, cache={4 * _COLUMN_BYTES}) as group:
    x = group["x"]
    with group.transaction():
        for i in range(columns):
            x[:, i] = 2
        os.kill(os.getpid(), signal.SIGKILL)
"""


def measure(
    run: Recording, *, sizes: list[int], written: list[int], rounds: int, directory: Path
) -> None:
    """Open arrays of `sizes` bytes, and groups that were killed in a transaction of `written`."""
    for nbytes in sizes:
        columns = nbytes // _COLUMN_BYTES
        for name in _names():
            with tempfile.TemporaryDirectory(dir=directory, prefix="opening-") as scratch:
                url = _url(name, Path(scratch) / "a")
                run.report(f"{name}, {in_bytes(nbytes)}")
                pmarray.open(url, (_ROWS, columns), "float32", layout="col", mode="w").close()
                for turn in range(rounds):
                    for mode in ("r", "r+"):
                        began = time.perf_counter()
                        array = pmarray.open(url, mode=mode)
                        seconds = time.perf_counter() - began
                        array.close()
                        run.add(
                            "open", name=name, nbytes=nbytes, mode=mode, round=turn, seconds=seconds
                        )
    for nbytes in sizes:
        for size in written:
            _recover(run, nbytes, size, rounds, directory)


def _recover(run: Recording, nbytes: int, written: int, rounds: int, directory: Path) -> None:
    with tempfile.TemporaryDirectory(dir=directory, prefix="opening-") as scratch:
        place = Path(scratch) / "a"
        url = _url("memmap:", place)
        with pmarray.open_group(url, mode="w") as group:
            x = group.create("x", (_ROWS, nbytes // _COLUMN_BYTES), "float32", layout="col")
            for column in range(written // _COLUMN_BYTES):
                x[:, column] = 1
        for turn in range(rounds):
            run.report(f"{in_bytes(written)} of {in_bytes(nbytes)}, round {turn + 1} of {rounds}")
            command = [sys.executable, "-c", _CRASH, url, str(written // _COLUMN_BYTES)]
            ended = subprocess.run(command, check=False).returncode
            if ended != -signal.SIGKILL:
                raise RuntimeError(f"the process that was to be killed ended with {ended}")
            journal = sum(file.stat().st_size for file in place.glob("journal*"))
            began = time.perf_counter()
            group = pmarray.open_group(url)
            seconds = time.perf_counter() - began
            with group:
                # Who only reads sees through what is to be undone; the first writer undoes it.
                with group.transaction():
                    group.attrs["recoveries"] = turn
                undone = time.perf_counter() - began
                if group["x"][-1, : written // _COLUMN_BYTES].min() != 1:
                    raise RuntimeError("recovery has not brought back what was there")
            began = time.perf_counter()
            group = pmarray.open_group(url)
            clean = time.perf_counter() - began
            group.close()
            run.add(
                "recovery", nbytes=nbytes, written=written, round=turn, seconds=seconds,
                undone_seconds=undone, clean_seconds=clean, journal_bytes=journal,
            )  # fmt: skip


def _names() -> Iterable[str]:
    yield "memmap:"
    yield "zarr:"
    if find_spec("icechunk") is not None:
        yield "icechunk:"


def _url(name: str, place: Path) -> str:
    # What is not there is not written out: the disk need not hold it.
    return f"{name}{place}" + ("?sparse=yes" if name == "memmap:" else "")


def tables(run: Recording) -> list[Table]:
    """Lay out a run."""
    rounds = run.header["parameters"]["rounds"]
    opened = Table(
        "Opening an array, ms",
        ["", "size", "to read", "slowest", "to write", "slowest"],
        note=f"Median and slowest of {rounds}. Nothing was written to the arrays.",
    )
    for name, nbytes in dict.fromkeys((one["name"], one["nbytes"]) for one in run.of("open")):
        cells = []
        for mode in ("r", "r+"):
            every = [
                one["seconds"]
                for one in run.of("open")
                if (one["name"], one["nbytes"], one["mode"]) == (name, nbytes, mode)
            ]
            cells += [in_ms(statistics.median(every)), in_ms(max(every))]
        opened.rows.append([name, in_bytes(nbytes), *cells])
    recovered = Table(
        "Opening a group after a kill, `memmap:`",
        ["transaction", "array", "journal", "opened, ms", "undone, ms", "slowest", "next, ms"],
        note=f"Median and slowest of {rounds}. A process was killed at the end of a transaction"
        " that overwrites so many bytes, before it was committed. Opened: ready to read. Undone:"
        " ready to write, and a first commit durable. Next: opened once more.",
    )
    for written, nbytes in sorted({(one["written"], one["nbytes"]) for one in run.of("recovery")}):
        these = [
            one
            for one in run.of("recovery")
            if (one["written"], one["nbytes"]) == (written, nbytes)
        ]
        undone = [one["undone_seconds"] for one in these]
        recovered.rows.append(
            [
                in_bytes(written),
                in_bytes(nbytes),
                in_bytes(max(one["journal_bytes"] for one in these)),
                in_ms(statistics.median(one["seconds"] for one in these)),
                in_ms(statistics.median(undone)),
                in_ms(max(undone)),
                in_ms(statistics.median(one["clean_seconds"] for one in these)),
            ]
        )
    return [opened, recovered]

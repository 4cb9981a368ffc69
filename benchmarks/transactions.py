"""What a transaction a step adds to appending and to overwriting columns."""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import numpy as np

import pmarray
from benchmarks._device import write_bandwidth
from benchmarks._harness import Contender, race, record, results_of, table_of
from benchmarks._records import Recording
from benchmarks._tables import Table, in_bytes, in_ms

__all__ = ["compare", "tables"]

_WARM_UP_STEPS = 30
_COLUMNS = 8
Commit = Literal["none", "pipelined", "durable"]


class _Columns:
    """Writes one column a step, in a transaction or not."""

    def __init__(self, group: pmarray.Group, rows: int, commit: Commit, *, append: bool) -> None:
        self._group = group
        self._commit = commit
        self._append = append
        self._column = np.random.default_rng(0).normal(size=rows).astype(np.float32)
        self._step = 0
        self._array = group.create("x", (rows, 0 if append else _COLUMNS), "float32", layout="col")
        if not append:
            for i in range(_COLUMNS):  # else there is nothing yet to keep a before-image of
                self._array[:, i] = self._column
            group.flush()
        self.finish = group.flush

    def step(self) -> None:
        """Write a column."""
        wait = self._commit == "durable"
        with nullcontext() if self._commit == "none" else self._group.transaction(wait=wait):
            if self._append:
                with self._array.appending() as out:
                    out[:, 0] = self._column
            else:
                self._array[:, self._step % _COLUMNS] = self._column
        self._step += 1


def compare(run: Recording, *, rows: int, rounds: int, steps: int, directory: Path) -> None:
    """Time both, without a transaction, with a pipelined and with a durable one."""
    device: list[float] = []
    with tempfile.TemporaryDirectory(dir=directory, prefix="transactions-") as scratch:
        where = Path(scratch)

        def contender(commit: Commit, *, append: bool) -> Contender:
            @contextmanager
            def start() -> Iterator[_Columns]:
                place = where / "group"
                with pmarray.open_group(place) as group:
                    yield _Columns(group, rows, commit, append=append)
                shutil.rmtree(place)

            names = {
                "none": "no transactions",
                "pipelined": "one a step, pipelined",
                "durable": "one a step, durable",
            }
            return Contender(names[commit], start)

        ways: tuple[Commit, ...] = ("none", "pipelined", "durable")
        for append in (True, False):
            results = race(
                [contender(commit, append=append) for commit in ways],
                rounds=rounds,
                steps=steps,
                warm_up=_WARM_UP_STEPS,
                directory=where,
                report=run.report,
                between=lambda: device.append(write_bandwidth(where)),
            )
            record(run, results, append=append)
    for bandwidth in device:
        run.add("limits", device_bytes_per_second=bandwidth)


def tables(run: Recording) -> list[Table]:
    """Lay out a run: what is appended, and what is overwritten."""
    nbytes = 4 * run.header["parameters"]["rows"]
    bandwidth = statistics.median(one["device_bytes_per_second"] for one in run.of("limits"))
    found = []
    for append in (True, False):
        what = "appended" if append else f"overwritten, of {_COLUMNS}"
        results = results_of(run.records, append=append)
        table = table_of(
            results,
            f"a column of {in_bytes(nbytes)} {what}, a step",
        )
        for result, row in zip(results, table.rows, strict=True):
            row.insert(3, f"{result.seconds * bandwidth / nbytes:.2f}")
        table.headings.insert(3, "x device")
        table.note += (
            f"\ndevice, written in order: {in_bytes(bandwidth)}/s: a column in"
            f" {in_ms(nbytes / bandwidth)} ms"
        )
        found.append(table)
    return found

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
from rich.console import Console

import pmarray
from benchmarks._device import write_bandwidth
from benchmarks._harness import Contender, race
from benchmarks._tables import in_bytes, in_ms, machine
from benchmarks.collect import table

__all__ = ["compare"]

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


def compare(console: Console, *, rows: int, rounds: int, steps: int, directory: Path) -> None:
    """Time both, without a transaction, with a pipelined and with a durable one; print tables."""
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

        console.print(machine(directory), highlight=False, soft_wrap=True)
        ways: tuple[Commit, ...] = ("none", "pipelined", "durable")
        for append in (True, False):
            results = race(
                [contender(commit, append=append) for commit in ways],
                rounds=rounds,
                steps=steps,
                warm_up=_WARM_UP_STEPS,
                between=lambda: device.append(write_bandwidth(where)),
            )
            what = "appended" if append else f"overwritten, of {_COLUMNS}"
            console.print(f"a column of {in_bytes(4 * rows)} {what}, a step", highlight=False)
            console.print(table(results))
    bandwidth = statistics.median(device)
    console.print(
        f"device, written in order: {in_bytes(bandwidth)}/s: a column in"
        f" {in_ms(4 * rows / bandwidth)} ms",
        highlight=False,
        soft_wrap=True,
    )

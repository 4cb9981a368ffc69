"""A posterior larger than memory: the cost of a step against posterior over memory.

The paper's largest run had a matrix 1.2 times its machine's DRAM. Here a memory cgroup makes the
memory small instead: it holds training data, model and posterior together, the pages of the
posterior's files in the page cache too.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import _cgroup
from benchmarks import _published as published
from benchmarks._harness import Result, results_of
from benchmarks._records import Recording
from benchmarks._tables import Table, in_bytes, in_ms

__all__ = ["figures", "measure", "tables", "words"]

_WARM_UP_STEPS = 30
_ROW_MAJOR_WARM_UP_STEPS = 2
"""The first one touches every page of the matrix."""


def measure(
    run: Recording,
    *,
    model: str,
    threads: int | None,
    memory_bytes: int,
    ratios: Sequence[float],
    rounds: int,
    most_seconds: float,
    least_steps: int,
    shelves: Sequence[str] = (),
    enforced: bool = True,
    directory: Path,
) -> None:
    """Train and collect at every ratio, in every way, in a process that has little memory.

    Parameters
    ----------
    run
        Where the figures go.
    model, threads
        What is trained, and by how many threads.
    memory_bytes
        What the process may hold.
    ratios
        Of the posterior's size to that.
    rounds
        How often; a row-major map that does not fit into memory is measured once.
    most_seconds, least_steps
        When a run is broken off, to be extrapolated.
    shelves
        See `benchmarks.paper.contenders`.
    enforced
        Whether a cgroup holds it to that.
    directory
        Where files are written.
    """
    with ExitStack() as stack:
        joins = None
        if enforced:
            try:
                joins = stack.enter_context(_cgroup.limited(memory_bytes))
            except _cgroup.CgroupError as error:
                run.add("note", text=str(error))
                return
        process = _Process(joins)
        stack.callback(process.end)
        scratch = Path(
            stack.enter_context(tempfile.TemporaryDirectory(dir=directory, prefix="regime-"))
        )
        names = process.call(_names, model, threads, shelves, scratch)
        for turn in range(rounds):
            for ratio in ratios:
                for i in [*range(turn % len(names), len(names)), *range(turn % len(names))]:
                    name = names[i]
                    if "row-major np.memmap" in name and ratio >= 1 and turn:
                        continue
                    if _must_fit(name) and ratio >= 1:
                        if not turn:
                            run.add("no room", name=name, ratio=ratio)
                        continue
                    run.report(f"round {turn + 1} of {rounds}: {name}, ratio {ratio}")
                    cell = (model, shelves, scratch, i, ratio, memory_bytes)
                    try:
                        timing = process.call(_cell, *cell, most_seconds, least_steps)
                    except BrokenProcessPool:
                        run.add("no room", name=name, ratio=ratio)
                        process.begin_again()
                        process.call(_names, model, threads, shelves, scratch)
                        continue
                    run.add("timing", ratio=ratio, name=name, round=turn, **timing)


def tables(run: Recording) -> list[Table]:
    """Lay out a run: ms a step, and that over the same way's at the smallest ratio."""
    asked = run.header["parameters"]
    table = Table(
        f"Posterior over memory, ms a step; {in_bytes(asked['memory_bytes'])} of memory allowed",
        ["", *(f"{ratio:g}" for ratio in asked["ratios"]), "last / first"],
        note="The median of the rounds, training and the flush at the end included. * broken off"
        f" after {asked['most_seconds']:g} s, and extrapolated; a dash: does not fit into the"
        " memory. " + " ".join(one["text"] for one in run.of("note")),
    )
    for name, by_ratio in _by_name(run).items():
        cells = []
        for ratio in asked["ratios"]:
            result = by_ratio.get(ratio)
            text = "-" if result is None else in_ms(result.seconds)
            cells.append(text + (" *" if result is not None and result.cut_short else ""))
        first, last = (by_ratio.get(asked["ratios"][i]) for i in (0, -1))
        grows = "-" if first is None or last is None else f"{last.seconds / first.seconds:.2f}"
        table.rows.append([name, *cells, grows])
    return [table]


def words(run: Recording) -> str:
    """Say what a step costs at the largest ratio, over the smallest."""
    first, last = (run.header["parameters"]["ratios"][i] for i in (0, -1))
    grown = {
        name: by_ratio[last].seconds / by_ratio[first].seconds
        for name, by_ratio in _by_name(run).items()
        if first in by_ratio and last in by_ratio
    }
    if not grown:
        return ""
    listed = ", ".join(f"{name} {ratio:.2f}" for name, ratio in grown.items())
    return (
        f"With a posterior of {last:g} times the memory a step costs this many"
        f" times what it costs at the smallest, {first:g}: {listed}."
    )


def figures(run: Recording) -> dict[str, Figure]:
    """Draw cost against posterior over memory, ours and the published, as ratios to DRAM."""
    by_name = _by_name(run)
    smallest = min(run.header["parameters"]["ratios"])
    dram = by_name.get("row-major in DRAM", {}).get(smallest)
    if dram is None:
        return {}
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, by_ratio in by_name.items():
        at = sorted(by_ratio)
        values = [by_ratio[ratio].seconds / dram.seconds for ratio in at]
        axes.plot(at, values, marker="o", label=name)
    at = [gb * 1e9 / published.MACHINE_BYTES for gb in published.SIZE_GB]
    base = published.EPOCH_SECONDS[published.DRAM][0][0]
    for name, epochs in published.EPOCH_SECONDS.items():
        values = [mean / base for mean, _ in epochs]
        axes.plot(at, values, marker="x", linestyle=":", color="grey", label=f"published: {name}")
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("posterior / memory")
    axes.set_ylabel("a step, times the least in DRAM")
    axes.legend(fontsize=7)
    return {"regime": figure}


def _by_name(run: Recording) -> dict[str, dict[float, Result]]:
    found: dict[str, dict[float, Result]] = {}
    for ratio in run.header["parameters"]["ratios"]:
        for result in results_of(run.records, ratio=ratio):
            found.setdefault(result.name, {})[ratio] = result
    for one in run.of("no room"):
        found.setdefault(one["name"], {})
    return found


def _must_fit(name: str) -> bool:
    return name in ("row-major in DRAM", "swag on dram:")


class _Process:
    """One worker, begun again if the kernel ends it for want of memory."""

    def __init__(self, joins: Path | None) -> None:
        self._joins = joins
        self.begin_again()

    def begin_again(self) -> None:
        self._pool = ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(self._joins,),
        )

    def call(self, work: Any, *arguments: Any) -> Any:
        return self._pool.submit(work, *arguments).result()

    def end(self) -> None:
        self._pool.shutdown()


def _begin(joins: Path | None) -> None:
    if joins is not None:
        _cgroup.join(joins)


def _names(model: str, threads: int | None, shelves: Sequence[str], scratch: Path) -> list[str]:
    """Say which ways there are; the first call imports what they need."""
    import torch

    from benchmarks._training import TrainingContenders
    from benchmarks.paper import contenders

    if threads is not None:
        torch.set_num_threads(threads)
    training = TrainingContenders(model, steps=1, directory=scratch)
    ways = contenders(training, rank=1, row_major_steps=1, shelves=shelves)
    return [way.name for way in ways]


def _cell(
    model: str,
    shelves: Sequence[str],
    scratch: Path,
    i: int,
    ratio: float,
    memory_bytes: int,
    most_seconds: float,
    least_steps: int,
) -> dict[str, Any]:
    """Time one way at one ratio, in the process with little memory."""
    from benchmarks._harness import time_round
    from benchmarks._training import TrainingContenders
    from benchmarks.paper import contenders
    from swag.models import build

    weights = sum(p.numel() for p in build(model).parameters())
    rank = max(2 + least_steps, round(ratio * memory_bytes / (4 * weights)))
    training = TrainingContenders(model, steps=rank, directory=scratch)
    way = contenders(training, rank=rank, row_major_steps=rank, shelves=shelves)[i]
    row_major = way.name.startswith("row-major")
    warm_up = min(_ROW_MAJOR_WARM_UP_STEPS if row_major else _WARM_UP_STEPS, rank - least_steps)
    timing = time_round(
        way,
        rank - warm_up,
        warm_up,
        most_seconds=most_seconds,
        least_steps=least_steps,
        directory=scratch,
    )
    return asdict(timing)

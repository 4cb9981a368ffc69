"""Stores in place beside the write cache, on persistent memory: when the cache pays."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pmarray
from benchmarks._records import Recording
from benchmarks._tables import Table, in_bytes, in_ms
from pmarray._system import osops, pmem
from pmarray.backends.shelf import devices
from pmarray.backends.shelf.engines import is_dax

__all__ = ["WORKLOADS", "compare", "tables"]

Vector = NDArray[np.float32]
_PIECES = 100
_CACHE = "256 MiB"
_WAYS = ("in place", "write cache", "memmap:", "memory mode", "dram:")


def _columns(a: pmarray.PMArray, theta: Vector, rng: np.random.Generator) -> int:
    for column in range(a.shape[1]):
        a[:, column] = theta
    return a.shape[1]


def _lent_columns(a: pmarray.PMArray, theta: Vector, rng: np.random.Generator) -> int:
    for column in range(a.shape[1]):
        with a.writing(np.s_[:, column]) as out:
            np.subtract(theta, 1, out=out)
    return a.shape[1]


def _pieces(a: pmarray.PMArray, theta: Vector, rng: np.random.Generator) -> int:
    cuts = np.linspace(0, len(theta), _PIECES + 1).astype(int)
    for column in range(a.shape[1]):
        for start, stop in pairwise(cuts):
            a[start:stop, column] = theta[start:stop]
    return a.shape[1]


def _rows(a: pmarray.PMArray, theta: Vector, rng: np.random.Generator) -> int:
    values = theta[: a.shape[1]]
    rows = rng.integers(0, a.shape[0], 200)
    for row in rows:
        a[int(row)] = values
    return len(rows)


def _items(a: pmarray.PMArray, theta: Vector, rng: np.random.Generator) -> int:
    places = rng.integers(0, a.shape[0], 2000)
    for place in places:
        a[int(place), 0] = 1
    return len(places)


def _appends(a: pmarray.PMArray, theta: Vector, rng: np.random.Generator) -> int:
    for _ in range(8):
        with a.transaction():
            a.append(theta, axis=1)
    return 8


def _overwrites(a: pmarray.PMArray, theta: Vector, rng: np.random.Generator) -> int:
    for column in range(8):
        with a.transaction():
            a[:, column] = theta
    return 8


WORKLOADS: dict[str, Callable[[pmarray.PMArray, Vector, np.random.Generator], int]] = {
    "a column": _columns,
    "a column, lent": _lent_columns,
    f"a column in {_PIECES} pieces": _pieces,
    "a row": _rows,
    "an item": _items,
    "an append in a transaction": _appends,
    "an overwrite in a transaction": _overwrites,
}
"""What is done to an array of whole columns; each returns how often it did it."""


@contextmanager
def _where(place: Path | None) -> Iterator[tuple[dict[str, tuple[str, str]], str]]:
    """Give a URL and a cache for each contender, and what the place is."""
    with ExitStack() as stack:
        if place is None:
            from tests.persistent import MEMORY, pretend_dax

            stack.enter_context(pretend_dax())
            parent, what = MEMORY, "DRAM that stands for persistent memory: no such latencies"
        elif devices.find_device(str(place)) is not None:
            url = f"shelf:{place}"
            yield {"in place": (url, "auto"), "write cache": (url, _CACHE)}, "a DAX device"
            return
        else:
            parent = str(place)
            what = "DAX" if is_dax(parent) else "no DAX: both are memmap:"
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="shelf-", dir=parent))
        yield (
            {
                "in place": (f"shelf:{scratch}/g", "auto"),
                "write cache": (f"shelf:{scratch}/g", _CACHE),
                "memmap:": (f"memmap:{scratch}/g", _CACHE),
                "memory mode": (f"dram:?spill={scratch}", "auto"),
                "dram:": ("dram:", "auto"),
            },
            what,
        )


def compare(run: Recording, *, rows: int, columns: int, rounds: int, place: Path | None) -> None:
    """Time every workload in place and through the cache, the flush at the end included."""
    theta = np.random.default_rng(0).normal(size=rows).astype(np.float32)
    with _where(place) as (contenders, what):
        run.add("place", medium=what, stores=pmem.persistence())
        for turn in range(rounds):
            names = list(contenders)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                run.report(f"round {turn + 1} of {rounds}: {name}")
                url, cache = contenders[name]
                for workload, work in WORKLOADS.items():
                    seconds = _time(work, url, cache, theta, columns, turn)
                    run.add("write", workload=workload, way=name, round=turn, seconds=seconds)
            run.add("limit", bytes_per_second=_store_bandwidth(theta))


def tables(run: Recording) -> list[Table]:
    """Lay out a run."""
    asked = run.header["parameters"]
    (place,) = run.of("place")
    seconds: dict[str, dict[str, list[float]]] = {}
    for one in run.of("write"):
        by_way = seconds.setdefault(one["workload"], {})
        by_way.setdefault(one["way"], []).append(one["seconds"])
    ways = sorted({way for by_way in seconds.values() for way in by_way}, key=_WAYS.index)
    limit = statistics.median(one["bytes_per_second"] for one in run.of("limit"))
    table = Table(
        f"{place['medium']}; stores by {place['stores']}; {asked['rows']:,} x {asked['columns']}"
        f" float32, a column is {in_bytes(4 * asked['rows'])}",
        ["ms for", *ways, "in place / write cache"],
        note=f"Medians of {asked['rounds']} interleaved rounds, into columns that have been written"
        " before; made durable at the end. The limit, a copy past the processor's cache into"
        f" DRAM: {in_bytes(limit)}/s.",
    )
    for workload, by_way in seconds.items():
        medians = {way: statistics.median(by_way[way]) for way in ways}
        ratio = medians["in place"] / medians["write cache"]
        table.rows.append([workload, *map(in_ms, medians.values()), f"{ratio:.2f}"])
    return [table]


def _time(
    work: Callable[[pmarray.PMArray, Vector, np.random.Generator], int],
    url: str,
    cache: str,
    theta: Vector,
    columns: int,
    seed: int,
) -> float:
    with pmarray.open(
        url, (len(theta), columns), "float32", mode="w", layout="col", cache=cache
    ) as a:
        for _ in range(2):  # by system calls where the bytes are fresh; then by stores
            for column in range(columns):
                a[:, column] = theta
            a.flush()
        started = time.perf_counter()
        count = work(a, theta, np.random.default_rng(seed))
        a.flush()
        return (time.perf_counter() - started) / count


def _store_bandwidth(theta: Vector) -> float:
    """Return bytes a second of `_system.osops.store` where there is no medium but DRAM."""
    target: Any = np.zeros(theta.nbytes, np.uint8)
    data = theta.view(np.uint8)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        osops.store(target, data)
        best = min(best, time.perf_counter() - started)
    return theta.nbytes / best

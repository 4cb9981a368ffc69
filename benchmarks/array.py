"""The everyday operations of one matrix of columns, in several libraries, warm and cold."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks._device import fresh_memory_bandwidth, write_bandwidth
from benchmarks._peers import PEERS, Peer, drop_caches, fill_caches, missing
from benchmarks._records import Recording
from benchmarks._scans import THREADED, Trajectory, race_plain, race_threads, tables_of_scans
from benchmarks._tables import Table, in_bytes

__all__ = ["OPERATIONS", "compare", "tables"]

Matrix = NDArray[np.float32]
_BLOCK = (1024, 16)


Index = tuple[int | slice, int | slice]


@dataclass(frozen=True)
class Operation:
    """Something that is timed: one call of `run`."""

    name: str
    run: Callable[[Peer, Index, Matrix], None]
    where: Callable[[Sequence[int], np.random.Generator], Index] = lambda shape, rng: (0, 0)
    """Draws what is read or written; not timed."""
    writes: int = 0
    """How many at a time before all of them are made durable; 0 for an operation that reads."""
    once: bool = False
    """Whether one is enough to be timed."""


def _item(shape: Sequence[int], rng: np.random.Generator) -> tuple[int, int]:
    return int(rng.integers(shape[0])), int(rng.integers(shape[1]))


def _column(shape: Sequence[int], rng: np.random.Generator) -> Index:
    return slice(None), _item(shape, rng)[1]


def _row(shape: Sequence[int], rng: np.random.Generator) -> Index:
    return _item(shape, rng)[0], slice(None)


def _block(shape: Sequence[int], rng: np.random.Generator) -> Index:
    high, wide = min(_BLOCK[0], shape[0]), min(_BLOCK[1], shape[1])
    row, column = int(rng.integers(shape[0] - high + 1)), int(rng.integers(shape[1] - wide + 1))
    return slice(row, row + high), slice(column, column + wide)


def _read(peer: Peer, index: Index, x: Matrix) -> None:
    peer.read(index)


def _write(peer: Peer, index: Index, x: Matrix) -> None:
    peer.write(index, x[index])


def _append(peer: Peer, index: Index, x: Matrix) -> None:
    peer.append(x[index])


def _sum(peer: Peer, index: Index, x: Matrix) -> None:
    peer.sum()


def _product(peer: Peer, index: Index, x: Matrix) -> None:
    peer.product(np.ones(x.shape[1], np.float32))


def _products(peer: Peer, index: Index, x: Matrix) -> None:
    peer.product(np.ones((x.shape[1], 16), np.float32))


OPERATIONS = (
    Operation("read an item", _read, _item),
    Operation("read a column", _read, _column),
    Operation("read a row", _read, _row),
    Operation("read a block", _read, _block),
    Operation("sum", _sum, once=True),
    Operation("a @ z", _product, once=True),
    Operation("a @ z, 16 columns", _products, once=True),
    Operation("write items", _write, _item, writes=16),
    Operation("write columns", _write, _column, writes=16),
    Operation("write rows", _write, _row, writes=2),
    Operation("write blocks", _write, _block, writes=16),
    Operation("append columns", _append, _column, writes=32),
)


def compare(
    run: Recording,
    *,
    rows: int,
    columns: int,
    rounds: int,
    directory: Path,
    only: Sequence[str] = (),
    peers: Sequence[str] = (),
    enough_seconds: float,
    probe_bytes: int,
    weights: int,
    iterates: int,
    draws: int,
) -> None:
    """Time every operation of every library, interleaved, and what reads whole files."""

    def is_wanted(name: str) -> bool:
        return not only or any(part in name for part in only)

    chosen = [peer for peer in PEERS if not peers or any(one in peer.name for one in peers)]
    operations = [one for one in OPERATIONS if is_wanted(one.name)]
    x = np.asfortranarray(np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32))
    with (
        tempfile.TemporaryDirectory(dir=directory, prefix="array-") as scratch,
        ExitStack() as closes,
    ):
        present: list[Peer] = []
        for i, kind in enumerate(chosen):
            if missing(kind):
                run.add("peer", name=kind.name, note=f"skipped, needs {', '.join(missing(kind))}")
                continue
            peer = kind(Path(scratch) / str(i))
            _fill(peer, x)
            _verify(peer, x)
            closes.callback(peer.delete)
            present.append(peer)
            run.add("peer", name=peer.name, note=peer.note)
        threaded = [peer for peer in present if peer.name in THREADED]
        files = [peer for peer in present if peer.name == "pmarray memmap:"]
        trajectory = None
        if iterates and is_wanted("draws"):
            run.report(f"collecting {iterates} iterates of {weights:,} weights")
            trajectory = Trajectory(Path(scratch) / "trajectory", weights, iterates, draws)
        for turn in range(rounds):
            for limit, bandwidth in (
                ("device", write_bandwidth(Path(scratch), nbytes=probe_bytes)),
                ("fresh memory", fresh_memory_bandwidth(probe_bytes)),
                ("memory", _scan_bandwidth(x)),
            ):
                run.add("limit", name=limit, round=turn, bytes_per_second=bandwidth)
            for operation in operations:
                run.report(f"round {turn + 1} of {rounds}: {operation.name}")
                for cold in (False, True) if not operation.writes else (False,):
                    for k in range(len(present)):
                        peer = present[(turn + k) % len(present)]
                        if operation.writes and not peer.writes:
                            continue
                        seconds = _time(
                            peer, operation, x, turn, cold=cold, enough_seconds=enough_seconds
                        )
                        run.add(
                            "operation",
                            name=operation.name,
                            cold=cold,
                            peer=peer.name,
                            round=turn,
                            seconds=seconds,
                        )
            run.report(f"round {turn + 1} of {rounds}: plain reads, threads and draws")
            for peer in files if is_wanted("plain reads") else ():
                race_plain(run, "matrix", _largest(peer.path), turn)
            if is_wanted("threads"):
                race_threads(run, threaded, columns, turn, 3 * enough_seconds)
            if trajectory is not None:
                trajectory.race(run, turn)


def _largest(path: Path) -> Path:
    return max(path.rglob("*.npy"), key=lambda file: file.stat().st_size).resolve()


def _fill(peer: Peer, x: Matrix) -> None:
    if not peer.writes:  # it reads what its base wrote
        writer = type(peer).__mro__[1](peer.path)
        _fill(writer, x)
        writer.close()
        peer.open()
        return
    peer.create(x.shape[0])
    peer.open()
    for column in range(x.shape[1]):
        peer.append(x[:, column])
    peer.durable()


def _verify(peer: Peer, x: Matrix) -> None:
    block, column = _block(x.shape, np.random.default_rng(1)), x.shape[1] // 2
    np.testing.assert_array_equal(peer.read(block), x[block])
    np.testing.assert_array_equal(np.ravel(peer.read((slice(None), column))), x[:, column])
    np.testing.assert_array_equal(np.ravel(peer.read((7, slice(None)))), x[7])
    np.testing.assert_allclose(peer.sum(), x.sum(dtype=np.float64), rtol=1e-6, atol=1e-3)
    z = np.ones(x.shape[1], np.float32)
    np.testing.assert_allclose(np.ravel(peer.product(z)), x @ z, rtol=1e-3, atol=1e-3)


def _time(
    peer: Peer, operation: Operation, x: Matrix, turn: int, *, cold: bool, enough_seconds: float
) -> float:
    """Seconds of one operation; of writes, a share of making all of them durable included."""
    rng = np.random.default_rng(turn)
    places = cycle([operation.where(x.shape, rng) for _ in range(1000)])
    if cold:
        peer.close()
        drop_caches(peer.path)
        peer.open()
    elif not operation.writes:
        fill_caches(peer.path)
        operation.run(peer, next(places), x)  # what only the first of a process pays
    count = 0
    started = time.perf_counter()
    while True:
        operation.run(peer, next(places), x)
        count += 1
        if operation.writes:
            if count == operation.writes:
                peer.durable()
                break
        elif operation.once or cold or time.perf_counter() - started > enough_seconds:
            break
    seconds = (time.perf_counter() - started) / count
    if operation.run is _append:  # back to the size that the others have
        peer.delete()
        _fill(peer, x)
    return seconds


def _scan_bandwidth(x: Matrix) -> float:
    """Bytes a second that NumPy adds up in memory."""
    started = time.perf_counter()
    x.sum()
    return x.nbytes / (time.perf_counter() - started)


def tables(run: Recording) -> list[Table]:
    """Lay out what is read warm, what is read cold, what is written; whole files; threads."""
    rows, columns = (run.header["parameters"][key] for key in ("rows", "columns"))
    size = f"{rows:,} x {columns:,} float32 ({in_bytes(4 * rows * columns)})"
    limits: dict[str, list[float]] = {}
    for one in run.of("limit"):
        limits.setdefault(one["name"], []).append(one["bytes_per_second"])
    medians = ", ".join(f"{k} {in_bytes(statistics.median(v))}/s" for k, v in limits.items())
    notes = "; ".join(f"{one['name']}: {one['note']}" for one in run.of("peer"))
    writing = {operation.name for operation in OPERATIONS if operation.writes}
    found = []
    for what, cold, writes in (
        ("from the page cache", False, False),
        ("from the device, after opening anew", True, False),
        ("made durable", False, True),
    ):
        times: dict[str, dict[str, list[float]]] = {}
        for one in run.of("operation"):
            if one["cold"] == cold and (one["name"] in writing) == writes:
                by_name = times.setdefault(one["peer"], {})
                by_name.setdefault(one["name"], []).append(one["seconds"])
        if not times:
            continue
        names = list(dict.fromkeys(name for by_name in times.values() for name in by_name))
        best = {
            name: min(statistics.median(times[peer][name]) for peer in times if name in times[peer])
            for name in names
        }
        headings = [name.removeprefix("read ") for name in names]
        table = Table(f"{size}, {what}: ms an operation", ["", *headings])
        for peer, by_name in times.items():
            table.rows.append([peer, *(_cell(by_name.get(name), best[name]) for name in names)])
        found.append(table)
    if found:
        found[-1].note = f"* the least. Limits, median of the rounds: {medians}.\n{notes}"
    return found + tables_of_scans(run)


def _cell(seconds: list[float] | None, best: float) -> str:
    if seconds is None:
        return "-"
    median = statistics.median(seconds)
    return f"{_ms(median)} *" if median == best else _ms(median)


def _ms(seconds: float) -> str:
    ms = seconds * 1e3
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}" if ms >= 0.1 else f"{ms:.4f}"

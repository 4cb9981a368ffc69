"""What the machine can do at most: its memory and its device, by request size and depth.

Every other result is to be read as a multiple of one of these.
"""

from __future__ import annotations

import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.filesize import decimal

from benchmarks._device import fresh_memory_bandwidth
from benchmarks._records import Record, Recording
from benchmarks._tables import Table, in_bytes, spread

__all__ = ["DEPTHS", "REQUESTS", "measure", "tables"]

REQUESTS = (4 << 10, 64 << 10, 1 << 20, 8 << 20)
"""Bytes of a request."""
DEPTHS = (1, 4)
"""Requests in flight, each on a thread of its own."""


def measure(
    run: Recording,
    *,
    file_bytes: int,
    rounds: int,
    cell_seconds: float,
    directory: Path,
    requests: Sequence[int] = REQUESTS,
) -> None:
    """Measure memory, device and barriers, one after the other, round after round.

    Parameters
    ----------
    run
        Where the figures go.
    file_bytes
        Length of the file that is read and written; a multiple of the largest request.
    rounds, cell_seconds
        How often everything is measured, and for how long each time at least.
    directory
        On the device.
    requests
        Bytes of a request.
    """
    memory = np.ones(file_bytes, np.uint8), np.ones(file_bytes, np.uint8)
    with tempfile.TemporaryDirectory(dir=directory, prefix="limits-") as scratch:
        path = Path(scratch) / "file"
        direct = _takes_direct(path)
        if not direct:
            run.add("note", text="no direct I/O on this file system")
        _fill(path, file_bytes)
        for turn in range(rounds):
            run.report(f"round {turn + 1} of {rounds}: memory")
            _memory(run, turn, *memory)
            for write in (False, True):
                for is_direct in (False, True) if direct else (False,):
                    for nbytes in requests:
                        for depth in DEPTHS:
                            way = f"{'write' if write else 'read'}, {nbytes >> 10} KiB x {depth}"
                            run.report(f"round {turn + 1} of {rounds}: {way}")
                            bandwidth = _device(
                                path, file_bytes, nbytes, depth, cell_seconds,
                                write=write, direct=is_direct,
                            )  # fmt: skip
                            run.add(
                                "device",
                                round=turn,
                                write=write,
                                direct=is_direct,
                                request_bytes=nbytes,
                                depth=depth,
                                bytes_per_second=bandwidth,
                            )
            for direct_barrier in (False, True) if direct else (False,):
                seconds = _barrier(path, cell_seconds, direct=direct_barrier)
                run.add("barrier", round=turn, direct=direct_barrier, seconds=seconds)


def tables(run: Recording) -> list[Table]:
    """Lay out a run: memory, the device, barriers."""
    found = [_table_of_memory(run), _table_of_devices(run)]
    found[1].note += "".join(f" {one['text']}." for one in run.of("note"))
    barriers = Table("Barriers: 4 KiB written and made durable", ["", "median us", "rounds"])
    for direct in (False, True):
        seconds = [one["seconds"] for one in run.of("barrier") if one["direct"] == direct]
        if seconds:
            name = "direct write and fdatasync" if direct else "buffered write and fdatasync"
            median = f"{statistics.median(seconds) * 1e6:.0f}"
            barriers.rows.append([name, median, spread(seconds, 1e6)])
    return [*found, barriers]


def _table_of_memory(run: Recording) -> Table:
    table = Table("Memory, one thread", ["", "GB/s", "rounds"])
    for name in dict.fromkeys(one["name"] for one in run.of("memory")):
        found = [one["bytes_per_second"] for one in run.of("memory") if one["name"] == name]
        table.rows.append([name, f"{statistics.median(found) / 1e9:.2f}", spread(found, 1e-9)])
    return table


def _table_of_devices(run: Recording) -> Table:
    records = run.of("device")
    requests = sorted({one["request_bytes"] for one in records})
    table = Table(
        "The device, GB/s, by bytes of a request",
        ["", *(decimal(nbytes) for nbytes in requests)],
        note="Medians of the rounds. Reads are of a file out of the page cache; buffered writes"
        " end with an fdatasync, which is timed too.",
    )

    def median(found: list[Record]) -> str:
        return f"{statistics.median(one['bytes_per_second'] for one in found) / 1e9:.2f}"

    ways = dict.fromkeys((one["write"], one["direct"], one["depth"]) for one in records)
    for write, direct, depth in ways:
        row = [
            f"{'write' if write else 'read'}, {'direct' if direct else 'buffered'}, {depth} deep"
        ]
        for nbytes in requests:
            case = (write, direct, depth, nbytes)
            keys = ("write", "direct", "depth", "request_bytes")
            row.append(median([one for one in records if tuple(one[k] for k in keys) == case]))
        table.rows.append(row)
    asked = run.header["parameters"]
    table.note += f" The file has {in_bytes(asked['file_bytes'])}."
    return table


def _memory(run: Recording, turn: int, one: np.ndarray, other: np.ndarray) -> None:
    words = one.view(np.int64)
    for name, work, nbytes in (
        ("read (a sum)", words.sum, one.nbytes),
        ("copy, bytes copied", lambda: np.copyto(other, one), one.nbytes),
    ):
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
        run.add("memory", round=turn, name=name, bytes_per_second=nbytes / seconds)
    fresh = fresh_memory_bandwidth(one.nbytes)
    run.add("memory", round=turn, name="touched for the first time", bytes_per_second=fresh)


def _takes_direct(path: Path) -> bool:
    if not hasattr(os, "O_DIRECT"):
        return False
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_DIRECT, 0o600))
    except OSError:
        return False
    return True


def _fill(path: Path, nbytes: int) -> None:
    block = np.random.default_rng(0).bytes(1 << 20)
    with open(path, "wb") as file:
        for _ in range(0, nbytes, len(block)):
            file.write(block)
        os.fsync(file.fileno())


def _device(
    path: Path,
    file_bytes: int,
    request: int,
    depth: int,
    seconds: float,
    *,
    write: bool,
    direct: bool,
) -> float:
    """Move requests in order until the file or the time is over, and return bytes a second.

    The requests are dealt out among the threads, so that together they go through it in series.
    """
    flags = (os.O_WRONLY if write else os.O_RDONLY) | (os.O_DIRECT if direct else 0)
    count = file_bytes // request
    with _opened(path, flags) as handle, ThreadPoolExecutor(depth) as threads:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()

        def move(first: int) -> int:
            done = 0
            with mmap.mmap(-1, request) as buffer:
                for at in range(first, count, depth):
                    if write:
                        os.pwrite(handle, buffer, at * request)
                    else:
                        os.preadv(handle, [buffer], at * request)
                    done += request
                    if time.perf_counter() - started > seconds:
                        break
            return done

        moved = sum(threads.map(move, range(depth)))
        if write:
            os.fdatasync(handle)
        return moved / (time.perf_counter() - started)


def _barrier(path: Path, seconds: float, *, direct: bool) -> float:
    """Return the median time in which 4 KiB in the middle of a file become durable."""
    flags = os.O_WRONLY | (os.O_DIRECT if direct else 0)
    times: list[float] = []
    with _opened(path, flags) as handle, mmap.mmap(-1, 4096) as block:
        while not times or sum(times) < seconds:
            started = time.perf_counter()
            os.pwrite(handle, block, 4096 * (len(times) % 64))
            os.fdatasync(handle)
            times.append(time.perf_counter() - started)
    return statistics.median(times)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    handle = os.open(path, flags)
    try:
        yield handle
    finally:
        os.close(handle)

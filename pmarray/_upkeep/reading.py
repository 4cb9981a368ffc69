"""How fast a device gives a file by how many requests, of which size: for ``pmarray doctor``."""

from __future__ import annotations

import mmap
import os
import time
from functools import partial
from glob import glob
from itertools import product
from typing import NamedTuple

from pmarray._config import config
from pmarray._geometry.requests import Request
from pmarray._sizes import format_bytes
from pmarray._system import osops
from pmarray._system.crew import readers
from pmarray._system.uninterrupted import Task
from pmarray.backends.files.beside import SideReads

__all__ = ["describe_reads"]

_COUNTS = (1, 2, 4, 8, 16)
_SIZES = (256 << 10, 1 << 20, 4 << 20)
_TRIAL_BYTES = 64 << 20
_NEARLY = 0.95


class _Trial(NamedTuple):
    requests: int
    request_bytes: int
    bytes_per_second: float


def describe_reads(place: str) -> str:
    """Read parts of the largest data file of a directory, and say what is fastest.

    What is read leaves the system's cache; nothing else is changed. The fewest and smallest
    requests count as fastest that are nearly so.
    """
    files = [place] if os.path.isfile(place) else glob(os.path.join(place, "data", "*"))
    file = max(files, key=os.path.getsize, default=None)
    if file is None or os.path.getsize(file) < _TRIAL_BYTES:
        return f"not measured: an array of {format_bytes(_TRIAL_BYTES)} or more is needed there"
    trials = [_measure(file, i, *pair) for i, pair in enumerate(product(_COUNTS, _SIZES))]
    most = max(trial.bytes_per_second for trial in trials)
    best = next(one for one in trials if one.bytes_per_second >= _NEARLY * most)
    alone = max(one.bytes_per_second for one in trials if one.requests == 1)
    return (
        f"{_rate(best.bytes_per_second)} by {best.requests} requests of "
        f"{format_bytes(best.request_bytes)} at a time, {_rate(alone)} by one: "
        f"pmarray.config.set(read_requests={best.requests}, request_bytes={best.request_bytes})"
    )


def _measure(file: str, number: int, requests: int, request_bytes: int) -> _Trial:
    whole = os.path.getsize(file)
    start = number * _TRIAL_BYTES % (whole - whole % _TRIAL_BYTES)
    fd = osops.open_file(file)
    try:
        reads = SideReads(fd, file, 0)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, start, _TRIAL_BYTES, os.POSIX_FADV_DONTNEED)
    finally:
        osops.close(fd)
    buffer = memoryview(mmap.mmap(-1, _TRIAL_BYTES))
    tasks = []
    for place in range(0, _TRIAL_BYTES, request_bytes):
        stop = start + place + request_bytes
        request = Request(start + place, stop, stop, place)
        out = buffer[place : place + request_bytes]
        tasks.append(Task(partial(reads.read, request, out, direct=True)))
    with config.set(read_requests=requests):
        began = time.perf_counter()
        for task in tasks:
            readers.start(task)
        for task in tasks:
            task.wait()
        seconds = time.perf_counter() - began
    for task in tasks:
        task.result()
    return _Trial(requests, request_bytes, _TRIAL_BYTES / seconds)


def _rate(bytes_per_second: float) -> str:
    return f"{format_bytes(round(bytes_per_second))}/s"

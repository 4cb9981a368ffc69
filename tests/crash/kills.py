"""Real processes, killed with SIGKILL at random instants."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pmarray
from pmarray.testing import State, Workload
from tests.crash.scenarios import Place

__all__ = ["kill_once"]

_WRITER = """
import sys, pmarray
from pmarray.testing import Workload
from tests.persistent import pretend_dax, pretend_devices
url, seed, length, begin, wait = sys.argv[1], *map(int, sys.argv[2:6])
workload = Workload(seed, length, chunks=eval(sys.argv[6]))
cache = eval(sys.argv[7])
print("ready", flush=True)
with pretend_dax(), pretend_devices(1 << 16), pmarray.open_group(url, cache=cache) as group:
    for i in range(begin, length):
        with group.transaction(wait=bool(wait)):
            workload.apply(i, group)
        print(i + 1, flush=True)
"""


def kill_once(
    place: Place,
    path: Path,
    workload: Workload,
    seed: int,
    begin: int,
    rng: random.Random | None,
    *,
    wait: bool,
) -> tuple[int, str]:
    """Run the workload from transaction `begin` on in a process, and kill it unless `rng` is None.

    Return how many transactions are there afterwards, and what is wrong with them, if anything.
    """
    length = len(workload.transactions)
    url = place.url(path)
    numbers = map(str, (seed, length, begin, int(wait)))
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, url, *numbers, repr(workload.chunks), repr(place.cache)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    with writer.stdout as output:
        if output.readline() != "ready\n":
            writer.wait()
            return begin, "the writer did not start"
        if rng is not None:
            time.sleep(rng.uniform(0, 0.15))
            writer.send_signal(signal.SIGKILL)
        printed = output.read().split()
    code = writer.wait()
    if code not in (0, -signal.SIGKILL):
        return begin, f"the writer failed with status {code}"
    acknowledged = int(printed[-1]) if printed else begin
    with place.surroundings():
        with pmarray.open_group(url, mode="a") as group:
            group._session.recover()
            seen = State.of_group(group)
        with pmarray.open_group(url, mode="r") as reader:
            if State.of_group(reader) != seen:
                return begin, "a reader sees something else than the writer that recovered"
    # The attribute tells which state it claims to be; it must be just that one.
    found = int(dict(seen.attrs).get("step", 0))
    if seen != workload.states[found]:
        return begin, f"not the state after transaction {found}"
    # A commit that was waited for is there, and at most the one after it was under way. Of
    # pipelined commits a suffix may be missing.
    least = acknowledged if wait else begin
    if not least <= found <= acknowledged + 1:
        return begin, f"transaction {found} is the last, {least} to {acknowledged + 1} may be"
    return found, ""

"""kill -9 in the middle of work: what is there afterwards is a state that was committed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pmarray
from pmarray.testing import State, Workload

_WRITER = """
import sys, pmarray
from pmarray.testing import Workload
url, seed, length, begin, wait = sys.argv[1], *map(int, sys.argv[2:6])
workload = Workload(seed, length)
print("ready", flush=True)
with pmarray.open_group(url, cache=16384) as group:
    for i in range(begin, length):
        with group.transaction(wait=bool(wait)):
            workload.apply(i, group)
        print(i + 1, flush=True)
"""


@pytest.mark.parametrize("wait", [True, False], ids=["durable", "pipelined"])
def test_a_killed_writer_leaves_a_committed_state(tmp_path: Path, wait: bool) -> None:
    """Killed at random instants, resumed each time by another process, to the end."""
    seed, length = 7, 250
    workload = Workload(seed, length)
    rng = random.Random(seed)
    url = f"memmap:{tmp_path}/g"
    reached = kills = 0
    while reached < length:
        writer = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _WRITER,
                url,
                str(seed),
                str(length),
                str(reached),
                str(int(wait)),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        if kills < 10:
            time.sleep(rng.uniform(0, 0.15))
            writer.send_signal(signal.SIGKILL)
            kills += 1
        printed = writer.stdout.read().split()
        writer.stdout.close()
        assert writer.wait() in (0, -signal.SIGKILL)
        acknowledged = int(printed[-1]) if printed else reached
        with pmarray.open_group(url, mode="a") as group:
            seen = State.of_group(group)
        with pmarray.open_group(url, mode="r") as reader:
            assert State.of_group(reader) == seen
        # The transaction number tells which state it claims to be; the state must be just that.
        found = dict(seen.attrs).get("step", 0)
        assert isinstance(found, int)
        assert seen == workload.states[found]
        # A commit that was waited for is there, and at most the one after it was under way. Of
        # pipelined commits a suffix may be missing.
        assert found <= acknowledged + 1
        assert found >= (acknowledged if wait else reached)
        reached = found
    assert kills == 10
    assert not [finding for finding in pmarray.verify(url) if finding.damaged]


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    program = (
        f"import pmarray, time; g = pmarray.open_group({str(tmp_path / 'g')!r});"
        "g.create('x', (3,)); print('locked', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    with pmarray.open_group(tmp_path / "g") as group:
        with pytest.raises(pmarray.errors.GroupLockedError, match=str(holder.pid)):
            group.create("y", (3,))
        os.kill(holder.pid, signal.SIGKILL)
        holder.stdout.close()
        holder.wait()
        group.create("y", (3,))

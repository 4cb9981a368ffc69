"""kill -9 in the middle of work: what is there afterwards is a state that was committed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pmarray
from pmarray.testing import Workload

from .kills import kill_once
from .scenarios import BLOCKS, COLUMNS, DEVICE, MEMMAP, SHELF, Place


@pytest.mark.parametrize(
    ("place", "length", "kills", "wait"),
    [
        (MEMMAP, 120, 4, True),
        (MEMMAP, 120, 4, False),
        (COLUMNS, 40, 3, True),
        (BLOCKS, 40, 3, False),
        (SHELF, 40, 2, True),
        (DEVICE, 40, 2, False),
    ],
    ids=str,
)
def test_a_killed_writer_leaves_a_committed_state(
    tmp_path: Path, place: Place, length: int, kills: int, wait: bool
) -> None:
    """Killed at random instants, gone on with each time by another process, to the end."""
    seed = 7
    workload = Workload(seed, length, chunks=place.chunks)
    rng = random.Random(seed)
    place.prepare(tmp_path)
    reached = 0
    for kill in range(kills + 1):
        reached, wrong = kill_once(
            place, tmp_path, workload, seed, reached, rng if kill < kills else None, wait=wait
        )
        assert not wrong
    assert reached == length
    place.check_closed(tmp_path, workload.states[length])
    with place.surroundings():
        assert not [finding for finding in pmarray.verify(place.url(tmp_path)) if finding.damaged]


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

"""The rig for other libraries sees what they do, and judges it rightly."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.crash.events import Barrier, DirectoryBarrier, Entries, Resize, Write
from tests.crash.peers.campaign import MODELS, as_on_ext4, cut_power, kill, record
from tests.crash.peers.filesystem import FileSystem, mounted, why_not
from tests.crash.peers.judge import outcome
from tests.crash.peers.programs import PEERS, WORKLOADS, states

_REASON = why_not()
needs_fuse = pytest.mark.skipif(_REASON is not None, reason=_REASON or "")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mounted"
    path.mkdir()
    yield path
    assert not os.path.ismount(path)


def test_each_outcome_has_its_word() -> None:
    expected = states("overwrite", 3)
    assert outcome(expected[2], expected, 2, 3) == "whole"
    assert outcome(expected[3], expected, 2, 3) == "whole"
    assert outcome(expected[1], expected, 2, 3) == "lost"
    assert outcome(None, expected, 2, 3) == "unreadable"
    mixed = expected[2].copy()
    column = next(i for i in range(6) if (expected[2][i] != expected[3][i]).any())
    mixed[column, 7:] = expected[3][column, 7:]
    assert outcome(mixed, expected, 2, 3) == "torn"
    assert outcome(mixed, expected, 2, 2) == "lost"
    mixed[column, 0] = 0
    assert outcome(mixed, expected, 2, 3) == "lost"
    assert outcome(expected[2][:-1], expected, 2, 3) == "lost"


def test_a_column_without_its_data_is_torn_before_the_promise_and_lost_after() -> None:
    expected = states("append", 2)
    found = expected[2].copy()
    found[-1] = 0
    assert outcome(found, expected, 1, 2) == "torn"
    assert outcome(found, expected, 2, 2) == "lost"


@needs_fuse
def test_the_kernel_s_calls_are_noted_in_their_order(place: Path) -> None:
    program = f"""
import mmap, os
os.chdir({str(place)!r})
fd = os.open("a", os.O_CREAT | os.O_RDWR)
os.pwrite(fd, b"x" * 4096, 0)
os.fsync(fd)
os.ftruncate(fd, 8192)
m = mmap.mmap(fd, 8192)
m[4096:4100] = b"page"
m.flush()
m.close()
os.mkdir("d")
os.rename("a", "b")
os.close(fd)
os.fsync(os.open(".", os.O_RDONLY))
"""
    system = FileSystem()
    with mounted(system, place):
        subprocess.run([sys.executable, "-c", program], check=True)
    system.check()
    kinds = [type(event) for event in system.events]
    assert kinds == [
        Entries, Write, Barrier, Resize, Write, Barrier, Entries, Entries, DirectoryBarrier,
    ]  # fmt: skip
    stored = system.events[4]
    assert isinstance(stored, Write)
    assert (stored.offset, stored.data[:4]) == (4096, b"page")
    assert [path for path, _, _ in system.newest().tree] == ["b", "d"]


@needs_fuse
@pytest.mark.parametrize("workload", WORKLOADS)
def test_pmarray_is_found_whole(workload: str) -> None:
    for model in MODELS.values():
        tally = cut_power("pmarray", workload, model, seed=1, steps=2, limit=16, samples=8)
        assert set(tally.counts) == {"whole"}, tally.examples
        assert tally.counts["whole"] > 20


@needs_fuse
def test_the_rig_sees_what_a_flush_without_fsync_loses() -> None:
    pytest.importorskip("h5py")
    tally = cut_power("h5py", "overwrite", MODELS["ext4"], seed=1, steps=2, limit=8, samples=4)
    assert tally.counts["lost"] > 0
    synced = cut_power(
        "h5py, fsync", "overwrite", MODELS["ext4"], seed=1, steps=2, limit=8, samples=4
    )
    assert synced.counts["whole"] > 0
    assert synced.counts["lost"] == 0


@needs_fuse
def test_ext4_keeps_what_posix_does_not_promise() -> None:
    disk, events = record("zarr-python", "overwrite", 1)
    assert not any(isinstance(event, Barrier) for event in events)
    # Each chunk is renamed over the one before: its data are there before it is.
    assert sum(isinstance(event, Barrier) for event in as_on_ext4(disk, events)) == 2
    counts = [
        cut_power("zarr-python", "overwrite", model, seed=1, steps=1, limit=64, samples=8).counts
        for model in (MODELS["ext4"], MODELS["POSIX"])
    ]
    assert counts[0]["unreadable"] == 0
    assert counts[1]["unreadable"] > 0


@pytest.mark.parametrize("name", PEERS)
def test_a_program_that_is_not_killed_leaves_its_last_state(name: str, tmp_path: Path) -> None:
    peer = PEERS[name]
    pytest.importorskip(peer.package)
    expected = states("append", 2)
    peer.create(str(tmp_path), expected[0])
    with peer.session(str(tmp_path)) as step:
        for i in (1, 2):
            step({5 + i: expected[i][5 + i]})
    assert np.array_equal(peer.read(str(tmp_path)), expected[2])


def test_a_killed_pmarray_is_found_whole() -> None:
    tally = kill("pmarray", "overwrite", seed=1, kills=5)
    assert tally.counts == {"whole": 5}, tally.examples

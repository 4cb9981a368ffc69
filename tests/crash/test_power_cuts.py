"""The power fails after every system call, and what is left is a state that may be."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pmarray import _osops
from pmarray.testing import Workload

from .disk import Disk, Event, Recorder
from .programs import PROGRAMS
from .rig import Outcome, record, scratch, survey

# Barriers whose absence no cut can show, with the reason.
_UNSEEN = {
    # A rollback's images were made durable before the data were touched; only an I/O error half-way
    # through journalling leaves some that were not, and putting those back changes nothing.
    "sync in _commits.py:roll_back < group.py:_roll_back",
}


def _survey(name: str, seed: int, *, per_point: int = 40, most: int = 900) -> Outcome:
    workload = Workload(seed, 6)
    with scratch() as place:
        events = record(PROGRAMS[name](workload), place)
        return survey(events, workload, place, seed=seed, per_point=per_point, most_images=most)


def test_twenty_thousand_power_cuts() -> None:
    """Random transactions, waited for, pipelined, rolled back, and plain writes with `flush`."""
    total = Outcome()
    seed = 0
    while total.images + total.recoveries < 20_000 and not total.violations:
        for name in PROGRAMS:
            total += _survey(name, seed)
        seed += 1
    assert not total.violations, total.violations[0]


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_subset_of_what_is_in_doubt(name: str) -> None:
    """A short trace, and all subsets of up to twelve changes after each of its events."""
    workload = Workload(3, 2)
    with scratch() as place:
        events = record(PROGRAMS[name](workload), place)
        outcome = survey(
            events, workload, place, seed=3, per_point=2**12, most_images=10**6, again=0.0,
            spread=False,
        )  # fmt: skip
    assert outcome.images > 50
    assert not outcome.violations, outcome.violations[0]


def test_every_barrier_is_missed() -> None:
    """Each barrier is removed in turn, and some cut shows it."""
    traces: list[tuple[int, Workload, list[Event]]] = []
    with scratch() as place:
        for seed in range(4):
            for make in PROGRAMS.values():
                workload = Workload(seed, 6)
                traces.append((seed, workload, record(make(workload), place)))
        sites = {
            event.site for _, _, events in traces for event in events
            if event.kind in ("sync", "syncdir")
        } | {
            "sync in _commits.py:recover < group.py:_become_writer",
            "sync in _commits.py:_put_back < _commits.py:recover",
        }  # fmt: skip
        assert len(sites) >= 10
        for site in sorted(sites - _UNSEEN):
            recovering = "recover" in site
            for seed, workload, events in traces:
                if not recovering and all(event.site != site for event in events):
                    continue
                outcome = survey(
                    events, workload, place, seed=seed, per_point=60, most_images=600,
                    ignore=site, stop_at_violation=True, again=0.5 if recovering else 0.0,
                )  # fmt: skip
                if outcome.violations:
                    break
            else:
                pytest.fail(f"nobody noticed that this barrier was gone: {site}")


# -- the rig itself -----------------------------------------------------------------------------


def _trace(root: Path, program: str) -> Disk:
    recorder = Recorder(str(root))
    with recorder.recording() as events:
        fd = _osops.open_file(f"{root}/new", write=True, create=True)
        _osops.pwritev(fd, [memoryview(b"x" * 5000)], 0)
        if "fsync" in program:
            _osops.fdatasync(fd)
        _osops.rename(f"{root}/new", f"{root}/name")
        if "directory" in program:
            _osops.fsync_directory(str(root))
        _osops.close(fd)
    disk = Disk()
    for event in events:
        disk.advance(event)
    return disk


def test_what_is_durable_has_one_image(tmp_path: Path) -> None:
    images = list(_trace(tmp_path, "fsync, directory").images(random.Random(1), 100))
    assert [image.entries for image in images] == [{"./name": b"x" * 5000}]


def test_a_rename_without_fsync_may_name_an_empty_or_torn_file(tmp_path: Path) -> None:
    images = list(_trace(tmp_path, "directory").images(random.Random(1), 100))
    found = {bytes(image.entries["./name"]) for image in images}  # type: ignore[arg-type]
    assert {b"", b"x" * 5000} <= found
    assert any(contents not in (b"", b"x" * 5000) for contents in found)


def test_a_rename_without_a_directory_fsync_may_not_have_happened(tmp_path: Path) -> None:
    names = {frozenset(i.entries) for i in _trace(tmp_path, "fsync").images(random.Random(1), 100)}
    assert {frozenset(), frozenset({"./new"}), frozenset({"./name"})} <= names

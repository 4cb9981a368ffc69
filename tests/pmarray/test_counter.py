"""The readers' counter: it moves before anything does that a reader may be looking at."""

from __future__ import annotations

import os
import threading
from collections import Counter as Counted
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmarray
from pmarray import errors
from pmarray._system import filesystems
from pmarray._system.beneath import Below
from pmarray._system.counter import Counter
from pmarray.backends.files.memmap import MemmapBackend
from tests.persistent import pretend_dax

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/mountinfo").exists() or os.uname().machine != "x86_64",
    reason="readers ask the file system here",
)


@pytest.fixture
def stamps(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """What readers ask the file system."""
    asked: list[None] = []
    stamp = MemmapBackend.stamp

    def counted(backend: MemmapBackend) -> object:
        asked.append(None)
        return stamp(backend)

    monkeypatch.setattr(MemmapBackend, "stamp", counted)
    return asked


def _group(directory: Path) -> Any:
    group = pmarray.open_group(f"memmap:{directory}/g")
    x = group.create("x", (2000, 3), layout="col")
    with group.transaction():
        x[...] = 1
    return group


@pytest.mark.usefixtures("counting")
def test_a_reader_asks_nobody_while_nothing_moves(tmp_path: Path, stamps: list[None]) -> None:
    group = _group(tmp_path)
    with group, pmarray.open(f"memmap:{tmp_path}/g#x", mode="r") as x:
        assert x[5].tolist() == [1, 1, 1]
        stamps.clear()
        for i in range(100):
            assert x[i, 1] == 1
            assert x[np.int64(i), np.int32(2)] == 1
            assert x[i].tolist() == [1, 1, 1]
            assert x[:, 1].sum() == 2000
        assert not stamps
        # An append changes nothing that the reader may be looking at; an overwriting does.
        with group.transaction():
            group["x"][7] = 2
        for index, mean in ((np.s_[7], 1), (np.s_[7, 1], 1), (np.s_[:, 2], 1)):
            assert np.mean(x[index]) == mean
        assert stamps
        x.group.refresh()
        assert x[7].tolist() == [2, 2, 2]
        assert x[7, 0] == 2


@pytest.mark.usefixtures("counting")
def test_a_reader_of_a_lock_file_that_was_removed_is_told(tmp_path: Path) -> None:
    group = _group(tmp_path)
    with pmarray.open(f"memmap:{tmp_path}/g#x", mode="r") as x:
        assert x[5, 1] == 1
        group.close()
        (tmp_path / "g" / "lock").unlink()
        with pmarray.open_group(f"memmap:{tmp_path}/g") as again:
            block = again.transaction()
            block.__enter__()
            again["x"][...] = 2
            again._session.cache.flush()  # spills: the file has the new values, the journal the old
            assert x[5, 1] == 1
            assert x[5].tolist() == [1, 1, 1]
            again.rollback()
            assert x[5, 1] == 1


@pytest.mark.usefixtures("counting")
def test_it_is_never_set_back_and_moves_for_each_writer(tmp_path: Path) -> None:
    _group(tmp_path).close()
    path = Below(str(tmp_path / "g")) / "lock"
    seen = [Counter(path).value]
    look = Counter(path)
    for i in range(3):
        with pmarray.open(f"memmap:{tmp_path}/g#x", mode="r+") as x:
            x[0, 0] = i
        seen.append(look.value)
    assert seen == sorted(set(seen))
    assert not look.is_still(seen[0])
    assert look.is_still(seen[-1])
    assert Counter(path).value == seen[-1]


def test_where_it_cannot_be_relied_on_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stamps: list[None]
) -> None:
    monkeypatch.setattr(filesystems, "_LOCAL", set[bytes]())
    with pmarray.open_group(f"memmap:{tmp_path}/g") as group:
        x = group.create("x", (2000, 3))
        with group.transaction():
            x[...] = 1
        with pmarray.open(f"memmap:{tmp_path}/g#x", mode="r") as reader:
            stamps.clear()
            assert reader[5, 1] == 1
            assert stamps
            with group.transaction():
                x[...] = 2
            assert reader[5, 1] == 1


@pytest.mark.usefixtures("counting")
def test_a_counter_that_cannot_move_stops_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pmarray._system import osops

    group = _group(tmp_path)
    with pmarray.open(f"memmap:{tmp_path}/g#x", mode="r") as reader:
        assert reader[5].tolist() == [1, 1, 1]

        def fails(fd: int, value: int, offset: int) -> None:
            raise OSError(5, os.strerror(5))

        with monkeypatch.context() as patch:
            patch.setattr(osops, "count", fails)
            with pytest.raises(errors.PMArrayError), group.transaction():
                group["x"][...] = 2
        assert reader[5].tolist() == [1, 1, 1]
    try:
        group.close()
    except errors.PMArrayError:
        pass
    with pmarray.open(f"memmap:{tmp_path}/g#x", mode="r") as reader:
        assert reader[:, 1].tolist() == [1] * 2000


@pytest.mark.parametrize("kind", ["memmap", "shelf"])
def test_short_reads_are_of_one_commit_at_full_speed(kind: str, tmp_path: Path) -> None:
    """One thread commits and spills, others read rows and items, which go through a mapping."""
    url = f"{kind}:{tmp_path}/g"
    stop = threading.Event()
    wrong: list[object] = []
    reads = Counted[str]()

    def read() -> None:
        rng = np.random.default_rng(0)
        with pmarray.open_group(url, mode="r") as reader:
            while not stop.is_set():
                try:
                    reader.refresh()
                    step = reader.attrs["step"]
                    for _ in range(5):
                        i = int(rng.integers(20_000))
                        j = int(rng.integers(3))
                        found = {*reader["x"][i].tolist(), reader["x"][i, j]}
                        found |= set(reader["x"][[i, 0], [j, 1]].tolist())
                        if found != {step}:
                            wrong.append((found, step))
                        reads["whole"] += 1
                except errors.SnapshotExpiredError:
                    reads["expired"] += 1
                except BaseException as error:
                    wrong.append(error)
                    return

    with pretend_dax(), pmarray.open_group(url, cache="64 KiB") as group:
        x = group.create("x", (20_000, 3), "float32", layout="col")
        group.attrs["step"] = 0
        group.flush()
        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for i in range(1, 500):
            with group.transaction(wait=i % 3 == 0):
                x[...] = i
                group.attrs["step"] = i
            if i >= 24 and reads["whole"] > 20:
                break
        group.flush()
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert reads["whole"] > 20

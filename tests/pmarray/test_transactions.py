"""Transactions: what they promise while the process lives. Crashes are in ``tests/crash``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import pmarray
from pmarray import errors
from pmarray._system import osops
from tests.persistent import persistent_place, pretend_dax
from tests.sampling import examples


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count the state-changing system calls made in the block."""
    calls: Counter[str] = Counter()

    def wrap(name: str) -> Any:
        real = getattr(osops, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("pwritev", "fdatasync", "fsync", "fsync_directory", "rename"):
            patch.setattr(osops, name, wrap(name))
        yield calls


def fail(*_: object) -> None:
    raise OSError(5, "Input/output error")


def test_an_append_is_two_barriers_and_its_data_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pmarray.open_group(tmp_path / "g") as group:
        x = group.create("x", (100_000, 0), "float32", layout="col")
        for _ in range(3):
            with group.transaction():
                x.append(np.ones(100_000))
        with counted(monkeypatch) as calls, group.transaction():
            x.append(np.ones(100_000))
        assert calls == {"pwritev": 2, "fdatasync": 2}


def test_an_overwrite_adds_one_barrier_and_its_before_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pmarray.open_group(tmp_path / "g") as group:
        x = group.create("x", (100_000, 2), "float32", layout="col")
        x[:] = 1
        with group.transaction():
            x[:, 0] = 2
        with counted(monkeypatch) as calls, group.transaction():
            x[:, 0] = 3
        assert calls == {"pwritev": 3, "fdatasync": 3}


def test_waiting_commits_share_their_barriers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, release = threading.Event(), threading.Event()
    real = osops.fdatasync

    def slow(fd: int) -> None:
        entered.set()
        release.wait(10)
        real(fd)

    with pmarray.open_group(tmp_path / "g", commit="pipelined") as group:
        x = group.create("x", (100_000, 0), "float32", layout="col")
        with group.transaction(wait=True):
            x.append(np.zeros(100_000))
        with monkeypatch.context() as patch:
            patch.setattr(osops, "fdatasync", slow)
            with group.transaction():
                x.append(np.ones(100_000))
            assert entered.wait(10)
            for i in range(2, 8):  # they queue up behind the first one's barrier
                with group.transaction():
                    x.append(np.full(100_000, i))
            patch.setattr(osops, "fdatasync", real)
            with counted(monkeypatch) as calls:
                release.set()
                group.flush()
        # Two for all six; the flush adds the header's, and the metadata file's own.
        assert calls["fdatasync"] <= 2 + 1 + 1
        np.testing.assert_array_equal(x[0], np.arange(8))


def test_nothing_is_nested_and_nothing_is_flushed_inside(tmp_path: Path) -> None:
    with pmarray.open_group(tmp_path / "g") as group:
        x = group.create("x", (3,))
        with group.transaction():
            with pytest.raises(errors.TransactionError, match="do not nest"), x.transaction():
                pass
            with pytest.raises(errors.TransactionError, match="flush"):
                group.flush()
        with x.writing(slice(None)) as out, pytest.raises(errors.LoanError, match="begin"):
            out[:] = 1
            group.transaction().__enter__()


def test_a_commit_with_an_open_loan_is_refused_and_rolled_back(tmp_path: Path) -> None:
    with pmarray.open_group(tmp_path / "g") as group:
        x = group.create("x", (3,))
        loan = x.writing(slice(None))
        with pytest.raises(errors.LoanError, match="commit"), group.transaction():
            loan.__enter__()[:] = 5
        with pytest.raises(errors.LoanError, match="has ended"):
            loan.__exit__(None, None, None)
        np.testing.assert_array_equal(x[:], 0)


def test_a_transaction_may_be_larger_than_the_cache(tmp_path: Path) -> None:
    model = np.arange(300_000, dtype="float32").reshape(1000, 300)
    with pmarray.open_group(tmp_path / "g", cache="64 KiB") as group:
        x = group.create("x", (1000, 300), "float32", layout="col")
        x[:] = model
        group.flush()
        reader = pmarray.open_group(tmp_path / "g", mode="r")
        with pytest.raises(ZeroDivisionError), group.transaction():
            x[:] = -1
            x.append(np.zeros((1000, 50)))
            1 / 0  # noqa: B018
        np.testing.assert_array_equal(x[:], model)
        with group.transaction():
            x[:] = -1
        np.testing.assert_array_equal(x[:], -1)
        assert group.cache_bytes <= 64 * 1024
    # Nothing has retired the journal, so the reader is still where it was.
    np.testing.assert_array_equal(reader["x"][:], model)
    reader.refresh()
    np.testing.assert_array_equal(reader["x"][:], -1)
    reader.close()


@pytest.mark.parametrize("scheme", ["memmap", "zarr"])
def test_a_reader_comes_while_the_writer_leaves(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal is removed when the reader has seen that there is one."""
    url = f"{scheme}:{tmp_path}/g"
    writer = pmarray.open_group(url)
    with writer.transaction():
        writer.create("x", (1000,))[:] = 1
    with writer.transaction():
        writer["x"][:] = 2
    real = osops.open_file

    def opened(path: str, **options: bool) -> int:
        if os.path.basename(path) == "journal" and not writer.closed:
            monkeypatch.setattr(osops, "open_file", real)
            writer.close()
        return real(path, **options)

    monkeypatch.setattr(osops, "open_file", opened)
    with pmarray.open_group(url, mode="r") as reader:
        assert writer.closed
        np.testing.assert_array_equal(reader["x"][:], 2)


def test_a_snapshot_expires_when_the_journal_is_retired(tmp_path: Path) -> None:
    with pmarray.open_group(tmp_path / "g") as group:
        x = group.create("x", (1000,))
        group.flush()
        with pmarray.open_group(tmp_path / "g", mode="r") as reader:
            with group.transaction():
                x[:] = 1
                group.attrs["step"] = 1
            np.testing.assert_array_equal(reader["x"][:], 0)
            group.flush()
            with pytest.raises(errors.SnapshotExpiredError, match="refresh"):
                reader["x"][:]
            reader.refresh()
            np.testing.assert_array_equal(reader["x"][:], 1)


def test_a_reader_follows_a_journal_that_grows(tmp_path: Path) -> None:
    with pmarray.open_group(tmp_path / "g", cache="1 MiB") as group:
        x = group.create("x", (8 << 20,), "int8")
        x[:] = 1
        with group.transaction():
            x[0] = 1  # makes a journal, which the reader finds at its first size
        with pmarray.open_group(tmp_path / "g", mode="r") as reader:
            np.testing.assert_array_equal(reader["x"][:2], 1)
            before = (tmp_path / "g/journal").stat().st_size
            with group.transaction():
                x[:] = 2
                assert (tmp_path / "g/journal").stat().st_size > before
                assert np.unique(reader["x"][:]) == 1
            assert np.unique(reader["x"][:]) == 1


def test_a_reader_stays_at_its_commit_while_a_writer_works(tmp_path: Path) -> None:
    with pmarray.open_group(tmp_path / "g", cache="64 KiB") as group:
        x = group.create("x", (40_000, 2), "float32", layout="col")
        with group.transaction():
            x[:] = 1
            group.attrs["step"] = 1
        with pmarray.open_group(tmp_path / "g", mode="r") as reader:
            with group.transaction():
                x[:] = 2  # spills: the file changes before the commit
                x.append(np.full(40_000, 2))
                group.attrs["step"] = 2
                np.testing.assert_array_equal(reader["x"][:], 1)
            np.testing.assert_array_equal(reader["x"][:], 1)
            assert reader["x"].shape == (40_000, 2)
            assert reader.attrs["step"] == 1
            reader.refresh()
            np.testing.assert_array_equal(reader["x"][:], np.full((40_000, 3), 2))
            assert reader.attrs["step"] == 2


@pytest.mark.parametrize("kind", ["memmap", "shelf"])
def test_a_reader_stays_at_its_commit_while_lines_are_cut_and_grow_again(
    tmp_path: Path, kind: str
) -> None:
    """Without a flush in between it is not told to go on: it goes on seeing its commit."""
    with pretend_dax(), pmarray.open_group(f"{kind}:{tmp_path}/g") as group:
        x = group.create("x", (6, 5000))
        x[:] = 1
        with group.transaction():
            group.attrs["step"] = 1
        group.flush()
        with pmarray.open_group(f"{kind}:{tmp_path}/g", mode="r") as reader:
            with group.transaction():
                x.resize((1, 5000))
            with group.transaction():
                x.append(np.full((3, 5000), 2))
            np.testing.assert_array_equal(reader["x"][:], np.ones((6, 5000)))


READER_STEPS = st.sampled_from(["append", "cut", "fill", "flush", "look"])


@pytest.mark.parametrize("kind", ["memmap", "shelf", "zarr"])
@examples(0.6)
@given(st.lists(st.tuples(READER_STEPS, st.integers(1, 6)), max_size=16))
@example([("look", 0), ("cut", 1), ("append", 3)])
@example([("append", 2), ("look", 0), ("cut", 6), ("flush", 0), ("append", 2)])
def test_readers_see_their_commits_or_are_told(kind: str, steps: list[tuple[str, int]]) -> None:
    """Whatever lines are cut, grown again and overwritten, flushed in between or not."""
    line = 4096
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        stack.enter_context(pretend_dax())
        url = f"{kind}:{directory}/g"
        options: dict[str, Any] = {"chunks": (2, line)} if kind == "zarr" else {}
        group = stack.enter_context(pmarray.open_group(url))
        x = group.create("x", (6, line), "uint8", **options)
        readers: list[tuple[Any, list[int]]] = []
        committed = [1] * 6
        with group.transaction():
            x[...] = 1
        for value, (what, count) in enumerate([*steps, ("end", 0)], 2):
            if what == "flush":
                group.flush()
            elif what == "look":
                reader = stack.enter_context(pmarray.open_group(url, mode="r", cache=0))
                readers.append((reader["x"], committed))
            elif what != "end":
                with group.transaction():
                    if what == "append":
                        committed = committed + [value] * count
                        x.append(np.full((count, line), value))
                    elif what == "cut":
                        committed = committed[:count]
                        x.resize((len(committed), line))
                    else:
                        committed = [value] * len(committed)
                        x[...] = value
            for array, expected in readers:
                with suppress(errors.SnapshotExpiredError):
                    found = array[...]
                    np.testing.assert_array_equal(found, np.repeat([expected], line, 0).T)


NAME_STEPS = st.sampled_from(["write", "item", "append", "cut", "delete", "create"])
SHAPES = st.sampled_from([(3, 4), (9, 4), (1, 1), (5, 700)])


@pytest.mark.parametrize("kind", ["dram", "memmap", "shelf", "zarr", "icechunk"])
@examples(0.8)
@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(NAME_STEPS, SHAPES, st.booleans()), max_size=5),
            st.sampled_from(["commit", "commit", "roll back", "loose"]),
        ),
        max_size=4,
    )
)
@example([([("item", (1, 1), True), ("delete", (1, 1), True), ("create", (1, 1), True)], "commit")])
@example(
    [([("delete", (1, 1), True), ("create", (3, 4), False), ("write", (1, 1), True)], "roll back")]
)
def test_arrays_that_take_turns_under_one_name(
    kind: str, transactions: list[tuple[list[tuple[str, tuple[int, int], bool]], str]]
) -> None:
    """Created, written to and deleted in any order, within a transaction and without."""
    with tempfile.TemporaryDirectory() as directory, pretend_dax():
        url = f"dram:{directory}" if kind == "dram" else f"{kind}:{directory}/g"
        group = pmarray.open_group(url, cache="64 KiB")
        model: np.ndarray[Any, Any] | None = None
        value = 0
        for steps, end in [([("create", (9, 4), True)], "commit"), *transactions]:
            before = None if model is None else model.copy()
            with ExitStack() as stack:
                if end != "loose":
                    stack.enter_context(suppress(ZeroDivisionError))
                    stack.enter_context(group.transaction())
                for what, shape, col in steps:
                    value += 1
                    if what == "create" and model is None:
                        model = np.zeros(shape, "int16")
                        group.create("x", shape, "int16", layout="col" if col else "row")
                    elif model is not None and what == "delete":
                        model = None
                        del group["x"]
                    elif model is not None and what == "append":
                        line = group["x"]._layout.slow_axis
                        size = (shape[0], model.shape[1]) if line == 0 else (len(model), shape[0])
                        new = np.full(size, value)
                        model = np.concatenate([model, new], axis=line).astype("int16")
                        group["x"].append(new, axis=line)
                    elif model is not None and what == "cut":
                        line = group["x"]._layout.slow_axis
                        rows = min(shape[0], model.shape[line])
                        model = model.take(range(rows), line)
                        group["x"].resize(model.shape)
                    elif model is not None and what in ("write", "item"):
                        index: Any = (0, -1) if what == "item" else slice(None)
                        model[index] = value
                        group["x"][index] = value
                if end == "roll back":
                    model = before
                    1 / 0  # noqa: B018
            found = group["x"][...] if "x" in group else None
            np.testing.assert_equal(found, model)
        group.close()
        with pmarray.open_group(url, mode="r") as again:
            np.testing.assert_equal(again["x"][...] if "x" in again else None, model)


def test_a_reader_never_sees_half_of_a_commit(tmp_path: Path) -> None:
    """One thread commits, several handles read: all items of a read are of one commit."""
    url = f"memmap:{tmp_path}/g"
    stop = threading.Event()
    wrong: list[str] = []
    reads = Counter[str]()

    def read() -> None:
        with pmarray.open_group(url, mode="r", cache=0) as reader:
            while not stop.is_set():
                try:
                    reader.refresh()
                    found = set(np.unique(reader["x"][:])) | set(np.unique(reader["y"][:]))
                except errors.SnapshotExpiredError:
                    reads["expired"] += 1
                    continue
                reads["whole"] += 1
                if len(found) != 1:
                    wrong.append(str(found))

    with pmarray.open_group(url, cache="64 KiB") as group:
        x = group.create("x", (20_000, 3), "float32", layout="col")
        y = group.create("y", (5000,), "float32")
        group.flush()
        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for i in range(60):
            with group.transaction(wait=i % 3 == 0):
                x[:] = i
                y[:] = i
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert reads["whole"] > 0


def test_a_failed_data_barrier_poisons_and_reopening_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = pmarray.open_group(tmp_path / "g")
    x = group.create("x", (100_000, 1), "float32", layout="col")
    with group.transaction():
        x[:] = 1
    with monkeypatch.context() as patch:
        patch.setattr(osops, "fdatasync", fail)
        with pytest.raises(errors.PoisonedError), group.transaction():
            x[:] = 2
    for use in (lambda: x[0, 0], group.flush, group.transaction().__enter__):
        with pytest.raises(errors.PoisonedError):
            use()
    group.close()
    with pmarray.open_group(tmp_path / "g", mode="r") as reader:
        np.testing.assert_array_equal(reader["x"][:], 1)
    with pmarray.open_group(tmp_path / "g") as again:
        np.testing.assert_array_equal(again["x"][:], 1)
        with again.transaction():
            again["x"][:] = 3
    assert not pmarray.verify(tmp_path / "g")


@pytest.mark.parametrize("failed_before", [False, True])
def test_a_failed_pipelined_commit_surfaces_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed_before: bool
) -> None:
    group = pmarray.open_group(tmp_path / "g", commit="pipelined")
    x = group.create("x", (100_000, 1), "float32", layout="col")
    with group.transaction(wait=True):
        x[:] = 1
    with monkeypatch.context() as patch:
        patch.setattr(osops, "fdatasync", fail)
        with group.transaction():
            x[:] = 2
        while failed_before and group._session.cache.health.poison is None:
            time.sleep(0.001)
        with pytest.raises(errors.PoisonedError):
            group.flush()
    with pytest.raises(errors.PoisonedError):
        x[:] = 3
    group.close()  # has nothing more to tell
    with pmarray.open_group(tmp_path / "g", mode="r") as reader:
        np.testing.assert_array_equal(reader["x"][:], 1)


def test_a_full_disk_before_the_data_is_an_ordinary_rollback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pmarray.open_group(tmp_path / "g") as group:
        x = group.create("x", (100_000, 1), "float32", layout="col")
        with group.transaction():
            x[:] = 1

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(osops, "fallocate", full)
            with pytest.raises(errors.StorageError, match="No space") as caught:
                with group.transaction():
                    x[:] = 2
                    x.append(np.zeros((100_000, 900)))
            assert caught.value.errno == 28
        np.testing.assert_array_equal(x[:], 1)
        with group.transaction():
            x[:] = 3
        np.testing.assert_array_equal(x[:], 3)


@pytest.mark.parametrize("kind", ["dram", "memmap", "shelf", "device"])
def test_everything_in_a_group_rolls_back(tmp_path: Path, kind: str) -> None:
    with ExitStack() as stack:
        url = {"dram": "dram:", "memmap": f"memmap:{tmp_path}/g"}.get(kind)
        url = url or stack.enter_context(persistent_place(kind))
        group = stack.enter_context(pmarray.open_group(url))
        kept = group.create("kept", (4, 2), layout="col", fill_value=7)
        gone = group.create("gone", (3,))
        moved = group.create("moved", (2, 2))
        moved[:] = [[1, 2], [3, 4]]
        group.attrs["a"] = 1
        with pytest.raises(ZeroDivisionError), group.transaction():
            kept[:, 1] = 0
            kept.resize((4, 1))
            kept.resize((4, 5))
            del group["gone"]
            group.create("gone", (5,), "int8")[:] = 1
            moved.resize((2, 7))
            moved.resize((3, 7))
            group.attrs["a"] = 2
            group.attrs["b"] = 2
            1 / 0  # noqa: B018
        assert list(group) == ["gone", "kept", "moved"]
        assert dict(group.attrs) == {"a": 1}
        np.testing.assert_array_equal(kept[:], np.full((4, 2), 7.0))
        np.testing.assert_array_equal(gone[:], np.zeros(3))
        np.testing.assert_array_equal(moved[:], [[1, 2], [3, 4]])
        with group.transaction():
            moved.resize((2, 3))
        np.testing.assert_array_equal(moved[:], [[1, 2, 0], [3, 4, 0]])
    if kind == "memmap":
        assert len(os.listdir(tmp_path / "g" / "data")) == 3


def test_a_killed_writer_leaves_its_last_commit(tmp_path: Path) -> None:
    """A real process, killed in the middle of a transaction that has spilled."""
    program = f"""
import os, signal, numpy as np, pmarray
group = pmarray.open_group({str(tmp_path / "g")!r}, cache="64 KiB")
x = group.create("x", (40_000, 3), "float32", layout="col")
with group.transaction():
    x[:] = 1
with group.transaction():
    x[:] = 2
    x.append(np.zeros(40_000))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -9
    notes = pmarray.verify(tmp_path / "g")
    assert [note.damaged for note in notes] == [False] * len(notes)
    assert any("did not finish" in note.message for note in notes)
    with pmarray.open_group(tmp_path / "g", mode="r") as reader:  # recovers nothing, sees it all
        np.testing.assert_array_equal(reader["x"][:], np.ones((40_000, 3)))
        np.testing.assert_array_equal(np.asarray(reader["x"]), np.ones((40_000, 3)))
    done_recovery = pmarray.recover(tmp_path / "g")
    assert done_recovery.transaction == 1
    assert done_recovery.images > 0
    with pmarray.open_group(tmp_path / "g", mode="r") as reader:
        np.testing.assert_array_equal(reader["x"][:], np.ones((40_000, 3)))


def test_a_foreign_npy_file_has_no_transactions(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(3))
    with pmarray.open(tmp_path / "x.npy") as x:
        with pytest.raises(errors.TransactionError, match="no journal"), x.transaction():
            pass


def test_a_missing_journal_is_damage(tmp_path: Path) -> None:
    with pmarray.open(tmp_path / "g", shape=(3,)) as a, a.transaction():
        a[0] = 1
    os.unlink(tmp_path / "g" / "journal")
    assert any(finding.damaged for finding in pmarray.verify(tmp_path / "g"))
    with pytest.raises(errors.DamagedError, match="journal is missing"):
        pmarray.open(tmp_path / "g")


def no_room_for_metadata(patch: pytest.MonkeyPatch) -> None:
    real = osops.open_file

    def full(path: str, **flags: bool) -> int:
        if path.endswith("pmarray.json.new"):
            raise OSError(28, "No space left on device")
        return real(path, **flags)

    patch.setattr(osops, "open_file", full)


def no_durable_directories(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(osops, "fsync_directory", fail)


def test_a_journal_that_cannot_be_retired_takes_no_commit_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = pmarray.open_group(tmp_path / "g")
    with group.transaction():
        group.attrs["step"] = 0
    with monkeypatch.context() as patch:
        no_room_for_metadata(patch)
        for step in range(1, 700):  # more than the journal has room for at first
            with group.transaction():
                group.attrs["step"] = step
        with pmarray.open_group(tmp_path / "g", mode="r") as reader:
            assert reader.attrs["step"] == 699
        with pytest.raises(errors.StorageError, match="No space"):
            group.flush()
    assert group.attrs["step"] == 699
    group.close()
    with pmarray.open_group(tmp_path / "g", mode="r") as reader:
        assert reader.attrs["step"] == 699


def test_a_first_transaction_that_finds_no_room_leaves_the_next_one_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = pmarray.open_group(tmp_path / "g")
    with monkeypatch.context() as patch:
        no_room_for_metadata(patch)
        with pytest.raises(errors.StorageError, match="No space"), group.transaction():
            group.attrs["step"] = 1
    with group.transaction():
        group.attrs["step"] = 2
    # As another process would find it now: the writer has not been closed.
    with pmarray.open_group(tmp_path / "g", mode="r") as reader:
        assert reader.attrs["step"] == 2
    group.close()


def test_metadata_that_may_not_be_durable_poison_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the rename nobody knows which generation a power cut leaves."""
    group = pmarray.open_group(tmp_path / "g")
    with group.transaction():
        group.attrs["step"] = 1
    with monkeypatch.context() as patch:
        no_durable_directories(patch)
        with pytest.raises(errors.PoisonedError):
            group.flush()
    with pytest.raises(errors.PoisonedError):
        group.attrs["step"] = 2
    group.close()
    with pmarray.open_group(tmp_path / "g") as again:
        assert again.attrs["step"] == 1


def test_what_goes_back_to_the_checkpoint_after_a_commit_is_not_lost(tmp_path: Path) -> None:
    url = f"memmap:{tmp_path}/group"
    with pmarray.open_group(url) as group:
        array = group.create("x", (4, 1), layout="col")
        group.attrs["step"] = 0
        group.flush()
        with group.transaction():
            array.append(np.ones(4))
            group.attrs["step"] = 1
        array.resize((4, 1))
        group.attrs["step"] = 0
    with pmarray.open_group(url, mode="r") as group:
        assert group["x"].shape == (4, 1)
        assert group.attrs["step"] == 0

"""A window of commits: several become durable in one step, and nobody ever waits for it."""

from __future__ import annotations

import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pmarray
from pmarray._commits.committer import Committer
from tests.sampling import examples

LONG = 60.0


@pytest.fixture
def merged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many transactions each pass of the protocol has committed."""
    counts: list[int] = []
    commit = Committer.commit

    def counted(self: Committer, writes: Any, commits: Any) -> None:
        commit(self, writes, commits)
        counts.append(len(commits))

    monkeypatch.setattr(Committer, "commit", counted)
    return counts


def appended(group: pmarray.Group, count: int, rows: int = 10) -> None:
    x = group["x"] if "x" in group else group.create("x", (rows, 0), layout="col")
    for _ in range(count):
        with group.transaction():
            x.append(np.full(x.shape[0], x.shape[1]))


@pytest.mark.parametrize("scheme", ["memmap", "zarr"])
def test_commits_wait_for_company_and_nobody_waits_for_them(
    scratch: Path, merged: list[int], scheme: str
) -> None:
    started = time.monotonic()
    url = f"{scheme}:{scratch / 'group'}"
    with pmarray.open_group(url, commit="pipelined", commit_window=LONG) as group:
        appended(group, 5, 20_000)
        assert merged == []
        with pmarray.open_group(url, mode="r") as reader:
            assert "x" not in reader or reader["x"].shape[1] == 0
        group.flush()
        assert merged == [5]
        appended(group, 2)
        with group.transaction(wait=True):
            group.attrs["done"] = True
        assert merged == [5, 3]
        appended(group, 1)
    assert merged == [5, 3, 1]
    with pmarray.open_group(url, mode="r") as reader:
        np.testing.assert_array_equal(reader["x"][0], np.arange(8))
    assert time.monotonic() - started < LONG / 2


def test_a_window_ends_by_itself(scratch: Path, merged: list[int]) -> None:
    with pmarray.open_group(scratch / "group", commit="pipelined", commit_window=0.05) as group:
        appended(group, 1)
        for _ in range(200):
            if merged:
                break
            time.sleep(0.01)
        with pmarray.open_group(scratch / "group", mode="r") as reader:
            assert reader["x"].shape == (10, 1)


def test_a_window_ends_when_a_quarter_of_the_cache_is_queued(
    scratch: Path, merged: list[int]
) -> None:
    with pmarray.open_group(
        scratch / "group", cache="8 MiB", commit="pipelined", commit_window=LONG
    ) as group:
        appended(group, 24, 1 << 16)  # half a megabyte each
        for _ in range(200):
            if sum(merged) >= 20:
                break
            time.sleep(0.01)
        assert sum(merged) >= 20
        assert max(merged) > 1
        group.flush()
    assert sum(merged) == 24


def test_a_rollback_and_a_write_to_what_is_queued_do_not_wait_for_a_window(scratch: Path) -> None:
    started = time.monotonic()
    with pmarray.open_group(scratch / "group", commit="pipelined", commit_window=LONG) as group:
        appended(group, 2)
        with pytest.raises(ZeroDivisionError), group.transaction():
            group["x"].append(np.zeros(10))
            raise ZeroDivisionError
        assert group["x"].shape == (10, 2)
        appended(group, 1)
        with group.transaction():
            group["x"][:, 0] = 7
        with group.transaction():
            group["x"][:, 0] = 8
        np.testing.assert_array_equal(group["x"][0], [8, 1, 2])
    assert time.monotonic() - started < LONG / 2


@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
def test_what_a_window_cannot_be(scratch: Path, seconds: float) -> None:
    with pytest.raises(ValueError, match="commit_window"):
        pmarray.open_group(scratch / "group", commit_window=seconds)


@pytest.mark.parametrize("scheme", ["memmap", "zarr"])
def test_small_arrays_that_every_commit_changes_do_not_end_a_window(
    scratch: Path, merged: list[int], scheme: str
) -> None:
    url = f"{scheme}:{scratch / 'group'}"
    with pmarray.open_group(url, commit="pipelined", commit_window=LONG) as group:
        with group.transaction(wait=True):
            state = group.create("state", (100,), "uint8")
            numbers = group.create("numbers", (7, 0), "float64", layout="col")
        del merged[:]
        for step in range(40):
            with group.transaction():
                state[:] = step
                numbers.append(np.full(7, step))
            if step == 20:
                with pytest.raises(ZeroDivisionError), group.transaction():
                    state[3:5] = 200  # taken back, after what was queued
                    raise ZeroDivisionError
                assert sum(merged) == 21
        assert sum(merged) == 21
        group.flush()
        assert sum(merged) == 40
        # A few may come while the thread is still at the one before; alone, each would be one.
        assert len(merged) <= 10
    with pmarray.open_group(url, mode="r") as reader:
        np.testing.assert_array_equal(reader["state"][:], np.full(100, 39))
        np.testing.assert_array_equal(reader["numbers"][3], np.arange(40))


PIECES = st.tuples(st.integers(0, 2000), st.integers(1, 900), st.integers(0, 255))
STEPS = st.one_of(
    st.tuples(st.sampled_from(["write", "lend", "lend and fail"]), PIECES),
    st.tuples(st.sampled_from(["commit", "roll back", "flush", "wait", "reopen"]), st.none()),
)


@examples(2)
@given(
    st.sampled_from(["memmap", "zarr"]),
    st.sampled_from(["32 KiB", "1 MiB"]),
    st.sampled_from([0.002, LONG]),
    st.lists(STEPS, max_size=40),
)
def test_what_is_written_again_before_it_has_landed_is_what_was_written_last(
    scheme: str, cache: str, window: float, steps: list[tuple[str, Any]]
) -> None:
    def fresh() -> pmarray.Group:
        return pmarray.open_group(url, cache=cache, commit="pipelined", commit_window=window)

    with tempfile.TemporaryDirectory(dir=".") as directory:
        url = f"{scheme}:{directory}/group"
        group = fresh()
        group.create("x", (3000,), "uint8", chunks=(1024,) if scheme == "zarr" else "auto")[:] = 0
        committed = now = np.zeros(3000, np.uint8)
        begun = None
        for step, piece in [*steps, ("commit", None), ("reopen", None)]:
            if step in {"write", "lend", "lend and fail"}:
                start, length, value = piece
                if step != "write":  # within a chunk
                    stop = min(start + length, (start // 1024 + 1) * 1024)
                else:
                    stop = start + length
                where = slice(start, stop)
                if begun is None:
                    begun = group.transaction()
                    begun.__enter__()
                    now = committed.copy()
                if step == "write":
                    group["x"][where] = value
                elif step == "lend":
                    with group["x"].writing(where) as lent:
                        lent[:] = value
                else:
                    with suppress(ZeroDivisionError), group["x"].writing(where) as lent:
                        lent[:] = value
                        raise ZeroDivisionError
                if step != "lend and fail":
                    now[where] = value
                else:
                    begun.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
                    begun, now = None, committed
            elif step in {"commit", "roll back"}:
                if begun is not None and step == "commit":
                    begun.__exit__(None, None, None)
                    committed = now
                elif begun is not None:
                    begun.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
                    now = committed
                begun = None
            elif step == "wait":
                time.sleep(0.003)
            elif begun is None:
                group.flush()
                if step == "reopen":
                    group.close()
                    group = fresh()
            np.testing.assert_array_equal(group["x"][:], now)
        group.close()

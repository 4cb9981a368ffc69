"""A window of commits: several become durable in one step, and nobody ever waits for it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmarray
from pmarray._commits.committer import Committer

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

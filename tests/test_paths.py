"""The paths of ``docs/architecture.md``, taken: the same functions, rooms and order.

Every call from one room to another on the way is looked at as well, on whatever thread it is made.
"""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import numpy as np
import pytest

import pmarray
from pmarray._cache.writer import Writer
from pmarray._streams.reading import is_at_hand
from pmarray._system.uninterrupted import Task
from pmarray.backends.files import kept
from tests.machine import forget_files
from tests.test_architecture import DOCUMENT, PMARRAY, room

THROUGH_PROTOCOLS = {
    ("_array", "_group"),  # Home
    ("_cache", "_storage"),  # ChunkSource, and attempts
    ("_cache", "_commits"),  # Sink
    ("_commits", "_storage"),  # what a snapshot reads with
}
TASK = "_system.uninterrupted.Task."
"""Runs anybody's work."""


class Step(NamedTuple):
    """A function that the document names, and its room."""

    room: str
    name: str


class Call(NamedTuple):
    """A call of a function of ours: modules with dots, and the name in them."""

    caller: str | None
    called: str


def steps(heading: str) -> list[Step]:
    """Return what the table under a heading names."""
    section = DOCUMENT.read_text(encoding="utf-8").split(f"\n### {heading}\n")[1].split("\n#")[0]
    found = []
    for line in section.splitlines():
        cells = line.strip("|").split("|")
        if len(cells) != 3 or "`" not in line:
            continue
        rooms, names = (re.findall(r"`([^`]+)`", cell) for cell in cells[1:])
        if len(rooms) == 1:
            rooms *= len(names)
        found += [Step(*pair) for pair in zip(rooms, names, strict=True)]
    assert found
    return found


def _name(code: CodeType) -> str | None:
    path = Path(code.co_filename)
    if PMARRAY.path not in path.parents:
        return None
    module = ".".join(path.relative_to(PMARRAY.path).with_suffix("").parts)
    return f"{module}.{code.co_qualname}"


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Call]]:
    """Note the calls of this thread, of the writer's and of those that run tasks."""
    calls: list[Call] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event != "call" or (called := _name(frame.f_code)) is None:
            return
        above, caller = frame.f_back, None
        while above is not None and caller is None:
            caller, above = _name(above.f_code), above.f_back
        calls.append(Call(caller, called))

    def noting(real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            before = sys.getprofile()
            sys.setprofile(note)
            try:
                return real(*arguments)
            finally:
                sys.setprofile(before)

        return run

    with monkeypatch.context() as patched:
        for owner, name in ((Writer, "_carry_out"), (Task, "run")):
            patched.setattr(owner, name, noting(getattr(owner, name)))
        gc.collect()  # what earlier tests have left is not to be dropped in the middle of this
        gc.disable()
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            yield calls
        finally:
            sys.setprofile(before)
            gc.enable()


def assert_taken(heading: str, calls: list[Call]) -> None:
    """The functions that the document names were called, in their rooms and in this order."""
    rest = iter(calls)
    for step in steps(heading):
        for call in rest:
            if f".{call.called}".endswith(f".{step.name}") and room(call.called) == step.room:
                break
        else:
            raise AssertionError(f"{step} was not called, or not in this order")
    climbs = [
        call
        for call in calls
        if call.caller is not None
        and PMARRAY.floor(call.caller) < PMARRAY.floor(call.called)
        and (room(call.caller), room(call.called)) not in THROUGH_PROTOCOLS
        and not call.caller.startswith(TASK)
    ]
    assert climbs == []


@pytest.fixture
def group(tmp_path: Path) -> Iterator[pmarray.Group]:
    with pmarray.open_group(tmp_path / "g") as group:
        group.create("x", (1000, 4), layout="col")[:] = 1
        group.flush()
        with group.transaction():  # the journal is made by the first one
            group.attrs["x"] = 1
        yield group


LINE = np.arange(1000.0)


def test_a_write(monkeypatch: pytest.MonkeyPatch, group: pmarray.Group) -> None:
    x = group["x"]
    with recorded(monkeypatch) as calls:
        x[:, 1] = LINE
        group.flush()
    assert_taken("A write to a file", calls)


def test_an_append(monkeypatch: pytest.MonkeyPatch, group: pmarray.Group) -> None:
    x = group["x"]
    with recorded(monkeypatch) as calls:
        x.append(LINE)
    assert_taken("An append", calls)


def test_a_commit(monkeypatch: pytest.MonkeyPatch, group: pmarray.Group) -> None:
    x = group["x"]
    with recorded(monkeypatch) as calls, group.transaction():
        x[:, 1] = LINE
    assert_taken("A commit", calls)


@pytest.mark.parametrize(
    ("heading", "indices"),
    [
        ("A read from a file", [np.s_[:, 1]]),
        ("The short way of an item", [(3, 1)]),
    ],
)
def test_a_read(
    monkeypatch: pytest.MonkeyPatch, group: pmarray.Group, heading: str, indices: list[Any]
) -> None:
    with pmarray.open_group(group.url, mode="r") as reader:
        x = reader["x"]
        for index in indices:
            with recorded(monkeypatch) as calls:
                assert np.all(x[index] == 1)
        assert_taken(heading, calls)


def test_a_computation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kept, "read_ahead_nbytes", lambda device: 128 << 10)  # not far ahead
    with pmarray.open_group(tmp_path / "g") as group:
        group.create("x", (50_000, 40), layout="col")[:] = 1
        group.flush()
        np.sum(group["x"])  # what is loaded when it is first used
    with pmarray.open_group(tmp_path / "g") as group:
        group.attrs["read by"] = "a writer"  # a reader reads the first piece by a longer way
        forget_files(tmp_path)  # which a file that is mapped does not let go
        if is_at_hand(group["x"]):
            pytest.skip("this file system keeps everything in memory")
        with recorded(monkeypatch) as calls:
            assert np.sum(group["x"]) == 2_000_000
    assert_taken("A computation over a cold file", calls)


@pytest.mark.usefixtures("counting")
def test_a_computation_over_what_is_in_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pmarray.open_group(tmp_path / "g") as group:
        group.create("x", (50_000, 40), layout="col")[:] = 1
    with pmarray.open_group(tmp_path / "g", mode="r") as group:
        assert np.sum(group["x"]) == 2_000_000  # by a longer way
        with recorded(monkeypatch) as calls:
            assert np.sum(group["x"]) == 2_000_000
    assert_taken("A computation over what is in memory", calls)


@pytest.mark.usefixtures("counting")
def test_a_read_of_what_is_at_hand(monkeypatch: pytest.MonkeyPatch, group: pmarray.Group) -> None:
    test_a_read(monkeypatch, group, "What is at hand", [(3, 1)] * 3)


def test_a_read_from_zarr(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url = f"zarr:{tmp_path}/z"
    with pmarray.open(url, (1000, 4), layout="col", chunks=1, codecs=["zstd"]) as z:
        z[:] = 1
    with pmarray.open(url, mode="r") as z, recorded(monkeypatch) as calls:
        assert np.all(z[:, 2] == 1)
    assert_taken("A read from Zarr", calls)

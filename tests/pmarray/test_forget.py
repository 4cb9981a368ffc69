"""Forgotten items hold anything; all others what a model made of NumPy arrays says."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from numpy.typing import NDArray

import pmarray
from pmarray import errors
from pmarray.testing import filled
from tests.persistent import pretend_dax
from tests.sampling import examples

SEEDS = st.integers(0, 1 << 16)


class Model:
    """Items, and which of them hold something."""

    def __init__(self, items: NDArray[Any], alive: NDArray[np.bool_]) -> None:
        self.items, self.alive = items, alive

    def copy(self) -> Model:
        return Model(self.items.copy(), self.alive.copy())

    def check(self, found: NDArray[Any], index: Any = ...) -> None:
        assert found.shape == self.items[index].shape
        alive = self.alive[index]
        np.testing.assert_array_equal(found[alive], self.items[index][alive])


class Forgetful(RuleBasedStateMachine):
    """Write, forget, grow, commit, roll back, reopen; readers stay at the commit they opened at."""

    scheme = "memmap"

    @initialize(
        rows=st.sampled_from([100, 1024, 1500, 17_000]),
        columns=st.integers(0, 5),
        layout=st.sampled_from(["col", "col", "row"]),
        cache=st.sampled_from(["auto", 0, 1 << 16]),
        window=st.sampled_from([0.0, 0.01]),
    )
    def start(self, rows: int, columns: int, layout: Any, cache: Any, window: float) -> None:
        self.resources = ExitStack()
        self.resources.enter_context(pretend_dax())
        path = self.resources.enter_context(tempfile.TemporaryDirectory())
        self.url = f"{self.scheme}:{path}/g" if self.scheme != "dram" else "dram:"
        self.options = {"cache": cache, "commit_window": window}
        self.group = pmarray.open_group(self.url, **self.options)
        shape = (rows, columns) if layout == "col" else (columns, rows)
        self.slow = 1 if layout == "col" else 0
        self.array = self.group.create("x", shape, "float32", layout=layout)
        self.group.flush()
        self.model = Model(np.zeros(shape, np.float32), np.ones(shape, np.bool_))
        self.transaction: pmarray.Transaction | None = None
        self.readers: list[tuple[pmarray.Group, Model]] = []

    def draw(self, data: st.DataObject) -> tuple[slice, ...]:
        """Some lines, mostly whole ones."""
        index = []
        for axis, n in enumerate(self.model.items.shape):
            start = data.draw(st.integers(0, n))
            part = slice(start, data.draw(st.integers(start, min(n, start + 3))))
            index.append(part if axis == self.slow or data.draw(SEEDS) % 4 == 0 else slice(None))
        return tuple(index)

    def close_readers(self) -> None:
        """From ordinary writes they are not isolated."""
        while self.readers and self.transaction is None:
            self.readers.pop()[0].close()

    @rule(data=st.data(), seed=SEEDS)
    def write(self, data: st.DataObject, seed: int) -> None:
        index = self.draw(data)
        values = filled(self.model.items[index].shape, np.dtype(np.float32), seed)
        self.close_readers()
        self.array[index] = values
        self.model.items[index], self.model.alive[index] = values, True

    @precondition(lambda self: self.model.items.shape[self.slow])
    @rule(data=st.data(), seed=SEEDS)
    def lend(self, data: st.DataObject, seed: int) -> None:
        line = data.draw(st.integers(0, self.model.items.shape[self.slow] - 1))
        index: Any = (slice(None), line) if self.slow else line
        values = filled(self.model.items[index].shape, np.dtype(np.float32), seed)
        self.close_readers()
        try:
            with self.array.writing(index) as out:
                out[...] = values
        except errors.BudgetError:
            return
        self.model.items[index], self.model.alive[index] = values, True

    @precondition(lambda self: self.transaction is not None)
    @rule(data=st.data(), by_view=st.booleans())
    def forget(self, data: st.DataObject, by_view: bool) -> None:
        index = self.draw(data)
        if by_view:
            self.array.T.forget(index[::-1])
        else:
            self.array.forget(index)
        self.model.alive[index] = False

    @rule(lines=st.integers(0, 6))
    def resize(self, lines: int) -> None:
        shape = list(self.model.items.shape)
        shape[self.slow] = lines
        self.close_readers()
        self.array.resize(tuple(shape))
        new = Model(np.zeros(shape, np.float32), np.ones(shape, np.bool_))
        kept = tuple(map(slice, np.minimum(shape, self.model.items.shape)))
        new.items[kept], new.alive[kept] = self.model.items[kept], self.model.alive[kept]
        self.model = new

    @precondition(lambda self: self.transaction is None)
    @rule(wait=st.booleans())
    def begin(self, wait: bool) -> None:
        self.before = self.model.copy()
        self.transaction = self.group.transaction(wait=wait)
        self.transaction.__enter__()

    @precondition(lambda self: self.transaction is not None)
    @rule()
    def commit(self) -> None:
        transaction, self.transaction = self.transaction, None
        assert transaction is not None
        transaction.__exit__(None, None, None)

    @precondition(lambda self: self.transaction is not None)
    @rule()
    def roll_back(self) -> None:
        transaction, self.transaction = self.transaction, None
        assert transaction is not None
        transaction.__exit__(KeyError, KeyError(), None)
        self.model = self.before

    @precondition(lambda self: self.transaction is None and self.scheme != "dram")
    @rule()
    def reopen(self) -> None:
        self.group.close()
        self.group = pmarray.open_group(self.url, mode="r+", **self.options)
        self.array = self.group["x"]

    @precondition(lambda self: self.transaction is None)
    @rule()
    def open_reader(self) -> None:
        self.group.flush()
        if self.scheme != "dram" and len(self.readers) < 2:
            self.readers.append((pmarray.open_group(self.url, mode="r"), self.model.copy()))

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), fancy=st.booleans())
    def ask_reader(self, data: st.DataObject, fancy: bool) -> None:
        number = data.draw(st.integers(0, len(self.readers) - 1))
        reader, model = self.readers[number]
        n = model.items.shape[self.slow]
        index: Any = ...
        if n and data.draw(st.booleans()):
            line = data.draw(st.integers(0, n - 1))
            index = (slice(None), line) if self.slow else line
        elif n and fancy:
            index = ([3, 7], [0, n - 1]) if self.slow else ([0, n - 1], [3, 7])
        try:
            found = reader["x"][index]
        except errors.SnapshotExpiredError:
            reader.close()
            del self.readers[number]
            return
        model.check(found, index)

    @invariant()
    def equals_model(self) -> None:
        if hasattr(self, "model"):
            self.model.check(self.array[...])

    def teardown(self) -> None:
        if not hasattr(self, "resources"):
            return
        if self.transaction is not None:
            self.roll_back()
        for reader, _ in self.readers:
            reader.close()
        self.group.close()
        with self.resources:
            pass


@pytest.mark.parametrize("scheme", ["memmap", "shelf", "dram"])
def test_forgotten_items_behave_like_their_model(scheme: str) -> None:
    machine = type(f"On_{scheme}", (Forgetful,), {"scheme": scheme})
    run_state_machine_as_test(
        machine, settings=examples(0.25, deadline=None, stateful_step_count=30)
    )


@pytest.mark.parametrize("scheme", ["memmap", "shelf"])
def test_a_ring_that_forgets_writes_no_before_image(scheme: str, tmp_path: Path) -> None:
    with pretend_dax(), pmarray.open_group(f"{scheme}:{tmp_path}/g") as group:
        a = group.create("a", (4096, 4), "float32", layout="col")
        with group.transaction():
            a[:] = 1
        for step in range(8):
            with group.transaction():
                a.forget((slice(None), (step + 1) % 4))
            before = journal_end(group)
            with group.transaction():
                a[:, (step + 1) % 4] = step
            assert journal_end(group) - before < 4096 * 4  # the COMMIT, and no column
        before = journal_end(group)
        with group.transaction():
            a[:, 0] = 3
        assert journal_end(group) - before > 4096 * 4


def journal_end(group: pmarray.Group) -> int:
    journal = group._session.committer._journal
    assert journal is not None
    return journal.position


def test_forgetting_and_writing_in_one_transaction_takes_an_image(tmp_path: Path) -> None:
    with pmarray.open_group(f"memmap:{tmp_path}/g") as group:
        a = group.create("a", (4096, 4), "float32", layout="col")
        with group.transaction():
            a[:] = 1
        with suppress(KeyError), group.transaction():
            a.forget((slice(None), 0))
            a[:, 0] = 2
            raise KeyError
        assert (a[:, 0] == 1).all()


def test_a_reader_of_an_earlier_commit_does_not_get_what_came_after(tmp_path: Path) -> None:
    with pmarray.open_group(f"memmap:{tmp_path}/g") as group:
        a = group.create("a", (4096, 4), "float32", layout="col")
        with group.transaction():
            a[:] = 1
        with pmarray.open_group(f"memmap:{tmp_path}/g", mode="r") as reader:
            b = reader["a"]
            assert (b[...] == 1).all()  # the counter is noted, the file mapped
            with group.transaction():
                a.forget(np.s_[:, 1])
            with group.transaction():
                a[:, 1] = 2
            for index in (np.s_[:, 1], np.s_[5, 1], np.s_[5], np.s_[[3, 7], [1, 1]]):
                with pytest.raises(errors.SnapshotExpiredError, match="refresh"):
                    b[index]
            assert (b[:, 2] == 1).all()
            reader.refresh()
            assert (b[:, 1] == 2).all()


def test_it_is_refused_where_it_could_not_be_kept(tmp_path: Path) -> None:
    with pmarray.open_group(f"memmap:{tmp_path}/g") as group:
        a = group.create("a", (4096, 4), "float32", layout="col")
        with pytest.raises(errors.TransactionError, match="transaction"):
            a.forget(0)
        with group.transaction(), a.writing(np.s_[:, 1]) as out:
            out[...] = 1
            with pytest.raises(errors.LoanError):
                a.forget(np.s_[:, 1])
        with group.transaction(), pytest.raises(errors.SelectionError):
            a.forget(np.s_[:, 4])

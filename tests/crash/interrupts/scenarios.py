"""What is interrupted: one operation of a program on a group, and what it may lead to.

To add one: subclass `Scenario`, and list it in `SCENARIOS`. Exceptions are raised below `operate`,
which stands for the user's program; only there.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import pmarray
from tests.crash.interrupts.contents import Contents
from tests.crash.interrupts.places import Place

if TYPE_CHECKING:
    from tests.crash.interrupts.aftermath import Aftermath

__all__ = ["NAMES", "SCENARIOS", "GivenUpError", "Scenario", "Stage", "find"]

ROWS = 1000
COLUMNS = 6


@dataclass
class Stage:
    """A place, the group in it, and what a scenario keeps."""

    place: Place
    path: Path
    group: pmarray.Group | None = None
    cache: int | str = "auto"
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """That of the group."""
        return self.place.url(self.path)

    def open(self, mode: Any = "r+") -> pmarray.Group:
        """Open the group."""
        self.group = pmarray.open_group(self.url, mode=mode, cache=self.cache)
        return self.group

    def opened(self) -> pmarray.Group:
        """The group, which is open."""
        assert self.group is not None
        return self.group

    def close(self) -> None:
        """Close the group."""
        group, self.group = self.group, None
        if group is not None:
            group.close()

    def __getitem__(self, name: str) -> pmarray.PMArray:
        return self.opened()[name]


class Scenario:
    """One operation."""

    by_item = False
    """Whether part of it may have taken place: each item is the old one or the new one."""
    is_transaction = False
    """Whether only commits change anything."""
    is_durable = True
    """Whether a commit that has returned is."""
    is_dirty = False
    """Whether something was written before that nobody has flushed."""
    needs_readers = False
    """Whether it makes no sense where there is nothing but this handle."""
    repeats = False
    """Whether doing it again changes nothing more."""
    least_cache_bytes = 0
    """What it needs, where the cache of a place is smaller."""
    company = 1
    """How many threads `accompany` it."""

    def surroundings(self) -> AbstractContextManager[None]:
        """What there must be around it."""
        return nullcontext()

    def prepare(self, stage: Stage) -> None:
        """Make the group, which is open afterwards, and everything in it durable."""
        group = stage.open("w")
        x = group.create("x", (ROWS, COLUMNS), "float32", layout="col", chunks=stage.place.chunks)
        x[...] = 1
        group.create("y", (40, 8), "float64")[...] = 1
        group.attrs["v"] = 1
        group.flush()
        self.prepare_more(stage)

    def prepare_more(self, stage: Stage) -> None:
        """What only this scenario needs."""

    def operate(self, stage: Stage) -> None:
        """Do it."""
        raise NotImplementedError

    def states(self, before: Contents) -> list[Contents]:
        """The states that it leads through, from the first to the last."""
        return [before]

    def objection(self, stage: Stage) -> str | None:
        """What is wrong with a result, where it returned one."""
        return None

    def interrupted(self, stage: Stage) -> pmarray.Group:
        """The group that it uses."""
        return stage.opened()

    def accompany(self, stage: Stage) -> None:
        """What another thread does meanwhile, again and again; ends where it began."""
        _ = stage["y"][0, 0]
        _ = stage.opened().attrs.get("v")

    def examine(self, look: Aftermath) -> None:
        """Look at what it has left."""
        look.check_group()


def _column(before: Contents, index: Any, value: Any) -> NDArray[Any]:
    x = before.arrays["x"].copy()
    x[index] = value
    return x


class ItemWrite(Scenario):
    """One item."""

    repeats = True

    def operate(self, stage: Stage) -> None:
        stage["x"][3, 2] = 7

    def states(self, before: Contents) -> list[Contents]:
        return [before, before.having(x=_column(before, (3, 2), 7))]


class ItemRead(Scenario):
    """One item, of a chunk that is not in memory."""

    repeats = True

    def prepare_more(self, stage: Stage) -> None:
        stage.close()
        stage.open()

    def operate(self, stage: Stage) -> None:
        stage.kept["result"] = stage["x"][3, 2]

    def objection(self, stage: Stage) -> str | None:
        result = stage.kept["result"]
        return None if result == 1 else f"read {result}"


class SliceWrite(Scenario):
    """Several columns, of another dtype than the array has."""

    repeats = True
    by_item = True

    def operate(self, stage: Stage) -> None:
        stage["x"][:, 1:5] = np.full((ROWS, 4), 5, "int16")

    def states(self, before: Contents) -> list[Contents]:
        return [before, before.having(x=_column(before, np.s_[:, 1:5], 5))]


class RowWrite(Scenario):
    """A piece of every column, scattered."""

    repeats = True
    by_item = True

    def operate(self, stage: Stage) -> None:
        stage["x"][[5, 700], :] = 4

    def states(self, before: Contents) -> list[Contents]:
        return [before, before.having(x=_column(before, [5, 700], 4))]


class Append(Scenario):
    """A column, and durable."""

    def operate(self, stage: Stage) -> None:
        stage["x"].append(np.full(ROWS, 3, "float32"))

    def states(self, before: Contents) -> list[Contents]:
        x = before.arrays["x"]
        new = np.full((ROWS, 1), 3, "float32")
        return [before, before.having(x=np.concatenate([x, new], axis=1))]


class Grow(Scenario):
    """More columns of the fill value."""

    def operate(self, stage: Stage) -> None:
        stage["x"].resize((ROWS, COLUMNS + 3))

    def states(self, before: Contents) -> list[Contents]:
        x = before.arrays["x"]
        new = np.zeros((ROWS, 3), "float32")
        return [before, before.having(x=np.concatenate([x, new], axis=1))]


class Shrink(Scenario):
    """Fewer columns, where some are not written out yet."""

    def prepare_more(self, stage: Stage) -> None:
        stage["x"][:, 4] = 6

    def operate(self, stage: Stage) -> None:
        stage["x"].resize((ROWS, 3))

    def states(self, before: Contents) -> list[Contents]:
        return [before, before.having(x=before.arrays["x"][:, :3])]


class Widen(Scenario):
    """Along the other axis, for which the array is copied."""

    def operate(self, stage: Stage) -> None:
        stage["x"].resize((ROWS + 10, COLUMNS))

    def states(self, before: Contents) -> list[Contents]:
        x = before.arrays["x"]
        new = np.zeros((10, COLUMNS), "float32")
        return [before, before.having(x=np.concatenate([x, new], axis=0))]


class Create(Scenario):
    """An array that is full of something."""

    def operate(self, stage: Stage) -> None:
        stage.opened().create("z", (ROWS, 3), "float32", layout="col", fill_value=2)

    def states(self, before: Contents) -> list[Contents]:
        return [before, before.having(z=np.full((ROWS, 3), 2, "float32"))]


class Delete(Scenario):
    """An array."""

    def operate(self, stage: Stage) -> None:
        del stage.opened()["y"]

    def states(self, before: Contents) -> list[Contents]:
        return [before, before.having(y=None)]


class Attributes(Scenario):
    """Two attributes in one step."""

    repeats = True

    def operate(self, stage: Stage) -> None:
        stage.opened().attrs.update(v=2, w=[1, 2])

    def states(self, before: Contents) -> list[Contents]:
        return [before, before.saying(v=2, w=[1, 2])]


def _change(group: pmarray.Group, value: int) -> None:
    group["x"][:, 1:4] = value
    group["y"].append(np.full((1, 8), value))
    group.attrs["v"] = value


def _changed(before: Contents, value: int) -> Contents:
    y = np.concatenate([before.arrays["y"], np.full((1, 8), float(value))])
    return before.having(x=_column(before, np.s_[:, 1:4], value), y=y).saying(v=value)


class Durable(Scenario):
    """A transaction that is waited for."""

    is_transaction = True

    def operate(self, stage: Stage) -> None:
        group = stage.opened()
        with group.transaction():
            _change(group, 2)

    def states(self, before: Contents) -> list[Contents]:
        return [before, _changed(before, 2)]


class AfterWriting(Durable):
    """The same after writes that nobody has flushed: they stay, whatever becomes of it."""

    is_dirty = True

    def prepare_more(self, stage: Stage) -> None:
        stage["x"][:, 5] = 8
        stage.opened().attrs["u"] = 8


class Pipelined(Scenario):
    """Transactions that are not waited for."""

    is_transaction = True
    is_durable = False

    def operate(self, stage: Stage) -> None:
        group = stage.opened()
        for value in (2, 3, 4):
            with group.transaction(wait=False):
                _change(group, value)

    def states(self, before: Contents) -> list[Contents]:
        states = [before]
        for value in (2, 3, 4):
            states.append(_changed(states[-1], value))
        return states


class Replacing(Scenario):
    """A transaction that deletes, creates and moves."""

    is_transaction = True

    def operate(self, stage: Stage) -> None:
        group = stage.opened()
        with group.transaction():
            del group["y"]
            group.create("y", (3, 3), fill_value=6)
            group["x"].resize((ROWS + 5, COLUMNS))
            group.attrs["v"] = 2

    def states(self, before: Contents) -> list[Contents]:
        x = np.concatenate([before.arrays["x"], np.zeros((5, COLUMNS), "float32")])
        return [before, before.having(y=np.full((3, 3), 6.0), x=x).saying(v=2)]


class Empty(Scenario):
    """A transaction of nothing."""

    repeats = True
    is_transaction = True

    def operate(self, stage: Stage) -> None:
        with stage.opened().transaction():
            pass


class GivenUpError(Exception):
    """The program changes its mind."""


class RollBack(Scenario):
    """A transaction that the program ends by an exception."""

    repeats = True
    is_transaction = True

    def operate(self, stage: Stage) -> None:
        group = stage.opened()
        try:
            with group.transaction():
                _change(group, 9)
                group.create("z", (3, 3))
                raise GivenUpError
        except GivenUpError:
            pass


class Copy(Scenario):
    """An array is copied over another one."""

    is_transaction = True
    needs_readers = True

    def prepare_more(self, stage: Stage) -> None:
        stage.close()
        source = pmarray.open("dram:", shape=(ROWS, 4), dtype="float32", layout="col")
        source[...] = 2
        stage.kept["source"] = source

    def operate(self, stage: Stage) -> None:
        pmarray.copy(stage.kept["source"], f"{stage.url}#x", mode="w", chunks=1)

    def states(self, before: Contents) -> list[Contents]:
        return [before, before.having(x=np.full((ROWS, 4), 2, "float32"))]


def _dirty(stage: Stage) -> None:
    stage["x"][:, 2:4] = 5
    stage["x"][7, 5] = 6
    stage["y"].append(np.full((2, 8), 4.0))
    stage.opened().attrs["v"] = 3


class Flush(Scenario):
    """What was written is made durable."""

    repeats = True

    def prepare_more(self, stage: Stage) -> None:
        _dirty(stage)

    def operate(self, stage: Stage) -> None:
        stage.opened().flush()


class Close(Scenario):
    """What was written is made durable, for good."""

    def prepare_more(self, stage: Stage) -> None:
        _dirty(stage)

    def operate(self, stage: Stage) -> None:
        stage.opened().close()

    def examine(self, look: Aftermath) -> None:
        look.check_closed()


class CloseBehind(Close):
    """The same while transactions are on their way."""

    def prepare_more(self, stage: Stage) -> None:
        group = stage.opened()
        for value in (2, 3):
            with group.transaction(wait=False):
                _change(group, value)


class Open(Scenario):
    """A group is opened and written to for the first time, which takes its lock."""

    needs_readers = True

    def prepare_more(self, stage: Stage) -> None:
        stage.close()

    def operate(self, stage: Stage) -> None:
        group = stage.open()
        group.attrs["v"] = 2
        group.flush()

    def states(self, before: Contents) -> list[Contents]:
        return [before, before.saying(v=2)]


class With(Scenario):
    """A whole program: open, change, close."""

    needs_readers = True

    def prepare_more(self, stage: Stage) -> None:
        stage.close()

    def operate(self, stage: Stage) -> None:
        with pmarray.open_group(stage.url, mode="r+", cache=stage.cache) as group:
            with group.transaction():
                _change(group, 2)

    def states(self, before: Contents) -> list[Contents]:
        return [before, _changed(before, 2)]


class Read(Scenario):
    """Some columns, of chunks that are not in memory."""

    repeats = True

    def prepare_more(self, stage: Stage) -> None:
        if stage.place.has_readers:
            stage.close()
            stage.open()
        stage["x"][:, 5] = 3

    def operate(self, stage: Stage) -> None:
        stage.kept["result"] = stage["x"][::3, 1:]

    def objection(self, stage: Stage) -> str | None:
        result = stage.kept["result"]
        good = (result[:, :4] == 1).all() and (result[:, 4] == 3).all()
        return None if good else "read something else"


class Reduce(Scenario):
    """Streamed computations."""

    repeats = True

    def operate(self, stage: Stage) -> None:
        x = stage["x"]
        stage.kept["result"] = [float(np.sum(x)), (x @ np.ones(COLUMNS)).sum(), np.mean(x)]

    def objection(self, stage: Stage) -> str | None:
        result = stage.kept["result"]
        return None if result == [ROWS * COLUMNS, ROWS * COLUMNS, 1] else f"computed {result}"


class Writing(Scenario):
    """A column is filled where it is."""

    repeats = True
    by_item = True

    def operate(self, stage: Stage) -> None:
        with stage["x"].writing(np.s_[:, 2]) as column:
            column[...] = 5

    def states(self, before: Contents) -> list[Contents]:
        return [before, before.having(x=_column(before, np.s_[:, 2], 5))]


class Appending(Append):
    """The same with one that is new."""

    def operate(self, stage: Stage) -> None:
        with stage["x"].appending() as column:
            column[...] = 3

    def states(self, before: Contents) -> list[Contents]:
        # If the block raises, the new lines hold the fill value.
        column = np.zeros((ROWS, 1), "float32")
        filled = before.having(x=np.hstack([before.arrays["x"], column]))
        first, after = super().states(before)
        return [first, filled, after]


SCENARIOS: dict[str, Scenario] = {
    "item-write": ItemWrite(),
    "item-read": ItemRead(),
    "slice-write": SliceWrite(),
    "row-write": RowWrite(),
    "append": Append(),
    "grow": Grow(),
    "shrink": Shrink(),
    "widen": Widen(),
    "create": Create(),
    "delete": Delete(),
    "attrs": Attributes(),
    "durable": Durable(),
    "after-writing": AfterWriting(),
    "pipelined": Pipelined(),
    "replacing": Replacing(),
    "empty": Empty(),
    "roll-back": RollBack(),
    "copy": Copy(),
    "flush": Flush(),
    "close": Close(),
    "close-behind": CloseBehind(),
    "open": Open(),
    "with": With(),
    "read": Read(),
    "reduce": Reduce(),
    "writing": Writing(),
    "appending": Appending(),
}
_COLLECTING = (
    "collect", "collect-ring", "collect-ring-at-once", "collect-diagonal", "collect-flush",
    "collect-close", "collect-failing", "collect-drawn",
)  # fmt: skip
_LARGE = (
    "many-item", "many-item-again", "many-row", "many-columns", "many-streams", "in-place",
    "in-flight", "beside-writer",
)  # fmt: skip
NAMES = (*SCENARIOS, *_LARGE, *_COLLECTING)
"""Of all scenarios, also those that need PyTorch, which takes seconds to load."""


def find(name: str) -> Scenario:
    """Return the scenario of a name."""
    if name in _COLLECTING:
        from tests.crash.interrupts.collection import COLLECTION

        return COLLECTION[name]
    if name in _LARGE:
        from tests.crash.interrupts.large import LARGE

        return LARGE[name]
    return SCENARIOS[name]

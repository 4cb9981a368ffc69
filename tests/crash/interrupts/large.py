"""Arrays that are larger than the cache, and what is computed where it lies.

Reads of theirs go ways of their own: past the cache, through a mapping that is kept, or by
requests that are in flight while something is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

import pmarray
from pmarray._streams import reading
from pmarray.backends.files.beside import SideReads
from pmarray.errors import SnapshotExpiredError
from tests.crash.interrupts.books import left_open
from tests.crash.interrupts.scenarios import Scenario, Stage

if TYPE_CHECKING:
    from tests.crash.interrupts.aftermath import Aftermath

__all__ = ["LARGE"]

MANY = np.arange(500)[:, None] * 100 + np.arange(80, dtype="float32")
"""In columns of a chunk each, which are too many for the cache."""
WIDE = np.ones((10_000, 1)) * np.arange(1.0, 9.0)
"""In columns that are long enough to be looked at where they lie; all sums are exact."""
_TRIES = 50

Result = list[Any]


class _Reading(Scenario):
    """Reads, and computations, that leave everything as it was."""

    repeats = True

    def expected(self) -> Result:
        """What `compute` returns, as NumPy has it."""
        raise NotImplementedError

    def compute(self, stage: Stage) -> Result:
        """Do it."""
        raise NotImplementedError

    def operate(self, stage: Stage) -> None:
        stage.kept["result"] = self.compute(stage)

    def objection(self, stage: Stage) -> str | None:
        for number, (found, right) in enumerate(
            zip(stage.kept["result"], self.expected(), strict=True)
        ):
            if np.shape(found) != np.shape(right) or not np.array_equal(found, right):
                return f"result number {number} is another one"
        return None

    def examine(self, look: Aftermath) -> None:
        """The next one works, and finds what is there."""
        look.check_result()
        look.attempt("the same again", lambda: self.operate(look.stage))
        look.returned = True
        look.check_group()


class _Selection(_Reading):
    """Parts of an array of many chunks, none of which is in memory."""

    company = 2

    def __init__(self, *indices: Any) -> None:
        self._indices = indices

    def prepare_more(self, stage: Stage) -> None:
        many = stage.opened().create(
            "many", MANY.shape, "float32", layout="col", chunks=1, **stage.place.plain
        )
        many[...] = MANY
        stage.opened().flush()
        if stage.place.has_readers:
            stage.close()
            stage.open()

    def expected(self) -> Result:
        return [MANY[index] for index in self._indices]

    def compute(self, stage: Stage) -> Result:
        many = stage["many"]
        return [many[index] for index in self._indices]

    def accompany(self, stage: Stage) -> None:
        for found, right in zip(self.compute(stage), self.expected(), strict=True):
            if not np.array_equal(found, right):
                raise AssertionError(f"read {found!r:.100}")


class _Streams(_Selection):
    """All of it, in pieces that are fetched into the cache while others are worked on."""

    def expected(self) -> Result:
        sums = MANY.astype("float64")
        return [MANY, MANY[::2], sums.max(axis=0), sums.sum(), sums @ np.ones(80)]

    def compute(self, stage: Stage) -> Result:
        many = stage["many"]
        whole = np.empty(many.shape, many.dtype)
        np.copyto(whole, many)
        sums = sum(float(many[piece].sum(dtype="float64")) for piece in many.iter_chunks())
        products = sum(np.asarray(many.view[:, j]).astype("float64") for j in range(80))
        return [whole, many[::2], np.max(many, axis=0), sums, products]


class _InPlace(_Reading):
    """Computations with items that are in memory."""

    least_cache_bytes = 256 << 10

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        with pmarray.config.set(work_memory=256 << 10):
            yield

    def prepare_more(self, stage: Stage) -> None:
        wide = stage.opened().create("wide", WIDE.shape, "float64", layout="col", chunks=1)
        wide[...] = WIDE
        stage.opened().flush()
        if stage.place.has_readers:
            stage.close()
            stage.open()
        _ = stage["wide"][0, 0]

    def expected(self) -> Result:
        return [
            WIDE.sum(), WIDE.sum(axis=0), WIDE.max(), WIDE.min(axis=1), WIDE.mean(axis=0),
            WIDE.var(axis=0), WIDE @ np.ones(8), np.ones(10_000) @ WIDE, WIDE.T @ WIDE,
            np.sqrt((WIDE * WIDE).sum()),
        ]  # fmt: skip

    def compute(self, stage: Stage) -> Result:
        wide = stage["wide"]
        return [
            np.sum(wide), np.sum(wide, axis=0), np.max(wide), np.min(wide, axis=1),
            np.mean(wide, axis=0), np.var(wide, axis=0), wide @ np.ones(8), np.ones(10_000) @ wide,
            pmarray.linalg.gram(wide), pmarray.linalg.norm(wide),
        ]  # fmt: skip


class _InFlight(_InPlace):
    """The same where nothing is in memory, as far as anybody knows: threads read what follows."""

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        with (
            super().surroundings(),
            mock.patch.object(SideReads, "are_resident", return_value=False),
            mock.patch.object(reading, "_SMALL_BYTES", 1),
        ):
            yield

    def expected(self) -> Result:
        return [*super().expected(), WIDE, WIDE.sum()]

    def compute(self, stage: Stage) -> Result:
        wide = stage["wide"]
        whole = np.empty(wide.shape)
        np.copyto(whole, wide)
        sums = sum(float(wide[piece].sum()) for piece in wide.iter_chunks())
        return [*super().compute(stage), whole, sums]


class _Beside(_InPlace):
    """Computations of a reader, beside a writer that commits twice as much, and half of it."""

    needs_readers = True

    def prepare_more(self, stage: Stage) -> None:
        super().prepare_more(stage)
        stage.kept["reader"] = reader = pmarray.open_group(stage.url, mode="r", cache=stage.cache)
        _ = reader["wide"][0, 0]

    def interrupted(self, stage: Stage) -> pmarray.Group:
        reader: pmarray.Group = stage.kept["reader"]
        return reader

    def accompany(self, stage: Stage) -> None:
        for factor in (2, 1):
            with stage.opened().transaction():
                stage["wide"][...] = factor * WIDE

    def expected(self) -> Result:
        return [WIDE.sum(axis=0), WIDE.max(), WIDE @ np.ones(8), np.sqrt((WIDE * WIDE).sum())]

    def compute(self, stage: Stage) -> Result:
        reader = self.interrupted(stage)
        looks: list[Callable[[pmarray.PMArray], Any]] = [
            lambda wide: np.sum(wide, axis=0),
            np.max,
            lambda wide: wide @ np.ones(8),
            pmarray.linalg.norm,
        ]
        return [self._commit_of(reader, look) for look in looks]

    @staticmethod
    def _commit_of(reader: pmarray.Group, look: Callable[[pmarray.PMArray], Any]) -> Any:
        for _ in range(_TRIES):
            try:
                return look(reader["wide"])
            except SnapshotExpiredError:
                reader.refresh()
        return None

    def objection(self, stage: Stage) -> str | None:
        for number, (found, right) in enumerate(
            zip(stage.kept["result"], self.expected(), strict=True)
        ):
            if found is not None and not any(np.array_equal(found, n * right) for n in (1, 2)):
                return f"result number {number} is of no commit"
        return None

    def examine(self, look: Aftermath) -> None:
        reader = self.interrupted(look.stage)
        look.in_another_thread("another thread reads", lambda: self.operate(look.stage))
        for kind, detail in left_open(reader):
            look.note(kind, f"{detail}, of the reader")
        super().examine(look)
        look.attempt("close the reader", reader.close)


LARGE: dict[str, Scenario] = {
    "many-item": _Selection(np.s_[300, 41], np.s_[20, 7]),
    "many-item-again": _Selection(*[np.s_[300, 41]] * 3),
    "many-row": _Selection(np.s_[123], np.s_[5:50:3, 2:70]),
    "many-columns": _Selection(np.s_[:, 60], np.s_[:, 40:10:-2], np.s_[100:130, 20:30]),
    "many-streams": _Streams(),
    "in-place": _InPlace(),
    "in-flight": _InFlight(),
    "beside-writer": _Beside(),
}

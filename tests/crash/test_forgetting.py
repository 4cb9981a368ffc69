"""Forgotten items: whole until the commit that forgets them is durable, and anything afterwards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmarray
from pmarray._formats.metadata import GroupMetadata
from pmarray._geometry.spans import SpanSet
from pmarray._group.catalog import Catalog
from pmarray._storage.region import RegionStorage
from pmarray.testing import State
from tests.crash.check import Campaign, Report, Violation, scratch
from tests.crash.choices import forget_pages
from tests.crash.mutation import barrier_sites, without_barrier
from tests.crash.recorder import Recorder
from tests.crash.scenarios import SCENARIOS, GroupScenario


class AtOnce(GroupScenario):
    """A column is forgotten and written again, by two transactions that nobody waits for."""

    name = "at once"

    def __init__(self) -> None:
        super().__init__()
        items = np.ones((512, 2))
        self.states = [State.of_model({"a": items.copy(order="F")}, {"step": 0})]
        for step, value in ((1, 0), (2, 3)):
            items[:, 0] = value
            self.states.append(State.of_model({"a": items.copy(order="F")}, {"step": step}))

    def prepare(self, path: Path) -> None:
        super().prepare(path)
        with pmarray.open_group(self._place.url(path)) as group:
            group.create("a", (512, 2), layout="col")[:] = 1
            with group.transaction():
                group.attrs["step"] = 0

    def run(self, path: Path, recorder: Recorder) -> None:
        with pmarray.open_group(self._place.url(path), commit_window=10) as group:
            recorder.mark("begun", 2)
            with group.transaction(wait=False):
                group["a"].forget(np.s_[:, 0])
                group.attrs["step"] = 1
            with group.transaction(wait=False):
                group["a"][:, 0] = 3
                group.attrs["step"] = 2
            group.flush()
            recorder.mark("committed", 2)

    def look(self, group: pmarray.Group) -> State:
        items = np.asfortranarray(group["a"][...])
        if group.attrs["step"] == 1:
            items[:, 0] = 0
        return State.of_model({"a": items}, dict(group.attrs))


def crash(name: str, seed: int, instants: float, **options: Any) -> Report:
    scenario = SCENARIOS[name](seed)
    report = Campaign(
        scenario, seed=seed, limit=8, samples=8, again=0.02, instants=instants, **options
    ).run()
    forget_pages()
    return report


@pytest.mark.parametrize(
    ("name", "instants"),
    [
        ("forgetting", 0.01),
        ("forgetting-pipelined", 0.01),
        ("shelf-forgetting", 0.01),
        ("device-forgetting", 0.06),
    ],
)
def test_no_crash_shows_forgotten_bytes_of_a_state_that_has_them(
    name: str, instants: float
) -> None:
    report = crash(name, 2, instants)
    assert not report.violations, report.violations[0]
    assert report.distinct > 2


def test_judging_by_what_is_only_sealed_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged with the commit that forgets, the next one would overwrite what may come back."""
    images, note = RegionStorage.before_images, Catalog.note_dead
    sealed: dict[int, list[tuple[int, int]]] = defaultdict(list)

    def careless(
        self: RegionStorage, writes: Any, committed: GroupMetadata, memory: Any
    ) -> Iterator[Any]:
        dead = tuple(SpanSet.of(sealed[self.file_id]))
        arrays = {
            name: array._replace(dead=dead)
            for name, array in committed.arrays.items()
            if array.file_id == self.file_id
        }
        return images(self, writes, committed._replace(arrays=arrays), memory)

    def merged(self: Catalog) -> bool:
        note(self)
        for array in self.metadata.arrays.values():
            sealed[array.file_id] += array.dead
        return False

    def violations() -> list[Violation]:
        return Campaign(AtOnce(), seed=1, limit=16, samples=16, again=0).run().violations

    assert not violations()
    monkeypatch.setattr(RegionStorage, "before_images", careless)
    monkeypatch.setattr(Catalog, "note_dead", merged)
    assert violations()
    forget_pages()


def test_a_commit_that_is_not_durable_before_its_bytes_are_overwritten_is_caught() -> None:
    with scratch() as path, barrier_sites() as found, Recorder(path) as recorder:
        SCENARIOS["forgetting"](2).run(path, recorder)
    (site,) = [one for one in found if "committer.py" in one and one.endswith(" commit")]
    with without_barrier(site):
        for seed in range(1, 8):
            if crash("forgetting", seed, 0.2, patience=1).violations:
                return
    pytest.fail("no crash has shown it")

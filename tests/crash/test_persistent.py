"""Scenarios in persistent memory: files on DAX (`shelf`) and a pool on a device (`device`)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from pmarray._storage import persistent
from tests.crash.check import Campaign, scratch
from tests.crash.choices import forget_pages
from tests.crash.faults import Injector, all_faults, suffer
from tests.crash.recorder import Recorder
from tests.crash.scenarios import SCENARIOS

NAMES = (
    "durable", "pipelined", "cached", "replacing", "flushes", "flushes-cached", "spilled",
    "in-place", "in-place-pipelined",
)  # fmt: skip
KINDS = ("shelf", "device")


@pytest.mark.parametrize("name", [f"{kind}-{name}" for kind in KINDS for name in NAMES])
def test_no_power_cut_loses_what_was_promised(name: str) -> None:
    """Nor does the death of the process, and a power cut during recovery."""
    report = Campaign(
        SCENARIOS[name](1), seed=1, limit=4, samples=4, again=0.005, instants=0.12
    ).run()
    forget_pages()
    assert not report.violations, report.violations[0]
    assert report.distinct > 6


@pytest.mark.parametrize(("kind", "instants"), [("shelf", 0.15), ("device", 0.12)])
def test_records_of_an_interrupted_transaction_do_not_come_back(kind: str, instants: float) -> None:
    """Of few instants, each recovery; a nonce that stays the same is caught by this."""
    report = Campaign(
        SCENARIOS[f"{kind}-interrupted"](1), seed=1, limit=4, samples=4, again=1, instants=instants
    ).run()
    forget_pages()
    assert not report.violations, report.violations[0]
    assert report.again > 5


@pytest.mark.parametrize("name", ["shelf-in-place", "device-in-place"])
def test_stores_before_their_before_images_are_caught(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library made to break its own rule."""
    real: Callable[..., Any] = persistent.PersistentStorage._protect

    def late(self: Any, axes: Any) -> Any:
        block = self.items[axes]
        if self._cache.transaction is not None and self._cache.transaction > 2 and block.size:
            saved = block.copy()
            block[...] = 1
            spans = real(self, axes)
            block[...] = saved
            return spans
        return real(self, axes)

    monkeypatch.setattr(persistent.PersistentStorage, "_protect", late)
    report = Campaign(SCENARIOS[name](1), seed=1, limit=16, samples=8, again=0, patience=1).run()
    forget_pages()
    assert report.violations


@pytest.mark.parametrize("name", ["shelf-in-place", "shelf-spilled", "device-in-place"])
def test_every_fault_is_told_and_leaves_a_promised_state(name: str) -> None:
    scenario = SCENARIOS[name](1)
    with scratch() as path, scenario.surroundings():
        scenario.prepare(path)
        with Injector() as injector, Recorder(path) as recorder:
            scenario.run(path, recorder)
    of_memory = [
        fault
        for fault in all_faults(injector.calls)
        if fault.call in ("map_shared", "store", "persist")
    ]
    for fault in random.Random(1).sample(of_memory, min(8, len(of_memory))):
        outcome = suffer(SCENARIOS[name](1), fault)
        assert not outcome.objections, f"{fault}, told {outcome.error!r}: {outcome.objections[0]}"
        if outcome.fired:
            assert outcome.error is not None, f"{fault} was kept from the program"

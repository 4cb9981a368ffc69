"""Scenarios in persistent memory: files on DAX (`shelf`) and a pool on a device (`device`)."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from pmarray import _persistent
from tests.crash.check import Campaign, scratch
from tests.crash.choices import forget_pages
from tests.crash.faults import Injector, all_faults, suffer
from tests.crash.missed import is_missed, is_site, sites_of
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
        SCENARIOS[name](1), seed=1, limit=4, samples=4, again=0.005, instants=0.3
    ).run()
    forget_pages()
    assert not report.violations, report.violations[0]
    assert report.distinct > 15


@pytest.mark.parametrize("kind", KINDS)
def test_records_of_an_interrupted_transaction_do_not_come_back(kind: str) -> None:
    report = Campaign(
        SCENARIOS[f"{kind}-interrupted"](1), seed=1, limit=64, samples=8, again=0.1
    ).run()
    forget_pages()
    assert not report.violations, report.violations[0]
    assert report.again > 0


# Barriers, and stores that are one of their own bytes, that nobody misses, with the reason.
UNSEEN = {
    # The header of a data file is for other programs; shapes are those of the metadata.
    "store _dax_region.py make_durable",
    # What is put back is durable when it is stored; what else is noted there belonged to the
    # transaction that is being undone.
    "persist _stores.py put_back",
    # In a file an fsync follows where it was just opened, and else a persist of the same bytes.
    "store _dax_region.py put_back",
    # The units of a pool are zeros when a file gets them.
    "store _grow begin",
    "store _clear begin",
    # The header of the journal is followed by a barrier of the same bytes.
    "store _write_header begin",
    # Matters where somebody stores through a tensor while its before-image is torn.
    "persist _stores.py begin",
    # The process id of the writer, for messages.
    "store _pool.py become_writer",
}


CALLS = {
    "shelf": {"store", "persist", "fdatasync", "fsync", "fsync_directory"},
    "device": {"store", "persist"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_barrier_is_missed(kind: str) -> None:
    """One after another is left out; a store leaves its bytes in the processor's cache."""
    names = [f"{kind}-{name}" for name in ("flushes", "in-place", "flushes-cached", "spilled")]
    sites = sites_of(names)
    tried = [site for site in sites if not any(is_site(site, one) for one in UNSEEN)]
    assert {site.split()[0] for site in tried} >= CALLS[kind]
    # Some take a minute; all of them are tried where there is time.
    everything = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
    for site in tried if everything else random.Random(1).sample(tried, min(6, len(tried))):
        # A barrier of rolling back may take a crash in recovery to be missed, which takes longer.
        tries = (0, 0.2) if " put_back" in site else (0,)
        assert any(is_missed(site, sites[site], again=again, limit=16) for again in tries), site


@pytest.mark.parametrize("name", ["shelf-in-place", "device-in-place"])
def test_stores_before_their_before_images_are_caught(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library made to break its own rule."""
    real: Callable[..., Any] = _persistent.PersistentStorage._protect

    def late(self: Any, axes: Any) -> Any:
        block = self.items[axes]
        if self._cache.transaction is not None and self._cache.transaction > 2 and block.size:
            saved = block.copy()
            block[...] = 1
            spans = real(self, axes)
            block[...] = saved
            return spans
        return real(self, axes)

    monkeypatch.setattr(_persistent.PersistentStorage, "_protect", late)
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
    for fault in random.Random(1).sample(of_memory, min(25, len(of_memory))):
        outcome = suffer(SCENARIOS[name](1), fault)
        assert not outcome.objections, f"{fault}, told {outcome.error!r}: {outcome.objections[0]}"
        if outcome.fired:
            assert outcome.error is not None, f"{fault} was kept from the program"

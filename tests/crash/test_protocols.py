"""The rig on small protocols: silent on those that keep their promise, loud on all others."""

from __future__ import annotations

import pytest

from tests.crash.check import Campaign, Scenario
from tests.crash.mutation import barrier_sites, without_barrier
from tests.crash.protocols import (
    Overwrites,
    Replace,
    StoredTooSoon,
    StoredUndo,
    Undo,
)

SOUND = [Replace(), Undo(), StoredUndo(rounds=4)]


@pytest.mark.parametrize("scenario", SOUND, ids=lambda s: str(s.name))
def test_a_sound_protocol_has_no_violation(scenario: Scenario) -> None:
    report = Campaign(scenario, again=0.3).run()
    assert not report.violations, report.violations[0]
    assert report.distinct > 30
    assert report.again > 5


@pytest.mark.parametrize("scenario", SOUND, ids=lambda s: str(s.name))
def test_each_barrier_is_missed_when_it_is_removed(scenario: Scenario) -> None:
    with barrier_sites() as sites:
        Campaign(scenario, again=0.3).run()
    assert len(sites) == {"replace": 2, "undo": 7, "stored-undo": 7}[scenario.name]
    for site in sites:
        with without_barrier(site):
            report = Campaign(scenario, again=1, patience=1).run()
        assert report.violations, f"without {site} nothing was noticed"


def test_a_store_before_its_image_is_durable_is_caught() -> None:
    report = Campaign(StoredTooSoon()).run()
    assert report.violations
    assert "Store(" in report.violations[0].history[0]


def test_a_flag_beside_its_data_is_caught() -> None:
    report = Campaign(Overwrites()).run()
    assert report.violations
    assert "the flag came before the data" in str(report.violations[0])

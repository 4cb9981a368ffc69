"""The library's scenarios: power cuts, process deaths, and faults at every call in turn."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.crash.check import Campaign, Report, scratch
from tests.crash.choices import forget_pages
from tests.crash.faults import Injector, all_faults, suffer
from tests.crash.mutation import barrier_sites, without_barrier
from tests.crash.recorder import Recorder
from tests.crash.scenarios import SCENARIOS

RANDOM = [name for name in SCENARIOS if name != "interrupted"]


@pytest.mark.parametrize("name", RANDOM)
def test_no_power_cut_loses_what_was_promised(name: str, tmp_path: Path) -> None:
    campaign = Campaign(SCENARIOS[name](1), seed=1, limit=32, again=0, workplace=tmp_path)
    report = campaign.run()
    forget_pages()
    assert not report.violations, report.violations[0]
    assert report.distinct > 500


def test_no_process_death_and_power_cut_together_lose_what_was_promised() -> None:
    """Twenty thousand different images, each opened by a reader and by the next writer."""
    total = Report()
    seed = 0
    while total.distinct < 20_000 and not total.violations:
        total += Campaign(
            SCENARIOS["pipelined" if seed % 2 else "durable"](seed),
            seed=seed, limit=4, samples=4, again=1, patience=1,
        ).run()  # fmt: skip
        forget_pages()
        seed += 1
    assert not total.violations, total.violations[0]
    assert total.again > 0


def test_records_of_an_interrupted_transaction_do_not_come_back() -> None:
    report = Campaign(SCENARIOS["interrupted"](1), seed=1, limit=64, samples=8, again=1).run()
    assert not report.violations, report.violations[0]


# Barriers whose absence no cut shows, with the reason.
UNSEEN = {
    # What is put back was made durable before the data were touched; only a sector that a power cut
    # garbles while recovery writes it again could tell, and the checkpoint that follows covers it.
    "fdatasync _commits.py recover",
    "fdatasync _commits.py roll_back",
}


def test_every_barrier_is_missed() -> None:
    """Each barrier is left out in turn, and some cut shows it."""
    sites: dict[str, list[str]] = {}
    for name in ("durable", "uncached", "pipelined", "flushes"):
        with scratch() as path, barrier_sites() as found, Recorder(path) as recorder:
            SCENARIOS[name](1).run(path, recorder)
        for site in found:
            sites.setdefault(site, []).append(name)
    with barrier_sites() as found:  # those of recovery come up only after a crash
        Campaign(SCENARIOS["uncached"](1), seed=1, limit=4, samples=4, again=0.02).run()
    for site in found:
        if "recover" in site:
            sites.setdefault(site, []).append("uncached")
    assert len(sites) >= 8
    for site, where in sites.items():
        if any(_is(site, unseen) for unseen in UNSEEN):
            continue
        again = 0.2 if "recover" in site else 0
        for name in where:
            with without_barrier(site):
                report = Campaign(
                    SCENARIOS[name](1), seed=1, limit=32, samples=16, again=again, patience=1
                ).run()
            forget_pages()
            if report.violations:
                break
        else:
            pytest.fail(f"nobody noticed that this barrier was gone: {site}")


def _is(site: str, unseen: str) -> bool:
    """Whether a site is one of `UNSEEN`, wherever its line is now."""
    call, module, function = unseen.split()
    return site.startswith(call) and site.endswith(f" {function}") and module in site


# Calls whose failure the library may keep to itself: what could not be deleted is only left over,
# and what could not be allocated ahead of need was allocated exactly.
SILENT = {"unlink": {"EIO"}, "fallocate": {"ENOSPC"}, "pwritev": {"EINTR", "short"}}


@pytest.mark.parametrize("name", ["durable", "uncached", "flushes"])
def test_every_fault_is_told_and_leaves_a_promised_state(name: str) -> None:
    with scratch() as path, Injector() as injector, Recorder(path) as recorder:
        SCENARIOS[name](1).run(path, recorder)
    faults = list(all_faults(injector.calls))
    for fault in random.Random(1).sample(faults, 60):
        outcome = suffer(SCENARIOS[name](1), fault)
        assert not outcome.objections, f"{fault}, told {outcome.error!r}: {outcome.objections[0]}"
        if outcome.fired and fault.kind not in SILENT.get(fault.call, ()):
            assert outcome.error is not None, f"{fault} was kept from the program"

"""The library's scenarios: power cuts, process deaths, and faults at every call in turn."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.crash.check import Campaign, Report, scratch
from tests.crash.choices import forget_pages
from tests.crash.faults import Injector, all_faults, suffer
from tests.crash.missed import is_missed, is_site, sites_of
from tests.crash.mutation import barrier_sites
from tests.crash.recorder import Recorder
from tests.crash.scenarios import SCENARIOS

RANDOM = ["durable", "pipelined", "cached", "uncached", "replacing", "flushes", "growing"]


@pytest.mark.parametrize("name", RANDOM)
def test_no_power_cut_loses_what_was_promised(name: str, tmp_path: Path) -> None:
    campaign = Campaign(SCENARIOS[name](1), seed=1, limit=32, again=0, workplace=tmp_path)
    report = campaign.run()
    forget_pages()
    assert not report.violations, report.violations[0]
    assert report.distinct > 500


@pytest.mark.parametrize(
    ("name", "instants"),
    [
        ("columns-durable", 0.06),
        ("columns-uncached", 0.06),
        ("columns-flushes", 0.06),
        ("blocks-pipelined", 0.25),
        ("blocks-cached", 0.25),
        ("blocks-replacing", 0.02),
    ],
)
def test_no_crash_of_chunks_loses_what_was_promised(name: str, instants: float) -> None:
    """Power cuts, process deaths, and both again during recovery; each image costs more here."""
    report = Campaign(
        SCENARIOS[name](1), seed=1, limit=4, samples=4, again=0.01, instants=instants
    ).run()
    forget_pages()
    assert not report.violations, report.violations[0]
    assert report.distinct > 30


def test_no_process_death_and_power_cut_together_lose_what_was_promised() -> None:
    """Three thousand different images, each opened by a reader and by the next writer."""
    total = Report()
    seed = 0
    while total.distinct < 3_000 and not total.violations:
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
    # Removes the journal of a session that was closed. It takes three crashes in a row to see it
    # again: before that, before the next one has a journal of its own, and after.
    "fsync_directory zarrstore.py _become_writer",
    # For what other programs have written into the hierarchy; our own is durable already.
    "fdatasync _zarr_files.py <listcomp>",
    "fdatasync _zarr_files.py _make_way",
}
# Barriers whose absence it takes longer campaigns to see than there is time for here.
SLOW = {
    "fdatasync zarrstore.py checkpoint",
    "fsync_directory zarrstore.py checkpoint",
    "fsync_directory zarrstore.py _flush_for_good",
    "fsync_directory zarrstore.py put_back",
}


def test_every_barrier_is_missed() -> None:
    """Each barrier is left out in turn, and some cut shows it."""
    names = ("durable", "uncached", "pipelined", "flushes", "growing")
    sites = sites_of(names)
    with barrier_sites() as found:  # those of recovery come up only after a crash
        Campaign(SCENARIOS["uncached"](1), seed=1, limit=4, samples=4, again=0.02).run()
    for site in found:
        if "recover" in site:
            sites.setdefault(site, []).append("uncached")
    assert len(sites) >= 8
    for site, where in sites.items():
        if not any(is_site(site, unseen) for unseen in UNSEEN):
            again = 0.2 if "recover" in site else 0
            assert is_missed(site, where, again=again, limit=32), site


def test_every_barrier_of_a_hierarchy_is_missed() -> None:
    """The same of those that only chunk stores have."""
    sites = {
        site: where
        for site, where in sites_of(("columns-durable", "columns-flushes")).items()
        if "zarr" in site
    }
    tried = [site for site in sites if not any(is_site(site, other) for other in UNSEEN | SLOW)]
    assert len(tried) >= 6
    for site in tried:
        assert is_missed(site, sites[site], again=0.01, limit=8), site


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

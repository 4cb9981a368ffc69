"""The library's scenarios: power cuts, process deaths, and faults at every call in turn."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.crash.check import Campaign, Report, scratch
from tests.crash.choices import forget_pages
from tests.crash.faults import Injector, all_faults, suffer
from tests.crash.recorder import Recorder
from tests.crash.scenarios import SCENARIOS

RANDOM = ["durable", "pipelined", "cached", "uncached", "replacing", "flushes", "growing"]


@pytest.mark.parametrize("name", RANDOM)
def test_no_power_cut_loses_what_was_promised(name: str, tmp_path: Path) -> None:
    campaign = Campaign(
        SCENARIOS[name](1), seed=1, limit=16, samples=16, again=0, instants=0.25, workplace=tmp_path
    )
    report = campaign.run()
    forget_pages()
    assert not report.violations, report.violations[0]
    assert report.distinct > 40


@pytest.mark.parametrize(
    ("name", "instants"),
    [
        ("columns-durable", 0.02),
        ("columns-uncached", 0.02),
        ("columns-flushes", 0.03),
        ("blocks-pipelined", 0.1),
        ("blocks-cached", 0.1),
        ("blocks-replacing", 0.01),
    ],
)
def test_no_crash_of_chunks_loses_what_was_promised(name: str, instants: float) -> None:
    """Power cuts, process deaths, and both again during recovery; each image costs more here."""
    report = Campaign(
        SCENARIOS[name](1), seed=1, limit=4, samples=4, again=0.01, instants=instants
    ).run()
    forget_pages()
    assert not report.violations, report.violations[0]
    assert report.distinct > 10


def test_no_process_death_and_power_cut_together_lose_what_was_promised() -> None:
    """Hundreds of different images, each opened by a reader and by the next writer.

    Of few instants, for what each of them leads to is crashed in its turn: of one program alone
    there are tens of thousands of images.
    """
    total = Report()
    seed = 0
    while total.distinct < 600 and not total.violations:
        total += Campaign(
            SCENARIOS["pipelined" if seed % 2 else "durable"](seed),
            seed=seed, limit=4, samples=4, again=1, patience=1, instants=0.03,
        ).run()  # fmt: skip
        forget_pages()
        seed += 1
    assert not total.violations, total.violations[0]
    assert total.again > 0


def test_records_of_an_interrupted_transaction_do_not_come_back() -> None:
    """Of some instants, each recovery; a nonce that stays the same is caught by this."""
    report = Campaign(
        SCENARIOS["interrupted"](1), seed=1, limit=64, samples=8, again=1, instants=0.4
    ).run()
    assert not report.violations, report.violations[0]
    assert report.again > 10


# Calls whose failure the library may keep to itself: what could not be deleted is only left over,
# and what could not be allocated ahead of need was allocated exactly.
SILENT = {"unlink": {"EIO"}, "fallocate": {"ENOSPC"}, "pwritev": {"EINTR", "short"}}


@pytest.mark.parametrize("name", ["durable", "uncached", "flushes"])
def test_every_fault_is_told_and_leaves_a_promised_state(name: str) -> None:
    with scratch() as path, Injector() as injector, Recorder(path) as recorder:
        SCENARIOS[name](1).run(path, recorder)
    faults = list(all_faults(injector.calls))
    for fault in random.Random(1).sample(faults, 20):
        outcome = suffer(SCENARIOS[name](1), fault)
        assert not outcome.objections, f"{fault}, told {outcome.error!r}: {outcome.objections[0]}"
        if outcome.fired and fault.kind not in SILENT.get(fault.call, ()):
            assert outcome.error is not None, f"{fault} was kept from the program"

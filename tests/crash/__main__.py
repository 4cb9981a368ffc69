"""Long campaigns: every scenario on the simulated disk, and real processes killed.

``python -m tests.crash --seed 1 --minutes 60``, or ``make crash SEED=1 MINUTES=60``.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pmarray.testing import Workload
from tests.crash.check import Campaign, Report
from tests.crash.choices import forget_pages
from tests.crash.kills import kill_once
from tests.crash.scenarios import BLOCKS, COLUMNS, DEVICE, MEMMAP, SCENARIOS, SHELF

__all__ = ["main"]

_KILLS_A_SEED = 6


def main() -> int:
    """Run for the time given; print what was tried, and every violation; 1 if there was any."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--scenario", choices=SCENARIOS, action="append")
    parser.add_argument(
        "--instants", type=float, default=1.0, help="share of the instants that are tried"
    )
    arguments = parser.parse_args()
    until = time.monotonic() + 60 * arguments.minutes
    total, seed, kills, wrong = Report(), arguments.seed, 0, 0
    while time.monotonic() < until:
        names = list(arguments.scenario or SCENARIOS)
        random.Random(seed).shuffle(names)  # a short campaign should not always try the same
        for name in names:
            report = Campaign(
                SCENARIOS[name](seed),
                seed=seed,
                limit=128,
                samples=24,
                instants=arguments.instants,
                until=until,
                patience=3,
            ).run()
            for violation in report.violations:
                print(violation, flush=True)
            total += report
            forget_pages()
        for complaint in _kill(seed):
            kills += 1
            if complaint:
                wrong += 1
                print(f"seed {seed}, killed: {complaint}", flush=True)
        seed += 1
        print(
            f"seeds {arguments.seed} to {seed - 1}: {total.judged} images judged, "
            f"{total.distinct} different ones opened, {total.again} recoveries crashed again, "
            f"{len(total.violations)} violations; {kills} kills, {wrong} violations",
            flush=True,
        )
    return 1 if total.violations or wrong else 0


def _kill(seed: int) -> Iterator[str]:
    """Kill a writer some times, each going on where the last one was; yield what was wrong."""
    rng, reached = random.Random(seed), 0
    place = rng.choice([MEMMAP, COLUMNS, BLOCKS, SHELF, DEVICE])
    workload = Workload(seed, 60, chunks=place.chunks)
    with tempfile.TemporaryDirectory(prefix="pmarray-kill-", dir="/var/tmp") as directory:
        place.prepare(Path(directory))
        for _ in range(_KILLS_A_SEED):
            reached, wrong = kill_once(
                place, Path(directory), workload, seed, reached, rng, wait=seed % 2 == 0
            )
            yield f"{place}: {wrong}" if wrong else ""
            if wrong:
                return


if __name__ == "__main__":
    sys.exit(main())

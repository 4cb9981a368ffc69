"""Long campaigns: random workloads on the simulated disk, and real processes killed.

``python -m tests.crash --seed 1 --minutes 60``, or ``make crash SEED=1 MINUTES=60``.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time

from pmarray.testing import Workload

from .kills import kill_once
from .programs import PROGRAMS
from .rig import Outcome, record, scratch, survey

__all__ = ["main"]

_KILL_LENGTH = 60


def main() -> int:
    """Run for the time given and print what was tried; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--minutes", type=float, default=5.0)
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    total, kills, seed, shown = Outcome(), 0, arguments.seed, 0.0
    while time.monotonic() < end:
        rng = random.Random(seed)
        for name, make in PROGRAMS.items():
            workload = Workload(seed, rng.randint(3, 12), rng.choice([50, 700, 17_000]))
            cache = rng.choice([0, 16384, 65536, 1 << 20])
            with scratch() as place:
                events = record(make(workload, cache), place)
                found = survey(events, workload, place, seed=seed, per_point=30, most_images=600)
            for violation in found.violations:
                print(f"seed {seed} {name} cache={cache}: {violation}", flush=True)
            total += found
        with tempfile.TemporaryDirectory(prefix="pmarray-kill-") as place:
            workload = Workload(seed, _KILL_LENGTH)
            reached = 0
            for _ in range(6):
                url = os.path.join(place, "g")
                reached, wrong = kill_once(url, workload, seed, reached, rng, wait=seed % 2 == 0)
                kills += 1
                if wrong:
                    total.violations.append(wrong)
                    print(f"seed {seed} kill: {wrong}", flush=True)
                    break
        seed += 1
        if time.monotonic() - shown > 60:
            shown = time.monotonic()
            _print(total, kills, seed - arguments.seed)
    _print(total, kills, seed - arguments.seed)
    return 1 if total.violations else 0


def _print(total: Outcome, kills: int, seeds: int) -> None:
    print(
        f"{seeds} seeds: {total.images + total.recoveries} images tried, {total.recoveries} of "
        f"them of a recovery that was cut, {len(total.violations)} violations, "
        f"{kills} kills survived",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())

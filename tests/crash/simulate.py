"""``python -m tests.crash.simulate --seed 1 --minutes 60``: all scenarios, seed after seed."""

from __future__ import annotations

import argparse
import sys
import time

from tests.crash.check import Campaign, Report
from tests.crash.choices import forget_pages
from tests.crash.scenarios import SCENARIOS

__all__ = ["main"]


def main() -> int:
    """Run for the time given; print what was tried, and every violation; 1 if there was any."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.simulate", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--scenario", choices=SCENARIOS, action="append")
    arguments = parser.parse_args()
    until = time.monotonic() + 60 * arguments.minutes
    total, seed = Report(), arguments.seed
    while time.monotonic() < until:
        for name in arguments.scenario or SCENARIOS:
            report = Campaign(
                SCENARIOS[name](seed), seed=seed, limit=128, samples=24, until=until, patience=3
            ).run()
            for violation in report.violations:
                print(violation, flush=True)
            total += report
            forget_pages()
        seed += 1
        print(
            f"seeds {arguments.seed} to {seed - 1}: {total.judged} images judged, "
            f"{total.distinct} different ones opened, {total.again} recoveries crashed again, "
            f"{len(total.violations)} violations",
            flush=True,
        )
    return 1 if total.violations else 0


if __name__ == "__main__":
    sys.exit(main())

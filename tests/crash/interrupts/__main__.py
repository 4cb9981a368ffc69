"""Exceptions wherever they can arrive, in every scenario, on every backend.

``python -m tests.crash.interrupts --seed 1 --minutes 60``, or
``make interrupts SEED=1 MINUTES=60``. A violation is tried again by ``--trial``, with the text at
the beginning of its line.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from tests.crash.interrupts.campaign import (
    Report,
    describe,
    lots,
    preload,
    run_lot,
    run_one,
)
from tests.crash.interrupts.mutation import MUTATIONS
from tests.crash.interrupts.places import PLACES
from tests.crash.interrupts.scenarios import NAMES
from tests.crash.interrupts.trial import MODES, Trial

__all__ = ["main"]


def main() -> int:
    """Run for the time given; print every violation, and what was tried; 1 if there was any."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.interrupts", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--trials", type=int, default=20, help="of each kind, a round")
    parser.add_argument("--rounds", type=int, default=0, help="how many; 0 for what there is time")
    parser.add_argument("--scenario", choices=NAMES, action="append")
    parser.add_argument("--backend", choices=PLACES, action="append")
    parser.add_argument("--mode", choices=MODES, action="append")
    parser.add_argument("--trial", type=Trial.parse, help="try this one again")
    parser.add_argument("--without", choices=MUTATIONS, help="leave out what must be noticed")
    parser.add_argument("--quiet", action="store_true", help="print the summary only")
    arguments = parser.parse_args()
    report = Report()
    if arguments.trial:
        preload([arguments.trial.place], [arguments.trial.scenario])
        for outcome in run_one(arguments.trial, arguments.without):
            report.add(outcome)
            print(describe(outcome) or f"{outcome.trial}: nothing wrong")
        return 1 if report.violations else 0
    preload(arguments.backend, arguments.scenario)
    began = time.monotonic()
    until = began + 60 * arguments.minutes
    seed, rounds = arguments.seed, 0
    while time.monotonic() < until and (rounds < arguments.rounds or not arguments.rounds):
        these = [*lots(arguments.scenario, arguments.backend, arguments.mode, arguments.without)]
        random.Random(seed).shuffle(these)
        for lot in these:
            for outcome in run_lot(lot, range(seed, seed + arguments.trials), until):
                report.add(outcome)
                if outcome.violations and not arguments.quiet:
                    print(describe(outcome), flush=True)
            if time.monotonic() > until:
                break
        seed += arguments.trials
        rounds += 1
    print(f"seeds {arguments.seed} to {seed - 1}, {time.monotonic() - began:.0f} s")
    print(report.summary(), flush=True)
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())

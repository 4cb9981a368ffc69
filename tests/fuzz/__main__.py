"""``python -m tests.fuzz --seed 1 --minutes 90 [--parser metadata]``: as `make fuzz` does."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.fuzz.targets import TARGETS
from tests.fuzz.watch import run_batch

_BATCH_S = 60.0


def main() -> int:
    """Run until the time is over; return 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--parser", choices=sorted(TARGETS), action="append")
    parser.add_argument("--inputs", type=int, default=100_000, help="for each parser, then go on")
    arguments = parser.parse_args()
    names = arguments.parser or list(TARGETS)
    end = time.monotonic() + 60 * arguments.minutes
    counts: Counter[str] = Counter()
    found: Counter[str] = Counter()
    size = dict.fromkeys(names, 100)
    while time.monotonic() < end:
        # Whoever is furthest from its number is next.
        name = min(names, key=lambda one: counts[one] / size[one] if counts[one] >= arguments.inputs
                   else counts[one] / arguments.inputs - 1)  # fmt: skip
        began = time.monotonic()
        faults = run_batch(name, arguments.seed, counts[name], size[name])
        counts[name] += size[name]
        took = time.monotonic() - began
        found[name] += len(faults)
        for number, text in faults:
            print(f"{name} seed {arguments.seed} input {number}: {text}", flush=True)
        print(
            f"{name}: {counts[name]} inputs, {found[name]} faults, {size[name] / took:.0f}/s",
            flush=True,
        )
        size[name] = max(50, min(20_000, int(size[name] * _BATCH_S / took)))
    print(
        f"{sum(counts.values())} inputs, {sum(found.values())} faults: {dict(counts)}", flush=True
    )
    return 1 if sum(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

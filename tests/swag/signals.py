"""Signals at a high rate while iterates are collected; the store and the object have to agree.

``python -m tests.swag.signals --seconds 60 --seed 1``.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import signal
import sys
import time
from types import FrameType

import swag
from tests.swag.test_interrupts import Step, assert_moments, check, place

__all__ = ["collect", "main"]

ARRAYS = ["dram", "memmap", "zarr"]


def _raise(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def collect(scheme: str, max_rank: int | None, seed: int, steps: int) -> tuple[int, int]:
    """Collect, interrupted and going on; return how often it was, and what was accepted."""
    rng = random.Random(seed)
    every = rng.randint(1, 5)
    caught = 0
    with place(scheme) as location:
        posterior = swag.SWAG(Step(0), location, max_rank, checkpoint_every=every)
        accepted: list[int] = []
        typical = 1e-3
        for step in range(1, steps + 1):
            model = Step(step)
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 2 * typical))
                posterior.update_parameters(model)
                if rng.random() < 0.1:
                    posterior.flush()
                signal.setitimer(signal.ITIMER_REAL, 0)
                typical /= 1.3  # about as often as not
            except KeyboardInterrupt:
                caught += 1
                typical *= 1.3
            count = posterior.n_averaged
            if count == len(accepted) + 1:
                accepted.append(step)
            if count != len(accepted):
                raise AssertionError(f"{count} are counted, {len(accepted)} were collected")
            if rng.random() < 0.05:
                assert_moments(posterior, accepted)
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 2 * typical))
            posterior.close()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            caught += 1
            posterior.close()
        signal.setitimer(signal.ITIMER_REAL, 0)
        if max_rank == 0:  # what was in memory, if closing was interrupted
            with swag.load(location) as stored:
                accepted = accepted[: stored.n_averaged]
        check(location, accepted, max_rank, every)
    return caught, len(accepted)


def main() -> int:
    """Collect again and again; print what came of it, and 1 at the first disagreement."""
    parser = argparse.ArgumentParser(prog="python -m tests.swag.signals", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    faulthandler.dump_traceback_later(arguments.seconds + 60, exit=True)
    signal.signal(signal.SIGALRM, _raise)
    kinds = [(scheme, rank) for rank in (None, 2, 0) for scheme in ARRAYS]
    deadline = time.monotonic() + arguments.seconds
    runs = interrupts = iterates = 0
    while not runs or time.monotonic() < deadline:
        caught, collected = collect(*kinds[runs % len(kinds)], arguments.seed + runs, 40)
        runs, interrupts, iterates = runs + 1, interrupts + caught, iterates + collected
    print(f"{runs} collections, {interrupts} interrupts, {iterates} iterates: all agree")
    return 0


if __name__ == "__main__":
    sys.exit(main())

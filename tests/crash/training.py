"""``swag train``, killed with SIGKILL at random instants and started again, to the end.

``python -m tests.crash.training --kills 200``, or ``make crash-training KILLS=200``. The posterior
and the state of training must be those of a run that was never interrupted, bit for bit. Each
process is forked from one that has imported PyTorch and done nothing with it, which saves seconds
a kill.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import sys
import tempfile
import time

import numpy as np

import pmarray

__all__ = ["digests", "main", "train_to_the_end"]

_OPTIONS = [
    *("--model", "2fc", "--epochs", "2", "--burn-in", "0.5", "--anneal", "0.5"),
    *("--batch-size", "1000", "--threads", "1", "--checkpoint-every", "3"),
]
_TIMINGS = "training.seconds"  # no two runs share these
_PROGRESS = "swag.progress"
_REWOUND = "rewound"
"""How often iterates were cut off: of a run that was never interrupted, never."""


def digests(url: str) -> dict[str, str]:
    """A digest of every array, and of the attributes, of what a training left."""
    with pmarray.open_group(url, mode="r") as group:
        found = {
            name: hashlib.blake2b(np.ascontiguousarray(group[name][...]).tobytes()).hexdigest()
            for name in group
            if name != _TIMINGS
        }
        attributes = {
            key: {k: v for k, v in value.items() if k != _REWOUND} if key == _PROGRESS else value
            for key, value in group.attrs.items()
        }
        return {**found, "attributes": repr(sorted(attributes.items()))}


def _start(url: str, options: list[str]) -> int:
    """Fork a process that runs ``swag train``; return its id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        from swag.cli import app

        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        app(["train", url, *_OPTIONS, *options], standalone_mode=False)
        code = 0
    finally:
        os._exit(code)


def train_to_the_end(
    url: str, options: list[str], rng: random.Random | None, most_kills: int
) -> tuple[int, str]:
    """Train, killing the process at most so many times; return the kills, and what went wrong."""
    kills = 0
    while True:
        child = _start(url, options)
        if rng is not None and kills < most_kills:
            time.sleep(rng.uniform(0.05, 4.0))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            kills += 1
        elif os.waitstatus_to_exitcode(status) == 0:
            return kills, ""
        else:
            return kills, f"after {kills} kills, swag train failed with status {status}"


def main() -> int:
    """Kill as often as asked and print what came of it; 1 if anything differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.training", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    import swag.app.runs  # noqa: F401 - so that the forked processes need not

    rng = random.Random(arguments.seed)
    kills = runs = different = 0
    with tempfile.TemporaryDirectory(prefix="swag-kills-", dir="/var/tmp") as place:
        expected: dict[str, dict[str, str]] = {}
        while kills < arguments.kills:
            rank = ["all", "5", "0"][runs % 3]
            options = [] if rank == "all" else ["--rank", rank]
            if rank not in expected:
                url = f"memmap:{place}/whole-{rank}"
                train_to_the_end(url, options, None, 0)
                expected[rank] = digests(url)
            url = f"memmap:{place}/cut-{runs}"
            done, wrong = train_to_the_end(url, options, rng, arguments.kills - kills)
            kills += done
            runs += 1
            if not wrong:
                found = digests(url)
                differing = [k for k in expected[rank] if found.get(k) != expected[rank][k]]
                wrong = f"{', '.join(differing)} differ" if differing else ""
            if wrong:
                different += 1
            print(
                f"run {runs}, rank {rank}: {done} kills, {wrong or 'same to the bit'}; "
                f"{kills} kills in all, {different} runs differ",
                flush=True,
            )
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())

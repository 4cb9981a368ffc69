"""``python -m tests.campaigns --seed 1 --jobs 2``: some minutes of campaigns.

A campaign samples what is too much to go through. Each is a program of its own, with a seed and a
time of its own; an hour of one is ``make crash MINUTES=60``, and so on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

__all__ = ["CAMPAIGNS", "main"]

CAMPAIGNS = {
    "interrupts": ("tests.crash.interrupts", "--minutes", "3", "--mode", "points", "--quiet"),
    "crash": ("tests.crash", "--minutes", "3", "--instants", "0.05"),
    "fuzz": ("tests.fuzz", "--minutes", "1"),
    "damage": ("tests.crash.damage", "--minutes", "1"),
}


def main() -> int:
    """Run all of them, some at a time; return 1 if one has found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()

    def run(name: str) -> str:
        """Run one; return what it has found."""
        began = time.monotonic()
        command = [sys.executable, "-m", *CAMPAIGNS[name], "--seed", str(arguments.seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = (done.stdout + done.stderr).splitlines()
        took = f"{name}, {time.monotonic() - began:.0f} s:"
        if done.returncode:
            return "\n".join([took, *lines[-200:]])
        print(took, *lines[-1:], flush=True)
        return ""

    with ThreadPoolExecutor(arguments.jobs) as pool:
        found = [text for text in pool.map(run, CAMPAIGNS) if text]
    for text in found:  # at the end, where it is seen
        print(text, flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

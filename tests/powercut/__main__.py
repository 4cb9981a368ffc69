"""``python -m tests.powercut cuts --cycles 100``, or ``make powercut CYCLES=100 MEDIA="disk"``."""

from __future__ import annotations

import argparse
import sys
import time

from tests.powercut.campaign import Campaign
from tests.powercut.host import CannotRunError, home, scratch
from tests.powercut.media import MEDIA, Medium
from tests.powercut.rig import Rig

__all__ = ["main"]


def main() -> int:
    """Do what the command line says; 1 if there was a violation, 2 if the rig cannot run here."""
    parser = argparse.ArgumentParser(prog="python -m tests.powercut")
    commands = parser.add_subparsers(required=True)
    _cuts_command(commands)
    arguments = parser.parse_args()
    try:
        status: int = arguments.run(arguments)
    except CannotRunError as error:
        print(f"power cuts cannot be tried here: {error}", file=sys.stderr)
        return 2
    return status


def _cuts_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("cuts", help="cut the power at random instants")
    parser.add_argument("--cycles", type=int, default=100, help="cuts a medium")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--media", default="disk memmap-ext4", help=", ".join(MEDIA))
    parser.set_defaults(run=_cuts)


def _cuts(arguments: argparse.Namespace) -> int:
    rig = Rig(_say)
    violations = 0
    for name in arguments.media.split():
        violations += _campaign(rig, MEDIA[name], arguments.seed, arguments.cycles)
    return 1 if violations else 0


def _campaign(rig: Rig, medium: Medium, seed: int, cycles: int) -> int:
    start, violations, during = time.monotonic(), 0, {"writing": 0, "recovery": 0}
    with scratch() as place:
        campaign = Campaign(rig, medium, seed=seed, scratch=place, evidence=home() / "violations")
        for cut in campaign.run(cycles):
            during[cut.during] += 1
            if cut.violation:
                violations += 1
                _say(f"{medium.name}, seed {seed}, cut {cut.number}: {cut.violation}")
    seconds = (time.monotonic() - start) / cycles
    _say(
        f"{medium.name}: {cycles} cuts, {during['recovery']} of them during recovery, "
        f"{seconds:.2f} s a cut, {violations} violations"
    )
    return violations


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())

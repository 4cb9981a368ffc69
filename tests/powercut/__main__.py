"""Power cuts from the command line; see ``docs/how-to/power-cuts.md``.

``python -m tests.powercut cuts --cycles 100 --media "disk devdax"``, or ``make powercut``;
``python -m tests.powercut run --medium devdax program.py`` runs a program on a medium.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.powercut.campaign import Campaign
from tests.powercut.guest import Guest, GuestError
from tests.powercut.host import CannotRunError, home, scratch
from tests.powercut.media import MEDIA, Medium
from tests.powercut.packages import PackageSet
from tests.powercut.replay import replay
from tests.powercut.rig import Rig, copy_disks

__all__ = ["main"]

_LOGGED_CUTS = 50
"""Instants of one log that are looked at."""


def main(words: list[str] | None = None) -> int:
    """Do what the command line says; 1 if there was a violation, 2 if the rig cannot run."""
    parser = argparse.ArgumentParser(prog="python -m tests.powercut")
    commands = parser.add_subparsers(required=True)
    cuts = commands.add_parser("cuts", help="cut the power at random instants")
    logs = commands.add_parser("logs", help="cut the power in the log of a disk's writes")
    for command in (cuts, logs):
        command.add_argument("--cycles", type=int, default=100, help="cuts a medium")
        command.add_argument("--seed", type=int, default=1)
    cuts.add_argument("--media", default="all", help=f"all, or some of: {' '.join(MEDIA)}")
    disks = [medium.name for medium in MEDIA.values() if medium.is_disk]
    logs.add_argument("--media", default=" ".join(disks))
    cuts.set_defaults(work=_cuts)
    logs.set_defaults(work=_logs)
    run = commands.add_parser("run", help="run a Python program in the guest")
    run.add_argument("program", type=Path)
    run.add_argument("arguments", nargs="*", help="{url} and {directory} are the medium's")
    run.add_argument("--medium", choices=MEDIA, default="disk")
    run.add_argument("--disks", type=Path, help="go on with these, for example with a violation's")
    run.add_argument("--cut-at", help="pull the plug when it prints a line that begins so")
    run.add_argument("--keep", type=Path, help="a directory to copy the disks to in the end")
    run.add_argument("--packages", nargs="*", default=[], help="that it needs, for example torch")
    run.add_argument("--memory", type=int, default=1024, help="of the guest, in MiB")
    run.add_argument("--patience", type=float, default=600, help="seconds it may be silent")
    run.set_defaults(work=_run)
    arguments = parser.parse_args(words)
    try:
        status: int = arguments.work(arguments)
    except CannotRunError as error:
        print(f"power cuts cannot be tried here: {error}", file=sys.stderr)
        return 2
    except GuestError as error:
        print(error, file=sys.stderr)
        return 2
    return status


def _cuts(arguments: argparse.Namespace) -> int:
    chosen = _chosen(arguments.media)
    rig = Rig(_say)
    return _status([_cut(rig, m, arguments.seed, arguments.cycles) for m in chosen])


def _logs(arguments: argparse.Namespace) -> int:
    chosen = [medium for medium in _chosen(arguments.media) if medium.is_disk]
    rig = Rig(_say)
    return _status([_log(rig, m, arguments.seed, arguments.cycles) for m in chosen])


def _cut(rig: Rig, medium: Medium, seed: int, cycles: int) -> int:
    start, violations, during = time.monotonic(), 0, {"writing": 0, "recovery": 0}
    with scratch() as place:
        campaign = Campaign(rig, medium, seed=seed, scratch=place, evidence=home() / "violations")
        for cut in campaign.run(cycles):
            during[cut.during] += 1
            if cut.violation:
                violations += 1
                _say(f"{medium.name}, seed {seed}, cut {cut.number}: {cut.violation}")
    seconds = (time.monotonic() - start) / max(1, cycles)
    _say(
        f"{medium.name}: {cycles} cuts, {during['recovery']} of them during recovery, "
        f"{seconds:.2f} s a cut, {violations} violations"
    )
    return violations


def _log(rig: Rig, medium: Medium, seed: int, cycles: int) -> int:
    start, entries, cuts, violations = time.monotonic(), 0, 0, 0
    while cuts < cycles:
        with scratch() as place:
            wanted = min(_LOGGED_CUTS, cycles - cuts)
            result = replay(rig, medium, seed=seed, cuts=wanted, scratch=place)
        for violation in result.violations:
            _say(f"{medium.name}, logged, seed {seed}: {violation}")
        entries += result.entries
        cuts += result.cuts
        violations += len(result.violations)
        seed += 1
    seconds = (time.monotonic() - start) / max(1, cuts)
    _say(
        f"{medium.name}, logged: {cuts} cuts among {entries} entries, {seconds:.2f} s a cut, "
        f"{violations} violations"
    )
    return violations


def _run(arguments: argparse.Namespace) -> int:
    rig, medium = Rig(_say), MEDIA[arguments.medium]
    places = {"url": medium.url, "directory": medium.directory}
    with scratch() as disks:
        if arguments.disks is None:
            rig.fresh(medium, disks)
        else:
            copy_disks(arguments.disks, disks)
        if arguments.packages:
            extra = PackageSet(arguments.packages, without=rig.packages)
            guest = rig.boot(disks, extra, arguments.memory << 20)
        else:
            guest = rig.start(disks)
        with guest:
            guest.do("shell", script=medium.mount)
            guest.order(
                "python",
                program=arguments.program.read_text(),
                arguments=[argument.format_map(places) for argument in arguments.arguments],
            )
            guest.patience_s = arguments.patience
            status = _follow(guest, arguments.cut_at)
            if arguments.cut_at is None:
                guest.do("shell", script="sync")
        if arguments.keep is not None:
            copy_disks(disks, arguments.keep)
    return status


def _follow(guest: Guest, cut_at: str | None) -> int:
    """Print what the program prints, until it ends, or the plug is pulled."""
    for reply in guest.replies("printed", "done"):
        if reply.word == "done":
            return int(reply.value)
        _say(reply.value)
        if cut_at is not None and reply.value.startswith(cut_at):
            guest.pull_the_plug()
            return 0
    raise AssertionError("replies end with an error or not at all")


def _chosen(names: str) -> list[Medium]:
    if names == "all":
        return list(MEDIA.values())
    try:
        return [MEDIA[name] for name in names.split()]
    except KeyError as error:
        raise CannotRunError(f"no medium {error}; there are {', '.join(MEDIA)}") from None


def _status(violations: list[int]) -> int:
    return 1 if any(violations) else 0


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())

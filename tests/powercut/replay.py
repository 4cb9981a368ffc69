"""Replays the log of a disk's writes up to many instants, and judges each.

Pulling the plug of a machine loses what its kernel had not written yet, but not what a disk has in
its own cache: QEMU's disks have none. Here the kernel logs every write and barrier, and what such
a cache could lose is left out.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmarray.testing import Workload
from tests.powercut.media import Medium
from tests.powercut.rig import Rig
from tests.powercut.verdict import judge

__all__ = ["Replay", "replay"]

_LENGTH = 30
"""Transactions of a workload unless told: some hundred requests to the disk."""


@dataclass(frozen=True, slots=True)
class Replay:
    """One log."""

    entries: int
    """Requests and marks in it."""
    cuts: int
    """Instants that were looked at."""
    violations: tuple[str, ...]


def replay(
    rig: Rig,
    medium: Medium,
    *,
    seed: int,
    cuts: int,
    scratch: Path,
    length: int = _LENGTH,
    deaf: bool = False,
) -> Replay:
    """Log a workload on a disk, then cut the power in the log.

    Parameters
    ----------
    rig, medium
        The medium is one on a disk.
    seed
        Decides about the workload, whether its commits are waited for, and about the instants.
    cuts
        How many.
    scratch
        A directory for the disks.
    length
        Of the workload, in transactions.
    deaf
        Whether the calls that ask for durability do nothing, to see that it is noticed.
    """
    workload = Workload(seed, length)
    disks = scratch / "disks"
    rig.fresh(medium, disks)
    shutil.copyfile(disks / "disk", disks / "target")
    violations: list[str] = []
    with rig.start(disks) as guest:
        guest.do(
            "record",
            deaf=deaf,
            url=medium.url,
            seed=seed,
            length=length,
            begin=0,
            wait=seed % 2 == 0,
        )
        guest.order("replay", url=medium.url, count=cuts, seed=seed)
        for count, reply in enumerate(guest.replies("cut", "done")):
            if reply.word == "done":
                return Replay(reply.value, count, tuple(violations))
            if wrong := _judge(workload, reply.value):
                violations.append(wrong)
    raise AssertionError("replies end with an error or not at all")


def _judge(workload: Workload, cut: dict[str, Any]) -> str:
    bounds = cut["committed"], cut["begun"]
    if "error" in cut:
        return f"after {bounds[0]} commits:\n{cut['error']}"
    return judge(workload, *bounds, cut["looked"], cut["recovered"])

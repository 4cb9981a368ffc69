"""A process with less memory than the machine has: a memory cgroup, where one can be made.

The limit is on everything that the process holds, the pages of files in the page cache too. So what
happens to a posterior of 400 GB beside 100 GB of memory can be seen with 4 GB beside 1.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["CgroupError", "join", "limited"]

_MOUNT = Path("/sys/fs/cgroup")


class CgroupError(OSError):
    """No memory cgroup can be made here; the message says why, and what to do."""


@contextmanager
def limited(nbytes: int) -> Iterator[Path]:
    """Make a memory cgroup below this process's own, and remove it afterwards.

    Parameters
    ----------
    nbytes
        Memory that its processes may hold together; there is no swap.

    Yields
    ------
    Path
        What a process passes to `join`.

    Raises
    ------
    CgroupError
        The system has no memory cgroups, or this process may make none.
    """
    group = _own() / f"pmarray-benchmark-{os.getpid()}"
    try:
        group.mkdir()
        limits = (
            ["memory.max", "memory.swap.max"]
            if (group / "memory.max").exists()
            else ["memory.limit_in_bytes"]
        )
        for name in limits:
            if name != "memory.swap.max":
                (group / name).write_text(str(nbytes))
            elif (group / name).exists():
                (group / name).write_text("0")
    except OSError as error:
        if group.exists():
            group.rmdir()
        raise CgroupError(
            f"no memory cgroup can be made here ({error}): run as root, or under "
            "systemd-run --user --scope -p Delegate=yes"
        ) from error
    try:
        yield group / "cgroup.procs"
    finally:
        _remove(group)


def join(processes: Path) -> None:
    """Move this process into a group made by `limited`."""
    processes.write_text(str(os.getpid()))


def _own() -> Path:
    """Find this process's own group, in the hierarchy that has the memory controller."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError as error:
        raise CgroupError("this system has no cgroups") from error
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _MOUNT / "memory" / path.lstrip("/")
    for line in lines:
        if line.startswith("0::"):
            own = _MOUNT / line.removeprefix("0::").lstrip("/")
            if "memory" in (own / "cgroup.subtree_control").read_text().split():
                return own
    raise CgroupError(
        "the memory controller is not handed down to this process: run as root, or under "
        "systemd-run --user --scope -p Delegate=yes"
    )


def _remove(group: Path) -> None:
    """A process that has ended may be in it for a moment more."""
    for _ in range(100):
        try:
            group.rmdir()
        except OSError:
            time.sleep(0.05)
        else:
            return

"""A process with less than the machine has, by a cgroup where one can be made.

A limit of memory is on everything that the process holds, the pages of files in the page cache too.
So what happens to a posterior of 400 GB beside 100 GB of memory can be seen with 4 GB beside 1. A
limit of writing makes a slower device of a fast one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks._counters import device_of

__all__ = ["CgroupError", "join", "limited", "slowed"]

_MOUNT = Path("/sys/fs/cgroup")
_NAME = "pmarray-benchmark-{}"


class CgroupError(OSError):
    """No such cgroup can be made here; the message says why, and what to do."""


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
    group = _own("memory") / _NAME.format(os.getpid())
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


@contextmanager
def slowed(directory: Path, bytes_per_second: float) -> Iterator[None]:
    """Let this process write to a directory's device no faster, until the block ends.

    Parameters
    ----------
    directory
        On the device.
    bytes_per_second
        What it may write.

    Raises
    ------
    CgroupError
        The directory is on no block device, the system cannot slow it down, or this process may
        not.
    """
    device = device_of(directory)
    if device is None:
        raise CgroupError(f"{directory} is on no block device")
    disk = device.parent if (device / "partition").exists() else device
    number = (disk / "dev").read_text().strip()
    own = _own("blkio", "io")
    group = own / _NAME.format(os.getpid())
    try:
        group.mkdir()
        try:
            if (group / "io.max").exists():
                (group / "io.max").write_text(f"{number} wbps={bytes_per_second:.0f}")
            else:
                limit = group / "blkio.throttle.write_bps_device"
                limit.write_text(f"{number} {bytes_per_second:.0f}")
            join(group / "cgroup.procs")
        except OSError:
            group.rmdir()
            raise
    except OSError as error:
        raise CgroupError(f"writing cannot be slowed down here ({error}): run as root") from error
    try:
        yield
    finally:
        join(own / "cgroup.procs")
        _remove(group)


def _own(*controllers: str) -> Path:
    """Find this process's own group, in the hierarchy that has one of the controllers."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError as error:
        raise CgroupError("this system has no cgroups") from error
    for line in lines:
        _, found, path = line.split(":", 2)
        for controller in controllers:
            if controller in found.split(","):
                return _MOUNT / controller / path.lstrip("/")
    for line in lines:
        if line.startswith("0::"):
            own = _MOUNT / line.removeprefix("0::").lstrip("/")
            if set(controllers) & set((own / "cgroup.subtree_control").read_text().split()):
                return own
    raise CgroupError(
        f"the controller {' or '.join(controllers)} is not handed down to this process: run as"
        " root, or under systemd-run --user --scope -p Delegate=yes"
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

"""How much memory this process may still use."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator

__all__ = [
    "address_space_is_counted",
    "available_memory_bytes",
    "memory_bytes",
    "reservable_bytes",
]

_PROC = "/proc"
_CGROUPS = "/sys/fs/cgroup"
_FILE_PAGES = ("inactive_file", "active_file")
_NO_LIMIT = 1 << 62
_PREFIX = "total_"
"""Of what the first version of cgroups says of a group and of those below it."""


def available_memory_bytes(proc: str = _PROC, cgroups: str = _CGROUPS) -> int:
    """Return the memory that this process may still use, in bytes.

    That is what nobody uses, and what the page cache would give back; in a control group, as
    containers and batch systems make them, what is left of its limit. Where a system does not tell,
    it is all of its memory.

    Parameters
    ----------
    proc, cgroups
        Where the system tells.
    """
    return min([_of_machine(proc), *_of_groups(proc, cgroups)])


def memory_bytes() -> int:
    """Return the memory that this machine has, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def reservable_bytes(proc: str = _PROC) -> int:
    """Return the most that the system would let one program reserve at a time, in bytes.

    By default (``vm.overcommit_memory=0``) that is all memory with the swap.
    """
    if _read(f"{proc}/sys/vm/overcommit_memory").strip() == "1":
        return _NO_LIMIT
    swap = re.search(r"^SwapTotal:\s+(\d+) kB$", _read(f"{proc}/meminfo"), re.M)
    return memory_bytes() + (0 if swap is None else int(swap[1]) << 10)


def address_space_is_counted(proc: str = _PROC) -> bool:
    """Whether memory that is reserved counts as if it were used, for this process or for all."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return (
        soft != resource.RLIM_INFINITY or _read(f"{proc}/sys/vm/overcommit_memory").strip() == "2"
    )


def _of_machine(proc: str) -> int:
    if (match := re.search(r"^MemAvailable:\s+(\d+) kB$", _read(f"{proc}/meminfo"), re.M)) is None:
        return memory_bytes()
    return int(match[1]) << 10


def _of_groups(proc: str, cgroups: str) -> Iterator[int]:
    """Yield what is left of each limit that this process is under."""
    for line in _read(f"{proc}/self/cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        if not kinds:
            # Beside groups of the first version, those of the second are mounted apart.
            mounts = {cgroups, f"{cgroups}/unified"}
            names = "memory.max", "memory.current", ""
        elif "memory" in kinds.split(","):
            mounts = {f"{cgroups}/{kinds}", f"{cgroups}/memory"}
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", _PREFIX
        else:
            continue
        # In a container, a group may be mounted as if it were the outermost one.
        parts = path.strip("/").split("/")
        for mount in mounts:
            for depth in range(len(parts) + 1):
                group = "/".join((mount, *parts[:depth]))
                if (left := _left_in(group, *names)) is not None:
                    yield left


def _left_in(group: str, limit_name: str, used_name: str, prefix: str) -> int | None:
    """What is left of a group's limit, if it has one."""
    limit = _read(f"{group}/{limit_name}").strip()
    if not limit.isdigit() or int(limit) >= _NO_LIMIT:
        return None
    used = int(_read(f"{group}/{used_name}").strip() or 0)
    told = dict(line.split(maxsplit=1) for line in _read(f"{group}/memory.stat").splitlines())
    files = sum(int(told.get(prefix + name, 0)) for name in _FILE_PAGES)
    return max(0, int(limit) - max(0, used - files))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""

"""How much memory this process may still use."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["available_memory_bytes"]

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_FILE_PAGES = ("inactive_file", "active_file")
_NO_LIMIT = 1 << 62
_PREFIX = "total_"
"""Of what the first version of cgroups says of a group and of those below it."""


def available_memory_bytes(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
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


def _of_machine(proc: Path) -> int:
    if (match := re.search(r"^MemAvailable:\s+(\d+) kB$", _read(proc / "meminfo"), re.M)) is None:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(match[1]) << 10


def _of_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """Yield what is left of each limit that this process is under."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        if not kinds:
            # Beside groups of the first version, those of the second are mounted apart.
            mounts = (cgroups, cgroups / "unified")
            names = "memory.max", "memory.current", ""
        elif "memory" in kinds.split(","):
            mounts = tuple({cgroups / kinds, cgroups / "memory"})
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", _PREFIX
        else:
            continue
        # In a container, a group may be mounted as if it were the outermost one.
        place = Path(path.lstrip("/"))
        for mount in mounts:
            for group in (mount / place, *(mount / parent for parent in place.parents)):
                if (left := _left_in(group, *names)) is not None:
                    yield left


def _left_in(group: Path, limit_name: str, used_name: str, prefix: str) -> int | None:
    """What is left of a group's limit, if it has one."""
    limit = _read(group / limit_name).strip()
    if not limit.isdigit() or int(limit) >= _NO_LIMIT:
        return None
    used = int(_read(group / used_name).strip() or 0)
    told = dict(line.split(maxsplit=1) for line in _read(group / "memory.stat").splitlines())
    files = sum(int(told.get(prefix + name, 0)) for name in _FILE_PAGES)
    return max(0, int(limit) - max(0, used - files))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

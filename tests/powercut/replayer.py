"""In the guest: logs every write to a disk, and later looks at what parts of that log leave.

The log goes to a second disk. Afterwards it is played onto a third one, which has the same file
system as the first one had, up to a point. There a snapshot is laid over it, so that mounting it
and recovering the group leave no trace, and the log can be played on from there.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tests.powercut import checker
from tests.powercut.writelog import points, read_log, write_entry
from tests.powercut.writer import Say, write

__all__ = ["record", "replay"]

_DISK, _LOG, _TARGET = "/dev/vdd", "/dev/vde", "/dev/vdf"
_MOUNTED = "/disk"


def record(say: Say, *, deaf: bool, **order: Any) -> None:
    """Do a workload as `write` does, with its words as marks in a log.

    With `deaf`, the system calls that ask for durability do nothing: the rig must notice.
    """

    def say_and_mark(word: str, value: Any = None) -> None:
        _run("dmsetup", "message", "logged", "0", "mark", f"{word}-{value}")
        say(word, value)

    table = f"0 {_sectors(_DISK)} log-writes {_DISK} {_LOG}"
    deafness = _deafness() if deaf else contextlib.nullcontext()
    with _mapped("logged", table) as device, _mounted(device), deafness:
        write(say_and_mark, **order)


def replay(say: Say, *, url: str, count: int, seed: int) -> int:
    """Say ``cut`` for as many points of the log, with what a reader and recovery find there."""
    Path("/proc/sys/vm/drop_caches").write_text("3")  # the log was not written through this cache
    _run("modprobe", "brd", "rd_nr=1", f"rd_size={128 << 10}")
    with open(_LOG, "rb") as log, open(_TARGET, "r+b", buffering=0) as target:
        entries = list(read_log(log))
        done = 0
        for point in points(entries, count, random.Random(seed)):
            for entry in entries[done : point.flushed]:
                write_entry(entry, 0, log, target)
            os.fsync(target.fileno())
            done = point.flushed
            table = f"0 {_sectors(_TARGET)} snapshot {_TARGET} /dev/ram0 N 8"
            found: dict[str, Any] = {"committed": point.committed, "begun": point.begun}
            try:
                with _mapped("cut", table) as device:
                    with open(device, "r+b", buffering=0) as disk:
                        for number, part in point.kept:
                            write_entry(entries[number], part, log, disk)
                        os.fsync(disk.fileno())
                    with _mounted(device):
                        found["looked"] = checker.look(url=url)
                        found["recovered"] = checker.recover(say, url=url)
            except Exception:
                found["error"] = traceback.format_exc()
            say("cut", found)
    return len(entries)


@contextlib.contextmanager
def _deafness() -> Iterator[None]:
    kept = os.fsync, os.fdatasync
    os.fsync = os.fdatasync = lambda fd: None
    try:
        yield
    finally:
        os.fsync, os.fdatasync = kept


@contextlib.contextmanager
def _mapped(name: str, table: str) -> Iterator[str]:
    _run("dmsetup", "create", name, "--noudevsync", "--table", table)
    _run("dmsetup", "mknodes", name)  # nobody else does it: there is no udev
    try:
        yield f"/dev/mapper/{name}"
    finally:
        _run("dmsetup", "remove", "--noudevsync", name)


@contextlib.contextmanager
def _mounted(device: str) -> Iterator[None]:
    _run("mount", device, _MOUNTED)
    try:
        yield
    finally:
        _run("umount", _MOUNTED)


def _sectors(device: str) -> int:
    with open(device, "rb") as file:
        return _end(file) // 512


def _end(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _run(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stdout}")

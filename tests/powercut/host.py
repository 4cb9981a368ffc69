"""What the rig needs of the computer that it runs on."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests import machine

__all__ = ["CannotRunError", "home", "obstacle", "scratch", "sh"]

_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "debootstrap": "debootstrap",
    "mkfs.ext4": "e2fsprogs",
}
"""Programs, and the Debian packages that have them."""

_GUEST_PYTHON = (3, 11)
"""Of Debian 12: the guest runs the packages of the Python that started the rig."""


class CannotRunError(Exception):
    """The rig cannot run here; the message says why, and what to do about it."""


def home() -> Path:
    """Return where images are kept: PMARRAY_POWERCUT_HOME, by default in ~/.cache."""
    place = os.environ.get("PMARRAY_POWERCUT_HOME")
    return Path(place) if place else Path.home() / ".cache" / "pmarray-powercut"


def obstacle() -> str:
    """Say why the rig cannot run here; nothing if it can.

    Missing programs are installed if PMARRAY_POWERCUT_INSTALL is set, and root asks.
    """
    if machine.taken("qemu"):
        return "qemu has been taken away by PMARRAY_TEST_WITHOUT"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "needs Linux on x86-64"
    if sys.version_info[:2] != _GUEST_PYTHON:
        wanted = ".".join(map(str, _GUEST_PYTHON))
        return f"the guest is a Debian 12, whose Python is {wanted}: run it with that version"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [package for tool, package in _TOOLS.items() if not shutil.which(tool, path=path)]
    if missing:
        advice = f"apt-get install --no-install-recommends {' '.join(missing)}"
        if not os.environ.get("PMARRAY_POWERCUT_INSTALL"):
            return f"{advice}, or set PMARRAY_POWERCUT_INSTALL=1"
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            return f"needs root on a Debian for: {advice}"
        sh("apt-get", "-qq", "update")
        sh("apt-get", "-qq", "-y", "install", "--no-install-recommends", *missing)
    return ""


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Give a directory for the disks of a machine: in memory, if that has room."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 4 << 30
    with tempfile.TemporaryDirectory(prefix="powercut-", dir=memory if roomy else None) as place:
        yield Path(place)


def sh(*command: str | Path, directory: Path | None = None) -> str:
    """Run a program and return what it prints; if it fails, its last words are the error."""
    # Debian does not put the administrator's programs into everyone's path.
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C", "PATH": path}
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        words = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise CannotRunError(f"{' '.join(map(str, command))} failed:\n{words}")
    return done.stdout

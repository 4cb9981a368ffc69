"""In the guest: carries out the orders that come over a serial line, one a line.

``python -m tests.powercut.agent /dev/ttyS1`` is what the machine does after it has started. A
snapshot of the machine is taken once it has said ``ready``, so everything that takes long to
import is imported here.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import struct
import subprocess
import sys
import termios
import time
import traceback
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zarr  # noqa: F401 - takes a second, which the snapshot saves

import pmarray
from tests.powercut import checker, replayer, writer

__all__ = ["Line", "main"]

_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207


class Line:
    """The serial line."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self._fd)
        self._partial = b""

    def say(self, word: str, value: Any = None) -> None:
        """Send a reply, and return when its last bit has left the machine.

        Nothing that is done afterwards can be done before the host could know of it.
        """
        text = word if value is None else f"{word} {json.dumps(value)}"
        data = text.encode() + b"\n"
        while data:
            data = data[os.write(self._fd, data) :]
        termios.tcdrain(self._fd)

    def hear(self) -> dict[str, Any]:
        """Wait for the next order."""
        while b"\n" not in self._partial:
            self._partial += os.read(self._fd, 1 << 16)
        line, self._partial = self._partial.split(b"\n", 1)
        order: dict[str, Any] = json.loads(line)
        return order


def main() -> None:
    """Say that the machine is ready; then do what is asked, until the power goes."""
    line = Line(sys.argv[1])
    with pmarray.open_group("dram:warm") as group, group.transaction():
        group.create("x", (3, 3))[...] = 1
    _forget_the_disks()
    line.say("ready")
    while True:
        order = line.hear()
        task = order.pop("task")
        try:
            line.say("done", _TASKS[task](line, **order))
        except Exception:
            line.say("failed", traceback.format_exc())


def _forget_the_disks() -> None:
    # When the snapshot is restored the disks are others, and nothing of these may be remembered.
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def _wake(line: Line, *, now: float, entropy: str) -> None:
    """Set the clock, and make the random numbers of this machine its own.

    Every restored machine would draw the same ones otherwise, and unique names would not be.
    """
    del line
    time.clock_settime(time.CLOCK_REALTIME, now)
    data = bytes.fromhex(entropy)
    with open("/dev/urandom", "wb", buffering=0) as device:
        pool = struct.pack("ii", 8 * len(data), len(data)) + data
        fcntl.ioctl(device, _RNDADDENTROPY, pool)
        fcntl.ioctl(device, _RNDRESEEDCRNG)
    random.seed(data)


def _shell(line: Line, *, script: str) -> str:
    """Run a script and return what it printed."""
    del line
    done = subprocess.run(
        ["/bin/sh", "-e", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise OSError(f"status {done.returncode} of the script\n{script}\n{done.stdout}")
    return done.stdout


def _python(line: Line, *, program: str, arguments: list[str]) -> int:
    """Run a program in a Python of its own; say ``printed`` for each line, return its status."""
    script = Path("/tmp/program.py")
    script.write_text(program)
    process = subprocess.Popen(
        [sys.executable, "-u", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/tmp",
    )
    assert process.stdout is not None
    with process.stdout as output:
        for text in output:
            line.say("printed", text.rstrip("\n"))
    return process.wait()


_TASKS: dict[str, Callable[..., Any]] = {
    "wake": _wake,
    "shell": _shell,
    "python": _python,
    "write": lambda line, **order: writer.write(line.say, **order),
    "make": lambda line, **order: writer.make(**order),
    "look": lambda line, **order: checker.look(**order),
    "recover": lambda line, **order: checker.recover(line.say, **order),
    "record": lambda line, **order: replayer.record(line.say, **order),
    "replay": lambda line, **order: replayer.replay(line.say, **order),
}

if __name__ == "__main__":
    main()

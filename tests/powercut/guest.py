"""A machine while it runs: orders go in, replies come out, and the plug can be pulled."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Guest", "GuestError", "Reply"]


class GuestError(Exception):
    """The guest did not do what it should: it failed, fell silent or died."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One line from the guest."""

    word: str
    value: Any = None


class Guest:
    """A running machine. Leaving its context pulls the plug.

    Parameters
    ----------
    command
        Starts it; see `tests.powercut.qemu.Machine`.
    disks
        The directory of its disks, where its console is written to the file ``console``.
    patience_s
        How long it may be silent when a reply is due.
    """

    def __init__(self, command: list[str], disks: Path, *, patience_s: float = 300) -> None:
        self._console = disks / "console"
        self.patience_s = patience_s
        self._errors = disks / "qemu.log"
        self._partial = b""
        self._replies: list[Reply] = []
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._ready = selectors.DefaultSelector()
        self._ready.register(self._output, selectors.EVENT_READ)

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.pull_the_plug()
        self._ready.close()
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        self._output.close()

    def order(self, task: str, **arguments: Any) -> None:
        """Send one order; the replies to it come as it is carried out."""
        line = json.dumps({"task": task, **arguments}) + "\n"
        try:
            self._input.write(line.encode())
        except BrokenPipeError:
            raise GuestError(f"gone before it was asked to {task}{self._last_words()}") from None

    def do(self, task: str, **arguments: Any) -> Any:
        """Send one order and return its result."""
        self.order(task, **arguments)
        return self.wait_for("done")

    def wait_for(self, word: str) -> Any:
        """Return the value of the next reply `word`; others before it are passed over."""
        return next(self.replies(word)).value

    def replies(self, *words: str) -> Iterator[Reply]:
        """Yield replies as they come, those of the words given, if any; this ends by an error."""
        while True:
            reply = self._next()
            if not words or reply.word in words:
                yield reply

    def replies_for(self, seconds: float) -> Iterator[Reply]:
        """Yield the replies that come within so many seconds."""
        until = time.monotonic() + seconds
        while True:
            while self._replies:
                yield self._replies.pop(0)
            left = until - time.monotonic()
            if left <= 0 or not self._read(left):
                return

    def pull_the_plug(self) -> list[Reply]:
        """Kill the machine, now, and return what it had said before and nobody had read.

        A line counts when it is complete: it went out before the power did.
        """
        self._process.kill()
        self._process.wait()
        while self._read(0):
            pass
        said, self._replies = self._replies, []
        return said

    def _next(self) -> Reply:
        until = time.monotonic() + self.patience_s
        while not self._replies:
            if not self._read(max(0.0, until - time.monotonic())):
                dead = self._process.poll() is not None or time.monotonic() < until
                state = "died" if dead else f"said nothing for {self.patience_s:g} s"
                raise GuestError(f"the guest {state}{self._last_words()}")
        reply = self._replies.pop(0)
        if reply.word == "failed":
            raise GuestError(f"in the guest:\n{reply.value}")
        return reply

    def _read(self, timeout_s: float) -> bool:
        """Take in what is there, or comes in time; False if nothing does, or ever will."""
        if self._output.closed or not self._ready.select(timeout_s):
            return False
        data = os.read(self._output.fileno(), 1 << 16)
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            word, _, value = line.decode(errors="replace").partition(" ")
            self._replies.append(Reply(word, json.loads(value) if value else None))
        return bool(data)

    def _last_words(self) -> str:
        words = ""
        for file in (self._errors, self._console):
            if file.exists() and (text := file.read_text(errors="replace").strip()):
                words += "\n" + "\n".join(text.splitlines()[-20:])
        return words

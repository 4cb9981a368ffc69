"""The processes in which the libraries run: they may crash or hang, the rig must not."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from tests.crash.peers.filesystem import MARK
from tests.crash.peers.programs import PEERS, Columns, states, update

__all__ = ["STEPS_AT_MOST", "Reader", "empty", "kill_once", "run_on"]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.crash.peers.workers"])
_READ_SECONDS = 3.0
STEPS_AT_MOST = 40


class Reader:
    """Opens what a crash has left, in another process."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self.complaint = ""
        """What the library said when it could not read."""
        self._start()

    def _start(self) -> None:
        self._ours, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(self._peer, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._ours.recv()  # what it imports first is not part of the time to read

    def read(self, path: Path) -> Columns | None:
        """Return what is found; None if opening fails, crashes or takes too long."""
        self._ours.send(str(path))
        try:
            if not self._ours.poll(_READ_SECONDS):
                raise EOFError
            found = self._ours.recv()
        except EOFError:
            self.close()
            self.complaint = f"crashed ({self._process.exitcode}) or hung"
            self._start()
            return None
        if isinstance(found, str):
            self.complaint = found
            return None
        assert isinstance(found, np.ndarray)
        return found

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._ours.close()


def _serve(peer: str, channel: Connection) -> None:
    importlib.import_module(PEERS[peer].package)
    channel.send("ready")
    while True:
        try:
            path = channel.recv()
        except EOFError:
            return
        answer: Any
        try:
            answer = PEERS[peer].read(path)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        channel.send(answer)


def run_on(peer: str, workload: str, steps: int, place: Path) -> None:
    """Run the program in a mounted file system, from its beginning to its end."""
    process = _CONTEXT.Process(target=_recorded, args=(peer, workload, steps, str(place)))
    process.start()
    process.join(120)
    if process.is_alive():
        process.kill()
        process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"the program of {peer} ended with {process.exitcode}")


def _recorded(peer: str, workload: str, steps: int, place: str) -> None:
    def mark(label: str, number: int) -> None:
        os.setxattr(place, MARK, f"{label} {number}".encode())

    program = PEERS[peer]
    program.create(place, states(workload, 0)[0])
    mark("prepared", 0)
    with program.session(place) as step:
        for i in range(1, steps + 1):
            mark("begun", i)
            step(update(workload, i))
            mark("committed", i)


def kill_once(peer: str, workload: str, rng: random.Random, place: Path) -> tuple[int, int]:
    """Kill the program at a random instant; return the last state promised and the last begun.

    It works in `place`, an empty directory, and is asked for no more than a few dozen updates.
    """
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_reported, args=(peer, workload, str(place), theirs))
    process.start()
    theirs.close()
    low = high = 0
    stop_after, pace, last = rng.randint(2, STEPS_AT_MOST // 2), 0.0, 0.0
    try:
        while high < stop_after:
            label, number = ours.recv()
            low, high = (low, number) if label == "begun" else (number, high)
            if label == "begun":
                now = time.perf_counter()
                pace, last = now - last, now
        time.sleep(rng.uniform(0, 1.2 * pace))
        process.kill()
        while True:
            label, number = ours.recv()
            low, high = (low, number) if label == "begun" else (number, high)
    except EOFError:
        pass  # it is dead
    process.join()
    ours.close()
    if process.exitcode not in (0, -9):
        raise RuntimeError(f"the program of {peer} ended with {process.exitcode}")
    return low, high


def _reported(peer: str, workload: str, place: str, channel: Connection) -> None:
    program = PEERS[peer]
    program.create(place, states(workload, 0)[0])
    with program.session(place) as step:
        for i in range(1, STEPS_AT_MOST + 1):
            channel.send(("begun", i))
            step(update(workload, i))
            channel.send(("committed", i))


@contextmanager
def empty(place: Path) -> Iterator[Path]:
    """Lend a directory that is empty before and gone afterwards."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)

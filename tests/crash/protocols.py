"""Small programs with known promises, on which the rig itself is tried."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmarray._system import osops
from tests.crash.check import Scenario
from tests.crash.events import Mark
from tests.crash.recorder import Recorder

__all__ = ["Overwrites", "Replace", "StoredTooSoon", "StoredUndo", "Undo", "last"]


def last(marks: Sequence[Mark], label: str, default: Any = None) -> Any:
    """Return the value of the last mark with this label."""
    return next((mark.value for mark in reversed(marks) if mark.label == label), default)


def write(fd: int, data: bytes, offset: int) -> None:
    osops.pwritev(fd, [memoryview(data)], offset)


class Replace(Scenario):
    """A file that is replaced: write a temporary, fsync it, rename it, fsync the directory."""

    name = "replace"

    def __init__(self, rounds: int = 3, nbytes: int = 40) -> None:
        self._rounds = rounds
        self._nbytes = nbytes

    def content(self, i: int) -> bytes:
        return bytes([65 + i]) * self._nbytes

    def prepare(self, path: Path) -> None:
        (path / "file").write_bytes(self.content(0))

    def run(self, path: Path, recorder: Recorder) -> None:
        for i in range(1, self._rounds + 1):
            recorder.mark("begun", i)
            fd = osops.open_file(str(path / "new"), write=True, create=True)
            write(fd, self.content(i), 0)
            osops.fsync(fd)
            osops.close(fd)
            osops.rename(str(path / "new"), str(path / "file"))
            osops.fsync_directory(str(path))
            recorder.mark("committed", i)

    def reopen(self, path: Path) -> bytes:
        return (path / "file").read_bytes()

    def objection(self, found: bytes, marks: Sequence[Mark]) -> str | None:
        begun, committed = last(marks, "begun", 0), last(marks, "committed", 0)
        if found in [self.content(i) for i in range(committed, begun + 1)]:
            return None
        return f"neither {committed} nor {begun}"


class Undo(Scenario):
    """Two files that change together, with an undo journal of one record.

    1. The old values go to the journal, with a checksum; the journal is made durable.
    2. The new values are written, and made durable.
    3. The journal is cleared, and made durable: the commit.

    Recovery puts the old values back if the journal's record is whole, makes them durable, and
    clears the journal.
    """

    name = "undo"
    _FILES = ("a", "b")

    def __init__(self, rounds: int = 2) -> None:
        self._rounds = rounds

    def prepare(self, path: Path) -> None:
        for name in (*self._FILES, "journal"):
            (path / name).write_bytes(bytes(48))

    def run(self, path: Path, recorder: Recorder) -> None:
        self._work(path, recorder, 0, self._rounds)

    def _work(self, path: Path, recorder: Recorder, done: int, rounds: int) -> None:
        a, b, journal = (osops.open_file(str(path / n), write=True) for n in (*"ab", "journal"))
        for i in range(done, rounds):
            recorder.mark("begun", i + 1)
            old = struct.pack("<QQ", i, i)
            write(journal, self._record(old), 0)
            osops.fdatasync(journal)
            write(a, struct.pack("<Q", i + 1), 16)
            write(b, struct.pack("<Q", i + 1), 8)
            osops.fdatasync(a)
            osops.fdatasync(b)
            write(journal, bytes(24), 0)
            osops.fdatasync(journal)
            recorder.mark("committed", i + 1)
        for fd in (a, b, journal):
            osops.close(fd)

    @staticmethod
    def _record(old: bytes) -> bytes:
        return struct.pack("<Q", zlib.crc32(old) + (1 << 32)) + old

    def reopen(self, path: Path) -> tuple[int, int]:
        a, b, journal = (osops.open_file(str(path / n), write=True) for n in (*"ab", "journal"))
        record = os.pread(journal, 24, 0)
        osops.fdatasync(journal)
        if record == self._record(record[8:]):
            write(a, record[8:16], 16)
            write(b, record[16:24], 8)
            osops.fdatasync(a)
            osops.fdatasync(b)
            # Not made durable: the record that might come back undoes what has been undone.
            write(journal, bytes(24), 0)
        found = (
            struct.unpack("<Q", os.pread(a, 8, 16))[0],
            struct.unpack("<Q", os.pread(b, 8, 8))[0],
        )
        for fd in (a, b, journal):
            osops.close(fd)
        return found

    def resume(self, path: Path, recorder: Recorder) -> None:
        found = self.reopen(path)
        recorder.mark("recovered", found[0])
        self._work(path, recorder, found[0], found[0] + 1)

    def objection(self, found: tuple[int, int], marks: Sequence[Mark]) -> str | None:
        begun = committed = 0
        for mark in marks:
            if mark.label == "begun":
                begun = mark.value
            else:  # committed, or recovered to this
                begun = committed = mark.value
        if found[0] == found[1] and committed <= found[0] <= begun:
            return None
        return f"not {committed} to {begun}"


class StoredUndo(Undo):
    """The same in persistent memory, mapped in two pieces, the journal in the first.

    The record is stored by a call that makes it durable, everything else in place.
    """

    name = "stored-undo"
    _RECORD, _A, _B = slice(1, 4), slice(512 + 7, 512 + 8), slice(512 + 64, 512 + 65)
    """In words of the mapping; the record shares its line with a word that nobody reads."""

    def prepare(self, path: Path) -> None:
        (path / "memory").write_bytes(bytes(8192))

    @staticmethod
    def _map(path: Path) -> NDArray[np.uint64]:
        fd = osops.open_file(str(path / "memory"), write=True)
        try:
            mapping = osops.map_shared(fd, [(4096, 4096), (0, 4096)], write=True, sync=False)
        finally:
            osops.close(fd)
        return mapping.memory.view(np.uint64)

    def _work(self, path: Path, recorder: Recorder, done: int, rounds: int) -> None:
        memory = self._map(path)
        for i in range(done, rounds):
            recorder.mark("begun", i + 1)
            record = np.frombuffer(self._record(struct.pack("<QQ", i, i)), np.uint8)
            osops.store(memory[self._RECORD].view(np.uint8), record)
            memory[self._A] = memory[self._B] = i + 1
            osops.persist(memory[self._A].view(np.uint8))
            osops.persist(memory[self._B].view(np.uint8))
            memory[self._RECORD] = 0
            osops.persist(memory[self._RECORD].view(np.uint8))
            recorder.mark("committed", i + 1)

    def reopen(self, path: Path) -> tuple[int, int]:
        memory = self._map(path)
        record = memory[self._RECORD].tobytes()
        # Whoever stored it may have been killed, and the line not be written back yet.
        osops.persist(memory[self._RECORD].view(np.uint8))
        if record == self._record(record[8:]):
            memory[self._A], memory[self._B] = struct.unpack("<8xQQ", record)
            osops.persist(memory[self._A].view(np.uint8))
            osops.persist(memory[self._B].view(np.uint8))
            memory[self._RECORD] = 0  # not made durable, as in the parent
        return int(memory[self._A][0]), int(memory[self._B][0])


class StoredTooSoon(StoredUndo):
    """Stores before the before-images are durable: the rig must object."""

    name = "stored-too-soon"

    def _work(self, path: Path, recorder: Recorder, done: int, rounds: int) -> None:
        memory = self._map(path)
        for i in range(done, rounds):
            recorder.mark("begun", i + 1)
            memory[self._A] = i + 1
            record = np.frombuffer(self._record(struct.pack("<QQ", i, i)), np.uint8)
            osops.store(memory[self._RECORD].view(np.uint8), record)
            memory[self._B] = i + 1
            osops.persist(memory[512:].view(np.uint8))
            memory[self._RECORD] = 0
            osops.persist(memory[self._RECORD].view(np.uint8))
            recorder.mark("committed", i + 1)


class Overwrites(Scenario):
    """Records in place, each behind a flag that says it is whole: the rig must object."""

    name = "overwrites"

    def prepare(self, path: Path) -> None:
        (path / "file").write_bytes(bytes(1024))

    def run(self, path: Path, recorder: Recorder) -> None:
        fd = osops.open_file(str(path / "file"), write=True)
        write(fd, b"\1", 0)
        write(fd, b"x" * 256, 512)
        osops.fdatasync(fd)
        osops.close(fd)

    def reopen(self, path: Path) -> bytes:
        data = (path / "file").read_bytes()
        return data[512:768] if data[0] == 1 else b""

    def objection(self, found: bytes, marks: Sequence[Mark]) -> str | None:
        return None if found in (b"", b"x" * 256) else "the flag came before the data"

"""Makes one system call of the library fail, whichever: once with an error, or short."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import pmarray
from pmarray._system import osops
from tests.crash.check import Scenario, scratch
from tests.crash.events import Mark
from tests.crash.images import images
from tests.crash.recorder import Recorder
from tests.crash.stage import Stage

__all__ = ["Fault", "Injector", "Outcome", "all_faults", "suffer"]

_ERRORS: dict[str, tuple[str, ...]] = {
    "pwritev": ("EIO", "ENOSPC", "EINTR", "short", "half"),
    "map_shared": ("ENOMEM", "EIO"),
    "store": ("EIO", "half"),
    "persist": ("EIO",),
    "fdatasync": ("EIO", "ENOSPC", "EINTR"),
    "fsync": ("EIO", "ENOSPC"),
    "fsync_directory": ("EIO",),
    "open_file": ("EIO", "EMFILE", "ENOSPC"),
    "close": ("EIO",),
    "ftruncate": ("EIO", "EINTR"),
    "fallocate": ("ENOSPC", "EINTR"),
    "rename": ("EIO", "ENOSPC"),
    "symlink": ("ENOSPC",),
    "link": ("EMLINK", "ENOSPC"),
    "unlink": ("EIO",),
    "mkdir": ("ENOSPC",),
    "rmdir": ("EIO",),
    "chmod": ("EIO",),
    "chown": ("EIO",),
    "setxattr": ("ENOSPC",),
    "lock": ("ENOLCK",),
    "unlock": ("EIO",),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """The call with this name and index fails in this way.

    "short" writes less than was asked for and says so; "half" writes half and raises EIO.
    """

    call: str
    index: int
    kind: str

    def __str__(self) -> str:
        return f"{self.call} {self.index}: {self.kind}"


class Injector:
    """A context manager: inside it `fault` happens once, and the calls are counted.

    Enter it before a `Recorder`, which then sees what the injector lets through.
    """

    def __init__(self, fault: Fault | None = None) -> None:
        self.calls: Counter[str] = Counter()
        self.fired = False
        self._fault = fault
        self._lock = threading.Lock()
        self._saved: dict[str, Any] = {}

    def __enter__(self) -> Self:
        for name in _ERRORS:
            if hasattr(osops, name):
                self._saved[name] = getattr(osops, name)
                setattr(osops, name, self._wrap(name, self._saved[name]))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for name, real in self._saved.items():
            setattr(osops, name, real)

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                index = self.calls[name]
                self.calls[name] += 1
            fault = self._fault
            if fault is None or (fault.call, fault.index) != (name, index):
                return real(*arguments, **options)
            self.fired = True
            if name == "store" and fault.kind == "half":
                memory, data = arguments
                memory[: len(memory) // 2] = data[: len(memory) // 2]
            elif fault.kind in ("short", "half"):
                return self._write_part(real, fault.kind, *arguments)
            if name in ("close", "unlock"):
                real(*arguments)  # the descriptor is gone all the same
            code = errno.EIO if fault.kind == "half" else getattr(errno, fault.kind)
            raise OSError(code, os.strerror(code))

        return call

    @staticmethod
    def _write_part(
        real: Callable[..., Any], kind: str, fd: int, buffers: Sequence[memoryview], offset: int
    ) -> int:
        first = buffers[0]
        # Direct I/O takes whole blocks; a single one cannot be cut.
        length = max(first.nbytes // 2 // 4096 * 4096, 4096 if first.nbytes % 4096 == 0 else 1)
        done = int(real(fd, [first[:length]], offset))
        if kind == "half":
            error = OSError(errno.EIO, os.strerror(errno.EIO))
            error.written = done  # type: ignore[attr-defined]
            raise error
        return done


def all_faults(calls: Counter[str]) -> Iterator[Fault]:
    """Yield every fault of a program that makes so many calls of each kind."""
    for name, count in sorted(calls.items()):
        for index in range(count):
            for kind in _ERRORS[name]:
                yield Fault(name, index, kind)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a program that suffered a fault."""

    fired: bool
    """Whether the call was made at all; threads may take another course each time."""
    error: Exception | None
    """What the program was told."""
    images: int
    """Disks that were opened afterwards."""
    objections: tuple[str, ...]
    """What was wrong with them."""


def suffer(scenario: Scenario, fault: Fault, *, seed: int = 0) -> Outcome:
    """Run a program until the fault ends it; open what it leaves, and what a power cut then leaves.

    The first image is the newest: what another process finds right afterwards.
    """
    error: Exception | None = None
    objections = []
    count = 0
    with scratch() as path, scenario.surroundings():
        scenario.prepare(path)
        with Injector(fault) as injector, Recorder(path) as recorder:
            try:
                scenario.run(path, recorder)
            except (OSError, pmarray.errors.PMArrayError) as raised:
                error = raised
    disk = recorder.before.copy()
    marks = [event for event in recorder.events if isinstance(event, Mark)]
    for event in recorder.events:
        disk.apply(event)
    with scratch() as path, scenario.surroundings():
        stage = Stage(path)
        for image in images(disk, random.Random(seed), limit=16, samples=4, garbage=False):
            count += 1
            shown = stage.show(image)
            with Recorder(path, shown.copy()) as again:
                try:
                    objection = scenario.objection(scenario.reopen(path), marks)
                except Exception as refusal:
                    objection = repr(refusal)
            for event in again.events:
                shown.apply(event)
            stage.moved_on(shown)
            if objection is not None:
                objections.append(objection)
    return Outcome(injector.fired, error, count, tuple(objections))

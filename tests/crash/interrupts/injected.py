"""What is raised, and a record of where it was."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

__all__ = ["EXCEPTIONS", "PROGRAMS", "AlarmError", "Delivery", "Handler", "Injected", "in_library",
           "is_inside", "raised_at", "where"]  # fmt: skip

RIG = str(Path(__file__).parent) + "/"
PROGRAMS = ("scenarios.py", "large.py", "collection.py", "calibration.py")
"""The modules of this rig that stand for a user's program: interrupted like the library."""


def _directory(package: str) -> str:
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    return str(Path(found.origin).parent) + "/"


_LIBRARIES = (_directory("pmarray"), _directory("swag"))
_ABOVE = str(Path(_LIBRARIES[0]).parent) + "/"


class Injected(BaseException):
    """The mark of what the rig has raised."""


class Interrupt(Injected, KeyboardInterrupt):
    """Ctrl-C."""


class Exit(Injected, SystemExit):
    """A handler of SIGTERM that ends the program."""


class AlarmError(Injected, Exception):
    """A handler that puts an end to what takes too long; ``except Exception`` catches it."""


EXCEPTIONS: dict[str, type[Injected]] = {"interrupt": Interrupt, "exit": Exit, "alarm": AlarmError}


@dataclass(frozen=True, slots=True)
class Delivery:
    """One exception that was raised."""

    inside: str
    """The innermost line of the library: ``file.py:line function``."""
    innermost: str
    """The line where it was raised, which may be in what the library calls."""

    def __str__(self) -> str:
        if self.innermost == self.inside:
            return self.inside
        return f"{self.inside} > {self.innermost}"


def _line(frame: FrameType, number: int | None = None) -> str:
    path = frame.f_code.co_filename
    short = path.removeprefix(_ABOVE) if path.startswith(_ABOVE) else Path(path).name
    return f"{short}:{frame.f_lineno if number is None else number} {frame.f_code.co_name}"


def in_library(frame: FrameType) -> bool:
    """Whether the frame is one of the library itself."""
    return frame.f_code.co_filename.startswith(_LIBRARIES)


def _is_program(frame: FrameType) -> bool:
    path = frame.f_code.co_filename
    return path.startswith(RIG) and path.endswith(PROGRAMS)


def is_inside(frame: FrameType | None) -> bool:
    """Whether the frame is below the program that is interrupted, and not in what the rig notes."""
    while frame is not None:
        if frame.f_code.co_name == "note_unraisable":
            return False
        if _is_program(frame) and frame.f_code.co_name == "operate":
            return True
        frame = frame.f_back
    return False


def where(frame: FrameType | None) -> Delivery:
    """Say where a frame stands."""
    innermost = frame
    while frame is not None and not in_library(frame) and not _is_program(frame):
        frame = frame.f_back
    return Delivery(
        _line(frame) if frame is not None else "?",
        _line(innermost) if innermost is not None else "?",
    )


def raised_at(error: BaseException) -> Delivery:
    """Say where an exception was raised, by its traceback."""
    inside, innermost = "?", "?"
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        innermost = _line(frame, traceback.tb_lineno)
        if in_library(frame) or _is_program(frame):
            inside = innermost
        traceback = traceback.tb_next
    return Delivery(inside, innermost)


class Handler:
    """Raises the exceptions given, one a signal, below the program and nowhere else.

    Parameters
    ----------
    exceptions
        What to raise; once they are used up, signals do nothing.
    then
        Called before each is raised, with the frame where it is.
    """

    def __init__(
        self,
        exceptions: list[type[Injected]],
        then: Callable[[FrameType | None], None] = lambda frame: None,
    ) -> None:
        self.deliveries: list[Delivery] = []
        self.live = True
        self._exceptions = list(exceptions)
        self._then = then

    def install(self, number: int) -> None:
        """Handle this signal from now on."""
        signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if not self.live or not self._exceptions or not is_inside(frame):
            return
        self.deliveries.append(where(frame))
        exception = self._exceptions.pop(0)
        self._then(frame)
        raise exception

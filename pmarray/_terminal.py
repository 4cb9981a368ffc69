"""What a command line says, and what becomes of it where the output takes no more.

`run` makes a command line of a function that has the commands. The standard output raises
`OutputError` there, which is no `OSError`: that what was printed is lost is not that the work has
failed. Names and attributes are a stranger's: what is not printed as it stands, such as the
sequences that a terminal obeys, is escaped by `plain`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import Any, NoReturn, Protocol

__all__ = ["OutputError", "complain", "plain", "run", "say", "say_done"]


class OutputError(Exception):
    """The standard output takes no more."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.is_left = error.errno == errno.EPIPE
        """Whether nobody reads on, as behind ``| head``."""


class Commands(Protocol):
    """A `typer.Typer`."""

    def __call__(self, *, prog_name: str) -> object:
        """Do what the arguments of the process say, and end it."""


class _Output(io.TextIOWrapper):
    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise OutputError(error) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise OutputError(error) from error


def run(name: str, commands: Commands) -> NoReturn:
    """Run a command line; what its output cannot take is told in one line, and ends it with 1."""
    _take_output()
    status: Any = 0
    try:
        try:
            commands(prog_name=name)
        except SystemExit as end:
            status = end.code
        sys.stdout.flush()
    except OutputError as error:
        _drop_output()
        if not (error.is_left or status):  # the command has not told what it ended with
            complain(f"{name}: the output cannot be written: {error}")
        status = status or 1
    except OSError as error:  # of the command line itself, such as --install-completion
        complain(f"{name}: {error}")
        status = 1
    sys.exit(status)


def _take_output() -> None:
    out = sys.stdout
    if out is None:  # closed by who has started it
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # until the process ends
    elif isinstance(out, io.TextIOWrapper):
        encoding, lines, through = out.encoding, out.line_buffering, out.write_through
        sys.stdout = _Output(
            out.detach(),
            encoding,
            "backslashreplace",  # as on stderr: no name ends a command that has done its work
            line_buffering=lines,
            write_through=through,
        )


def _drop_output() -> None:
    """Leave nothing to be written when the process ends, which would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def plain(text: str) -> str:
    r"""Escape what is not printed as it stands.

    >>> plain("\x1b[2J\nwide \udcff")
    '\\x1b[2J\\nwide \\udcff'
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text
    )


def say(text: str) -> None:
    """Print lines on the standard output."""
    sys.stdout.write(_plain_lines(text))


def say_done(text: str) -> None:
    """Print what has been done, and is not to be done again: on stderr where there is no output."""
    try:
        say(text)
        sys.stdout.flush()
    except OutputError:
        complain(text)
        raise


def complain(text: str) -> None:
    """Print lines on the standard error stream, if it takes them."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(_plain_lines(text))
            sys.stderr.flush()


def _plain_lines(text: str) -> str:
    return "".join(f"{plain(line)}\n" for line in text.split("\n"))

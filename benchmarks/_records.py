"""Results as lines of JSON: one for the run, and one for each thing that was measured.

A file holds one run. Its first line says what ran, when and where; tables, figures and the page of
the documentation are made from such files, and from nothing else.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from benchmarks._machine import facts

__all__ = ["Record", "Recording", "read", "recording"]

_PLACES = ("--output", "--directory")

Record = Mapping[str, Any]
"""One measurement: what was measured (``"what"``), its parameters and its figures."""


@dataclass(slots=True)
class Recording:
    """One run of one benchmark."""

    header: dict[str, Any]
    """``benchmark``, ``command``, ``date``, ``parameters``, ``machine``."""
    records: list[Record] = field(default_factory=list)
    sink: TextIO | None = None
    report: Callable[[str], object] = lambda _: None
    """Told in words what is being done."""

    def add(self, what: str, **figures: Any) -> None:
        """Keep one measurement, and write it down at once."""
        record = {"what": what, **figures}
        self.records.append(record)
        if self.sink is not None:
            self.sink.write(json.dumps(record) + "\n")
            self.sink.flush()

    def of(self, what: str) -> list[Record]:
        """Return the measurements of one kind, in their order.

        Examples
        --------
        >>> run = Recording({"benchmark": "limits"})
        >>> run.add("scan", bytes_per_second=8e9)
        >>> run.add("barrier", seconds=3e-4)
        >>> run.of("barrier")
        [{'what': 'barrier', 'seconds': 0.0003}]
        """
        return [record for record in self.records if record["what"] == what]


@contextmanager
def recording(
    benchmark: str,
    output: Path,
    directory: Path | None = None,
    *,
    goes_on: bool = False,
    **parameters: Any,
) -> Iterator[Recording]:
    """Begin a run, whose lines are in ``output/<benchmark>.jsonl`` when it has ended.

    They replace those of an earlier run. A run that is broken off leaves them in
    ``<benchmark>.jsonl.part``, and one of the same parameters may go on with them.

    Parameters
    ----------
    benchmark
        Its name.
    output
        Directory, made if missing.
    directory
        Where the benchmark writes its files, to say what it was measured on.
    goes_on
        Whether the records of such a run that was broken off are kept.
    parameters
        Sizes and counts, as JSON has them.
    """
    output.mkdir(parents=True, exist_ok=True)
    header = {
        "benchmark": benchmark,
        "command": f"python -m benchmarks {_without_paths(sys.argv[1:]) or benchmark}",
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "parameters": parameters,
        "machine": facts(directory),
    }
    part = output / f"{benchmark}.jsonl.part"
    broken_off = _broken_off(part) if goes_on else None
    if broken_off is not None and broken_off.header["parameters"] == parameters:
        header, records = broken_off.header, broken_off.records
    else:
        records = []
    with open(part, "w", encoding="utf-8") as sink:
        sink.writelines(json.dumps(line) + "\n" for line in (header, *records))
        sink.flush()
        run = Recording(header, records, sink=sink)
        try:
            yield run
        finally:
            run.sink = None
    part.replace(output / f"{benchmark}.jsonl")


def _without_paths(arguments: list[str]) -> str:
    """Write a command line down without the places that its files were at.

    >>> _without_paths(["peers", "--output", "/x/y", "--rounds", "2", "--directory=/z"])
    'peers --rounds 2'
    """
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in _PLACES:
            next(rest, None)
        elif argument.partition("=")[0] not in _PLACES:
            kept.append(argument)
    return shlex.join(kept)


def read(file: Path) -> Recording:
    """Read a run back."""
    return _parsed(file.read_text(encoding="utf-8"))


def _broken_off(part: Path) -> Recording | None:
    """What a run left that was broken off; a last line that is not whole is not there."""
    if not part.exists():
        return None
    whole = part.read_text(encoding="utf-8").rpartition("\n")[0]
    return _parsed(whole) if whole else None


def _parsed(text: str) -> Recording:
    header, *records = map(json.loads, text.splitlines())
    return Recording(header, records)

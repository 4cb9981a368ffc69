"""What commands of `benchmarks` have in common: options, and how they measure and print."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks._machine import describe
from benchmarks._records import Recording, recording
from benchmarks._tables import Table

__all__ = [
    "RESULTS",
    "RUNS",
    "Directory",
    "Model",
    "Output",
    "Probe",
    "Quick",
    "Rounds",
    "Seconds",
    "Shelves",
    "Threads",
    "carry_out",
]

Model = Annotated[str, typer.Option(help="Network: 2conv2fc, 2fc, 3fc or 4fc.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads that train; PyTorch's choice if not given.")
]
Directory = Annotated[
    Path,
    typer.Option(help="Where files are written, and removed; on the disk to be measured."),
]
Output = Annotated[
    Path, typer.Option(help="Directory for the JSON lines, of which `page` makes a page.")
]
Rounds = Annotated[int, typer.Option(min=1, help="Interleaved rounds.")]
Probe = Annotated[
    int,
    typer.Option(min=8, help="MiB written, and touched, to see what the machine itself can do."),
]
Quick = Annotated[bool, typer.Option("--quick", help="A trial of about a minute.")]
Seconds = Annotated[
    float, typer.Option(min=0, help="Seconds after which a run is broken off, to be extrapolated.")
]
Shelves = Annotated[
    list[str] | None,
    typer.Option(
        "--shelf",
        help="Persistent memory: a directory on DAX, a DAX device (replaced!), DIR?engine=pymm.",
    ),
]
RUNS = Path("runs")
RESULTS = Path("runs/results")


def carry_out(
    name: str,
    measure: Callable[..., object],
    tables: Callable[[Recording], list[Table]],
    output: Path,
    directory: Path | None = None,
    hidden: dict[str, Any] | None = None,
    goes_on: bool = False,
    **parameters: Any,
) -> None:
    """Measure, write every measurement down as it is made, and print the tables.

    What is `hidden` is handed on and not recorded: paths. A run that `goes_on` does with what one
    of the same parameters has left that was broken off.
    """
    # A table in a file or a pipe need not be as narrow as a terminal that is not there.
    console = Console(width=None if sys.stdout.isatty() else 160)
    handed_on: dict[str, Any] = dict(hidden or {})
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        handed_on["directory"] = directory
    with recording(name, output, directory, goes_on=goes_on, **parameters) as run:
        console.print(describe(run.header["machine"]), highlight=False, soft_wrap=True)
        with console.status("") as status:
            run.report = status.update
            measure(run, **parameters, **handed_on)
    for table in tables(run):
        console.print(table.to_rich())

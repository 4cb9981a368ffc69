"""The command line: ``pmarray info | ls | verify | recover``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import pmarray
from pmarray._sizes import format_bytes

__all__ = ["app"]

app = typer.Typer(
    help="Look at groups of arrays, check them and recover them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
URLArgument = Annotated[str, typer.Argument(help="memmap:/dir, a directory, or a .npy file")]


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except pmarray.PMArrayError as error:
        typer.echo(f"pmarray: {error}", err=True)
        raise typer.Exit(2) from error


@app.command()
def info(url: URLArgument) -> None:
    """Print the arrays and attributes of a group as of its last commit."""
    with _errors_in_one_line(), pmarray.open_group(url, mode="r") as group:
        table = Table("array", "shape", "dtype", "layout", "size", "chunk")
        for name in group:
            array = group[name]
            table.add_row(
                name,
                str(array.shape),
                str(array.dtype),
                array.layout,
                format_bytes(array.nbytes),
                str(array.chunks),
            )
        console = Console()
        console.print(group.url)
        console.print(table)
        for key, value in group.attrs.items():
            console.print(f"{key} = {value!r}", soft_wrap=True)


@app.command()
def ls(url: URLArgument) -> None:
    """Print the names of the arrays of a group."""
    with _errors_in_one_line(), pmarray.open_group(url, mode="r") as group:
        for name in group:
            typer.echo(name)


@app.command()
def verify(url: URLArgument) -> None:
    """Check metadata, journal, sizes and checksums, and change nothing; status 1 if damaged."""
    with _errors_in_one_line():
        findings = pmarray.verify(url)
    for finding in findings:
        kind = "damaged" if finding.damaged else "note"
        typer.echo(f"{kind}: {finding.where}: {finding.message}")
    damaged = sum(finding.damaged for finding in findings)
    typer.echo(f"{url}: {damaged} damaged, {len(findings) - damaged} notes")
    if damaged:
        raise typer.Exit(1)


@app.command()
def recover(url: URLArgument) -> None:
    """Bring a group back to its last commit, as the next writer would."""
    with _errors_in_one_line():
        done = pmarray.recover(url)
    typer.echo(f"{url}: as of transaction {done.transaction}; {done.images} before-images put back")

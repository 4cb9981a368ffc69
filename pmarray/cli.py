"""The command line: ``pmarray info | ls | head | copy | verify | recover | doctor | format``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

import pmarray
from pmarray._dtypes import decode_dtype, encode_dtype
from pmarray._sizes import format_bytes, parse_bytes
from pmarray._terminal import complain, plain, run, say, say_done
from pmarray._upkeep.doctor import examine, examine_machine
from pmarray._upkeep.reading import describe_reads
from pmarray._url import URL
from pmarray.backends.shelf import devices
from pmarray.backends.shelf.pool import Pool
from pmarray.errors import ArrayExistsError, GroupExistsError, URLError

__all__ = ["app"]

# Exits with 0, 1 after a told error, 2 after wrong usage, 3 where the answer is bad: damage, or a
# place that cannot be used; 130 after an interrupt.
_BAD = 3

app = typer.Typer(
    help="Look at groups of arrays, copy them, check them and recover them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
URLArgument = Annotated[
    str, typer.Argument(help="of a group: scheme:place, a directory, or a .npy file")
]
ArrayArgument = Annotated[str, typer.Argument(help="as for pmarray.open, #name picks an array")]

_HEAD_BYTES = 16 << 20
_HEAD_ITEMS = 10_000
_UNLIMITED = 1_000_000


def main() -> None:
    """Run the command line."""
    run("pmarray", app)


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        complain("interrupted")
        raise typer.Exit(130) from None
    except (pmarray.PMArrayError, OSError) as error:
        complain(f"pmarray: {error}")
        raise typer.Exit(1) from error


def _print_version(asked: bool) -> None:
    if asked:
        say(f"pmarray {pmarray.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", help="print the version", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    pass


def _without_name(url: URL) -> str:
    return str(url._replace(name=None))


def _check_size(text: str) -> str:
    try:
        if text != "auto":
            parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return text


@app.command()
def info(
    url: ArrayArgument,
    as_json: Annotated[bool, typer.Option("--json", help="for programs: one JSON object")] = False,
) -> None:
    """Print the arrays and attributes of a group, or those of one array, as of the last commit."""
    with _errors_in_one_line():
        parsed = URL.parse(url)
        with pmarray.open_group(_without_name(parsed), mode="r") as group:
            names = list(group) if parsed.name is None else [parsed.name]
            described = {
                "url": group.url,
                "arrays": {name: _describe(group[name]) for name in names},
                "attrs": dict(group.attrs if parsed.name is None else group[parsed.name].attrs),
            }
    if as_json:
        say(json.dumps(described, indent=1))
    else:
        _print_info(described)


def _describe(array: pmarray.PMArray) -> dict[str, Any]:
    return {
        "shape": list(array.shape),
        "dtype": encode_dtype(array.dtype),
        "layout": array.layout,
        "chunks": list(array.chunks),
        "nbytes": array.nbytes,
        "stored_nbytes": array.info.stored_nbytes,
        "fill_value": array.fill_value.item() if array.dtype.kind in "bif" else None,
    }


def _print_info(described: dict[str, Any]) -> None:
    table = Table("shape", "dtype", "layout", "size", "stored", "chunk")
    # A name that is cut is no name. What is piped has no width that it would have to fit.
    table.columns.insert(0, Column("array", overflow="fold"))
    for name, array in described["arrays"].items():
        table.add_row(
            Text(plain(name)),
            str(tuple(array["shape"])),
            Text(plain(str(decode_dtype(array["dtype"])))),
            array["layout"],
            format_bytes(array["nbytes"]),
            format_bytes(array["stored_nbytes"]),
            str(tuple(array["chunks"])),
        )
    console = Console(width=None if sys.stdout.isatty() else _UNLIMITED)
    console.print(Text(plain(described["url"])), soft_wrap=True)
    console.print(table)
    for key, value in described["attrs"].items():
        console.print(Text(plain(f"{key} = {value!r}")), soft_wrap=True)


@app.command()
def ls(url: URLArgument) -> None:
    """Print the names of the arrays of a group."""
    with _errors_in_one_line(), pmarray.open_group(url, mode="r") as group:
        for name in group:
            say(name)


@app.command()
def head(
    url: ArrayArgument,
    count: Annotated[int, typer.Option("-n", min=1, help="items along each axis")] = 5,
) -> None:
    """Print the first items of an array along each axis; of many axes, fewer."""
    with _errors_in_one_line(), pmarray.open(url, mode="r") as array:
        most = max(1, min(_HEAD_ITEMS, _HEAD_BYTES // array.itemsize))
        along = min(count, max(1, int(most ** (1 / max(1, array.ndim)))))
        corner = array[tuple(slice(0, along) for _ in array.shape)]
        say(repr(array))
        with np.printoptions(threshold=_HEAD_ITEMS):
            say(repr(corner))
        if corner.shape != array.shape:
            say(f"the first {corner.shape} of {array.shape}")


@app.command()
def copy(
    src: ArrayArgument,
    dst: ArrayArgument,
    layout: Annotated[
        pmarray.LayoutName | None, typer.Option(help="that of the source by default")
    ] = None,
    cache: Annotated[
        str, typer.Option(help="memory to use, such as '1 GiB'", callback=_check_size)
    ] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the array, or all of the group")
    ] = False,
    codec: Annotated[
        list[str] | None,
        typer.Option(help="of a chunk store, such as zstd; again for the next one"),
    ] = None,
) -> None:
    """Copy an array, or, where neither URL has a #name, all of a group.

    The copy is complete or not there; what it replaces stays until it is complete.
    """
    with _errors_in_one_line():
        one = any(URL.parse(url).name is not None for url in (src, dst))
        work = pmarray.copy if one else pmarray.copy_group
        try:
            options: Any = {"codecs": codec} if codec else {}
            work(src, dst, mode="w" if overwrite else "w-", layout=layout, cache=cache,
                 progress=True, **options)  # fmt: skip
        except TypeError as error:
            if not codec:
                raise
            raise URLError(f"--codec: {error}") from error
        except (ArrayExistsError, GroupExistsError) as error:
            what = "an array" if one else "something"
            raise type(error)(
                f"there is {what} at {dst} already: --overwrite replaces it"
            ) from error


@app.command()
def verify(
    url: URLArgument,
    data: Annotated[
        bool | None,
        typer.Option(help="read every byte; unless told, decode every chunk of a chunk store"),
    ] = None,
) -> None:
    """Check metadata, journal, sizes and checksums, and change nothing; status 3 if damaged."""
    with _errors_in_one_line():
        findings = pmarray.verify(url, data=data)
    for finding in findings:
        kind = "damaged" if finding.damaged else "note"
        say(f"{kind}: {finding.where}: {finding.message}")
    damaged = sum(finding.damaged for finding in findings)
    say(f"{url}: {damaged} damaged, {len(findings) - damaged} notes")
    if damaged:
        raise typer.Exit(_BAD)


@app.command()
def recover(
    url: URLArgument,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="where the journal is damaged: keep what there is, and say "
            "what is lost; copy the directory before",
        ),
    ] = False,
) -> None:
    """Bring a group back to its last commit, as the next writer would; status 3 if some is lost."""
    with _errors_in_one_line():
        done = pmarray.recover(url, force=force)
    told = f"{url}: as of transaction {done.transaction}; {done.images} before-images put back"
    say_done("\n".join([told, *(f"lost: {what}" for what in done.lost)]))
    if done.lost:
        raise typer.Exit(_BAD)


@app.command()
def doctor(
    url: Annotated[
        str | None, typer.Argument(help="a URL, a directory, or a device such as /dev/dax0.0")
    ] = None,
    reads: Annotated[
        bool, typer.Option("--reads", help="read a GB of a group, to say how it is read fastest")
    ] = False,
) -> None:
    """Say what a place is, which durability it gets, and why; nothing is changed."""
    with _errors_in_one_line():
        found = examine_machine() if url is None else examine(url)
        if reads and found.url is not None:
            found.facts["reads"] = describe_reads(found.place)
    say(found.place)
    for name, value in found.facts.items():
        say(f"  {name + ':':<12} {value}")
    if found.url is not None:
        say(f"  {'open it as:':<12} {found.url}")
    say(f"  {'durability:':<12} {found.durability}")
    if url is not None and found.url is None:
        raise typer.Exit(_BAD)


@app.command("format")
def format_(
    device: Annotated[str, typer.Argument(help="a device such as /dev/dax0.0")],
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Make an empty pool on a DAX device, for one group; what is on it is lost."""
    with _errors_in_one_line():
        found = devices.find_device(device)
        if found is None:
            raise URLError(f"{device} is no DAX device; a directory needs no formatting")
        pool = Pool(found, writable=True)
        if not yes:
            typer.confirm(
                f"{device} ({format_bytes(found.nbytes)}) holds {pool.contents()}. Overwrite it?",
                abort=True,
            )
        pool.make_empty()
    say_done(f"{device}: an empty pool of {format_bytes(found.nbytes)}; open it as shelf:{device}")

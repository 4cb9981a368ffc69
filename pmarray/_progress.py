"""Reports of progress: to a function of the caller's, or as a bar on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Progress", "reporting"]

Progress = Callable[[int, int], object]
"""Called with the bytes that are done and the bytes there are."""


@contextmanager
def reporting(progress: bool | Progress) -> Iterator[Progress]:
    """Give the function to report to for the time of the block."""
    if callable(progress):
        yield progress
    elif progress:
        with _bar() as show:
            yield show
    else:
        yield lambda done, total: None


@contextmanager
def _bar() -> Iterator[Progress]:
    """Draw a bar on the standard error stream; nothing where that is no terminal."""
    from rich import progress  # 60 ms, for those who look
    from rich.console import Console

    console = Console(stderr=True)
    columns = (
        progress.BarColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("copy", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield show

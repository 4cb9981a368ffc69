"""Reports of progress: to a function of the caller's, or as a bar on the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pmarray._sizes import format_bytes

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
    """Draw a bar on the standard error stream, or in a notebook; elsewhere nothing."""
    from rich import progress  # 60 ms, for those who look
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_jupyter:
        yield _notebook_bar()
        return
    if not console.is_terminal:  # where older versions of rich end a disabled bar by an empty line
        yield lambda done, total: None
        return
    columns = (
        progress.BarColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console) as bar:
        task = bar.add_task("copy", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield show


def _notebook_bar() -> Progress:
    """Draw a bar below the cell, by what every notebook has."""
    from IPython.display import HTML, display

    handle = display(HTML("<progress></progress>"), display_id=True)
    shown = 0.0

    def show(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if done < total and now - shown < _REDRAW_SECONDS:
            return
        shown = now
        handle.update(
            HTML(
                f"<progress value={done} max={max(1, total)}></progress> "
                f"{format_bytes(done)} of {format_bytes(total)}"
            )
        )

    return show


_REDRAW_SECONDS = 0.1

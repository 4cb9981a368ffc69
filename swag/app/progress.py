"""What a user sees of training: a bar with rate, bytes written and remaining time."""

from __future__ import annotations

import math
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from swag.app.training import Step, Trainer

__all__ = ["TrainingProgress"]


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f} steps/s" if task.speed else "", style="cyan")


class TrainingProgress:
    """A bar on a terminal, and a line an epoch anywhere, so that a log tells the story too.

    Use it as a context manager and give `update` to whatever trains.

    Parameters
    ----------
    console
        Where to print.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _Rate(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("[green]{task.fields[written]} written"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            # Drawing takes the interpreter lock from the training thread; four times a second is
            # enough for the eye.
            refresh_per_second=4,
            expand=True,
        )
        self._task = self._bar.add_task("burn-in", loss=math.nan, written=decimal(0))
        self._losses: list[float] = []
        self._seconds = 0.0

    def __enter__(self) -> Self:
        if not self._bar.disable:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._bar.disable:  # older versions of rich print an empty line all the same
            self._bar.stop()

    def update(self, trainer: Trainer, step: Step, written_bytes: int) -> None:
        """Show a step.

        Parameters
        ----------
        trainer
            At work; says how many steps there are.
        step
            The step just done.
        written_bytes
            Bytes of iterates given to the store so far.
        """
        self._losses.append(step.loss)
        self._seconds += step.train_seconds
        if not math.isnan(step.collect_seconds):
            self._seconds += step.collect_seconds
        epoch, within = divmod(step.index + 1, trainer.steps_per_epoch)
        self._bar.update(
            self._task,
            total=trainer.n_steps,
            completed=step.index + 1,
            description="burn-in" if math.isnan(step.collect_seconds) else "collecting",
            loss=sum(self._losses[-50:]) / len(self._losses[-50:]),
            written=decimal(written_bytes),
        )
        if within == 0:
            self._console.print(
                f"epoch {epoch}/{trainer.recipe.epochs}"
                f"  loss {sum(self._losses) / len(self._losses):.4f}"
                f"  lr {step.lr:.3g}"
                f"  {len(self._losses) / self._seconds:.0f} steps/s"
                f"  {decimal(written_bytes)} written",
                highlight=False,
            )
            self._losses.clear()
            self._seconds = 0.0

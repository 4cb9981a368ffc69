"""A training run and its posterior in one picture: loss, cost of collection, reliability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from swag.metrics import Reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["History", "draw"]

Floats = NDArray[np.float64]

# Okabe and Ito's colours, told apart by colour-blind readers, in the order of the table's rows.
_COLOURS = ("#999999", "#E69F00", "#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#D55E00")
_TRAIN, _COLLECT = "#0072B2", "#D55E00"
_NOTE = "#444444"

_FEWEST = 10
"""Images that a bin of the reliability diagram needs: below, its accuracy is mostly chance."""


@dataclass(frozen=True, slots=True)
class History:
    """What training recorded, one number a minibatch; all of shape (steps,), float64."""

    loss: Floats
    """Cross-entropy in nats; NaN where training has not got to."""
    train_seconds: Floats
    """Wall time of forward, backward and update."""
    collect_seconds: Floats
    """Wall time for which collection held up training; NaN where nothing was collected."""
    steps_per_epoch: int
    """Minibatches in an epoch."""


def draw(
    history: History,
    diagrams: Sequence[tuple[str, Reliability]],
    path: Path | str,
    *,
    title: str = "",
) -> None:
    """Draw the picture and write it to a file, without a display.

    Parameters
    ----------
    history
        Of the training run; the collected part is recognised by `collect_seconds`.
    diagrams
        Label and reliability of each model to compare, in the order of the legend.
    path
        File to write; its suffix (.png, .pdf, .svg) says the format. Directories are made.
    title
        Printed above the picture.

    Raises
    ------
    ValueError
        The suffix names no format that matplotlib writes.
    OSError
        The file cannot be written.

    Examples
    --------
    >>> import tempfile, torch
    >>> from swag.metrics import reliability
    >>> diagram = reliability(torch.tensor([[0.75, 0.25]]), torch.tensor([0]))
    >>> history = History(np.ones(4), np.full(4, 0.01), np.full(4, 0.002), steps_per_epoch=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw(history, [("SGD", diagram)], Path(folder) / "run.png")
    ...     (Path(folder) / "run.png").stat().st_size > 10_000
    True
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A Figure of its own, not pyplot: no global state, and no window system is looked for.
    figure = Figure(figsize=(13.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 3, height_ratios=[3, 1])
    _draw_loss(figure.add_subplot(grid[:, 0]), history)
    _draw_cost(figure.add_subplot(grid[:, 1]), history)
    upper = figure.add_subplot(grid[0, 2])
    _draw_reliability(upper, figure.add_subplot(grid[1, 2], sharex=upper), diagrams)
    if title:
        figure.suptitle(title, fontsize=11)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)


def _draw_loss(axes: Axes, history: History) -> None:
    epochs = _epochs(history)
    axes.plot(epochs, history.loss, color=_TRAIN, alpha=0.18, linewidth=0.6, label="minibatch")
    window = max(1, history.steps_per_epoch // 12)
    axes.plot(
        epochs,
        _running_median(history.loss, window),
        color=_TRAIN,
        linewidth=1.6,
        label=f"median of {window}",
    )
    axes.set_yscale("log")
    _shade_collection(axes, history)
    axes.set(xlabel="epoch", ylabel="training loss (nats)", title="Loss")
    axes.set_xlim(0, len(epochs) / history.steps_per_epoch)
    axes.legend(loc="upper right", frameon=False, fontsize=8)
    _tidy(axes)


def _draw_cost(axes: Axes, history: History) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    epochs = _epochs(history)
    window = max(1, history.steps_per_epoch // 12)
    train, collect = 1000 * history.train_seconds, 1000 * history.collect_seconds
    collected = ~np.isnan(collect)
    known = ~np.isnan(train)
    parts = [(f"training: median {_medians(train[known], collected[known])}", train, known, _TRAIN)]
    if collected.any():
        told = f"held up by collection: median {np.median(collect[collected]):.3g} ms"
        parts.append((told, collect, collected, _COLLECT))
    for label, ms, there, colour in parts:
        at, values = epochs[there], ms[there]
        axes.plot(at, values, ".", color=colour, alpha=0.2, markersize=2, markeredgewidth=0)
        smooth = _running_median(values, window)
        axes.plot(at, smooth, color=colour, linewidth=1.6, label=label)
    axes.set_yscale("log")
    _shade_collection(axes, history)
    axes.set(xlabel="epoch", ylabel="time of a minibatch (ms)", title="Cost of collection")
    plain = FuncFormatter(lambda ms, _: f"{ms:g}")
    axes.yaxis.set(major_formatter=plain, minor_locator=LogLocator(subs=(2, 5)))
    axes.yaxis.set_minor_formatter(plain)
    axes.set_xlim(0, len(epochs) / history.steps_per_epoch)
    axes.legend(loc="best", frameon=False, fontsize=8)
    _tidy(axes)


def _draw_reliability(
    upper: Axes, lower: Axes, diagrams: Sequence[tuple[str, Reliability]]
) -> None:
    upper.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    for (label, diagram), colour in zip(diagrams, _COLOURS, strict=False):
        count = diagram.count.numpy()
        enough = count >= _FEWEST
        upper.plot(
            diagram.confidence.numpy()[enough],
            diagram.accuracy.numpy()[enough],
            "o-",
            color=colour,
            markersize=3.5,
            linewidth=1.2,
            label=label,
        )
        lower.stairs(np.maximum(count, 0.5), diagram.edges.numpy(), color=colour, linewidth=1.2)
    upper.set(ylabel="accuracy", title="Reliability on the test set", ylim=(0, 1.02))
    upper.legend(loc="upper left", frameon=False, fontsize=8)
    upper.annotate(
        f"bins of at least {_FEWEST} images",
        (0.98, 0.03),
        xycoords="axes fraction",
        ha="right",
        fontsize=8,
        color=_NOTE,
    )
    lower.set(xlabel="confidence", ylabel="images", yscale="log", xlim=(0, 1), ylim=(0.5, None))
    upper.tick_params(labelbottom=False)
    _tidy(upper)
    _tidy(lower)


def _medians(train_ms: Floats, collected: NDArray[np.bool_]) -> str:
    """Training alone, and while iterates are worked on and written behind its back."""
    alone, beside = train_ms[~collected], train_ms[collected]
    if not alone.size or not beside.size:
        return f"{np.median(train_ms):.3g} ms"
    return f"{np.median(alone):.3g} ms, {np.median(beside):.3g} ms while collecting"


def _epochs(history: History) -> Floats:
    return np.arange(1, len(history.loss) + 1) / history.steps_per_epoch


def _shade_collection(axes: Axes, history: History) -> None:
    collected = np.flatnonzero(~np.isnan(history.collect_seconds))
    if collected.size:
        bounds = _epochs(history)[collected[[0, -1]]]
        axes.axvspan(*bounds, color=_TRAIN, alpha=0.07, linewidth=0)
        axes.annotate(
            "collecting",
            (float(bounds.mean()), 0.02),
            xycoords=("data", "axes fraction"),
            ha="center",
            fontsize=8,
            color=_NOTE,
        )


def _running_median(values: Floats, window: int) -> Floats:
    """Median of `window` values around each place; NaN where there are too few on a side."""
    if len(values) < window:
        return np.full(len(values), np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(values, window)
    medians = np.full(len(values), np.nan)
    start = (window - 1) // 2
    medians[start : start + len(windows)] = np.median(windows, axis=1)
    return medians


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, alpha=0.25, linewidth=0.5)

"""An evaluation as a table, as JSON, and as a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from pmarray._terminal import plain
from swag.app.evaluation import Evaluation
from swag.app.figures import History, draw

__all__ = ["as_json", "check_picture", "facts_table", "picture", "table"]


def table(found: Evaluation) -> Table:
    """Lay an evaluation out as a table of one row a model.

    Parameters
    ----------
    found
        What :func:`swag.app.evaluation.evaluate` returned.

    Returns
    -------
    rich.table.Table
        Accuracy and ECE in per cent, NLL in nats; the best of each column is bold.
    """
    caption = f"{found.n_averaged:,} iterates, rank {found.rank:,}, {found.samples} samples"
    laid_out = Table(title=f"MNIST test set, {found.run.recipe.model}", caption=caption)
    laid_out.add_column("model")
    for heading in ("accuracy %", "NLL", "ECE %", "Brier"):
        laid_out.add_column(heading, justify="right")
    cells = [
        (
            f"{100 * row.scores.accuracy:.2f}",
            f"{row.scores.nll:.4f}",
            f"{100 * row.scores.ece:.2f}",
            f"{row.scores.brier:.4f}",
        )
        for row in found.rows
    ]
    columns = list(zip(*cells, strict=True))
    # Compared as printed, so that a tie to the digits shown is a tie.
    best = [max(columns[0], key=float), *(min(column, key=float) for column in columns[1:])]
    for row, values in zip(found.rows, cells, strict=True):
        marked = [
            f"[bold]{value}[/bold]" if value == top else value
            for value, top in zip(values, best, strict=True)
        ]
        laid_out.add_row(row.name, *marked)
    return laid_out


def as_json(found: Evaluation) -> dict[str, Any]:
    """Give an evaluation as values that JSON can carry.

    Parameters
    ----------
    found
        What :func:`swag.app.evaluation.evaluate` returned.

    Returns
    -------
    dict
        `rows`: the scores of each model by name, fractions not per cent; `recipe`; `n_averaged`;
        `rank`; `samples`; `scale`; `seed`.
    """
    return {
        "rows": {row.name: dataclasses.asdict(row.scores) for row in found.rows},
        "recipe": found.run.recipe.to_json(),
        "n_averaged": found.n_averaged,
        "rank": found.rank,
        "samples": found.samples,
        "scale": found.scale,
        "seed": found.seed,
    }


def check_picture(path: Path) -> None:
    """See whether `picture` will be able to write a file, before what it shows is worked out.

    Parameters
    ----------
    path
        The file; it is not made, but its directory is.

    Raises
    ------
    ValueError
        The suffix names no format that matplotlib writes.
    OSError
        A file cannot be written there.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    known = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in known:
        raise ValueError(f"{path} has no suffix of a picture: {', '.join(sorted(known))}")
    path.parent.mkdir(parents=True, exist_ok=True)
    existed = path.exists()
    with path.open("ab"):
        pass
    if not existed:
        path.unlink()


def picture(found: Evaluation, path: Path) -> None:
    """Draw an evaluation and the training before it.

    Parameters
    ----------
    found
        What :func:`swag.app.evaluation.evaluate` returned.
    path
        File to write; its suffix says the format.

    Raises
    ------
    ValueError
        The suffix names no format that matplotlib writes.
    OSError
        The file cannot be written.
    """
    run = found.run
    history = History(
        run.losses,
        run.seconds[:, 0],
        run.seconds[:, 1],
        steps_per_epoch=len(run.losses) // run.recipe.epochs,
    )
    labelled = [
        (f"{row.name} (ECE {100 * row.scores.ece:.2f} %)", row.reliability) for row in found.rows
    ]
    title = (
        f"{run.recipe.model} on MNIST, {run.recipe.epochs} epochs, {found.n_averaged:,} iterates"
    )
    draw(history, labelled, path, title=title)


def facts_table(facts: Mapping[str, Any]) -> Table:
    """Lay the description of a store out as a table.

    Parameters
    ----------
    facts
        What :func:`swag.app.runs.describe` returned.

    Returns
    -------
    rich.table.Table
        One row an array, then one a field of the recipe.
    """
    laid_out = Table(title=Text(plain(facts["url"])), show_header=False)
    laid_out.add_column("what")
    laid_out.add_column("value")
    for name, array in facts["arrays"].items():
        shape = " x ".join(f"{n:,}" for n in array["shape"]) or "scalar"
        laid_out.add_row(Text(plain(name)), f"{shape} {array['dtype']}, {decimal(array['nbytes'])}")
    laid_out.add_section()
    if facts["recipe"] is None:
        laid_out.add_row("training", "not by swag train")
        return laid_out
    done = facts["step"]
    laid_out.add_row("minibatches", "not finished" if done is None else f"{done:,}")
    for name, value in facts["recipe"].items():
        told = "not set" if value is None else str(value)
        laid_out.add_row(Text(plain(name)), Text(plain(told)))
    return laid_out

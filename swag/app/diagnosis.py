"""Where the burn-in ends, as a table, as JSON, and as a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from swag.burn_in import BurnIn
from swag.posterior import StoredPosterior, load

__all__ = ["as_json", "diagnose", "picture", "table"]

_SHOWN = 4
"""Projections drawn."""


def diagnose(store: str) -> BurnIn[StoredPosterior]:
    """Suggest the burn-in of a stored posterior.

    Parameters
    ----------
    store
        URL of the group.

    Returns
    -------
    BurnIn
        What `Posterior.suggest_burn_in` returns.

    Raises
    ------
    pmarray.errors.GroupNotFoundError, StoreError
        There is no posterior.
    WindowError
        It holds too few iterates.
    """
    with load(store) as posterior:
        return posterior.suggest_burn_in()


def table(found: BurnIn[StoredPosterior]) -> Table:
    """Lay the tests out as a table, with what they say as its caption.

    Parameters
    ----------
    found
        What `Posterior.suggest_burn_in` returned.

    Returns
    -------
    rich.table.Table
        One row a test.
    """
    first, last = found.iterates[0], found.iterates[-1]
    laid_out = Table(title=f"iterates {first:,} to {last:,}", caption=_said(found))
    for heading in ("test", "value", "wanted", "holds"):
        laid_out.add_column(heading, justify="right" if heading == "value" else "left")
    for check in found.checks:
        verdict = "left out" if check.holds is None else "yes" if check.holds else "no"
        value = "" if check.holds is None else f"{check.value:.3g}"
        laid_out.add_row(check.name, value, check.wanted, check.note or verdict)
    return laid_out


def as_json(found: BurnIn[StoredPosterior]) -> dict[str, Any]:
    """Give them as values that JSON can carry.

    Parameters
    ----------
    found
        What `Posterior.suggest_burn_in` returned.

    Returns
    -------
    dict
        `start`, None where the iterates have not settled; `iterates`, first and last looked at;
        `checks`: name, value (None where there is none), wanted and holds of each.
    """
    return {
        "start": found.start,
        "iterates": [found.iterates[0], found.iterates[-1]],
        "checks": [
            {
                "name": check.name,
                "value": check.value if math.isfinite(check.value) else None,
                "wanted": check.wanted,
                "holds": check.holds,
            }
            for check in found.checks
        ],
    }


def picture(found: BurnIn[StoredPosterior], path: Path) -> None:
    """Draw what the suggestion rests on: energy, distance from the start, projections.

    Parameters
    ----------
    found
        What `Posterior.suggest_burn_in` returned.
    path
        File to write; its suffix says the format.

    Raises
    ------
    ValueError
        The suffix names no format that matplotlib writes.
    OSError
        The file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    energy, distance, projections = figure.subplots(1, 3)
    numbers = np.array(found.iterates)
    energy.plot(numbers[: len(found.energy)], found.energy, color="#0072B2")
    energy.axhline(1, color="black", linewidth=0.8, linestyle=":")
    energy.set(yscale="log", ylabel="energy", title="1 once the iterates have settled")
    distance.plot(numbers, found.squared_distance, color="#0072B2")
    distance.set(ylabel="squared distance", title="Distance from the first iterate")
    projections.plot(numbers, found.projections[:, :_SHOWN], linewidth=0.8)
    projections.set(ylabel="projection", title=f"{_SHOWN} of 64 projections")
    for axes in (energy, distance, projections):
        axes.set_xlabel("iterate")
        axes.spines[["top", "right"]].set_visible(False)
        if found.start is not None:
            axes.axvline(found.start, color="#D55E00", linewidth=1.2)
    figure.suptitle(_said(found), fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)


def _said(found: BurnIn[StoredPosterior]) -> str:
    if found.start is None:
        return f"The iterates have not settled: {found.why}."
    return f"The iterates have settled from number {found.start:,} on."

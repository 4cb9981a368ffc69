"""Small charts as SVG that takes its colours from the page it stands in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Series", "chart"]

_WIDTH, _HEIGHT = 460, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 14, 44
_MOST_POINTS = 1500
"""Of a line: more than it has pixels."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line, or one set of points."""

    label: str
    """For the legend; empty for none."""
    x: ArrayLike
    """Shape (points,)."""
    y: ArrayLike
    """Shape (points,); what is not finite is left out."""
    colour: int = 0
    """Of the page's colours: ``--c0`` and on."""
    points: bool = False
    """Dots, not a line."""
    faint: bool = False
    """Behind the others."""


def chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    title: str,
    logarithmic: bool = False,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """Draw a chart.

    Parameters
    ----------
    series
        What it shows.
    x_label, y_label
        Of the axes.
    title
        Read out by screen readers.
    logarithmic
        Whether the vertical axis is; what is not positive is left out then.
    marks
        Vertical lines, each with its words.

    Returns
    -------
    str
        An ``<svg>`` element.

    Examples
    --------
    >>> drawn = chart([Series("loss", [0, 1], [3.0, 2.0])], x_label="t", y_label="y", title="Loss")
    >>> drawn.startswith("<svg"), drawn.count("<polyline")
    (True, 1)
    """
    cleaned = [(one, *_finite(one, logarithmic)) for one in series]
    xs = np.concatenate([x for _, x, _ in cleaned] or [np.zeros(0)])
    ys = np.concatenate([y for *_, y in cleaned] or [np.zeros(0)])
    if not len(xs):
        return f'<p class="note">{escape(title)}: nothing to draw</p>'
    x_ticks = _ticks(float(xs.min()), float(xs.max()))
    y_ticks = _decades(ys) if logarithmic else _ticks(float(ys.min()), float(ys.max()))
    x0, x1 = min(float(xs.min()), x_ticks[0]), max(float(xs.max()), x_ticks[-1])
    y0, y1 = min(float(ys.min()), y_ticks[0]), max(float(ys.max()), y_ticks[-1])

    def right(x: NDArray[np.float64] | float) -> NDArray[np.float64]:
        return np.asarray(_LEFT + (x - x0) / ((x1 - x0) or 1) * (_WIDTH - _LEFT - _RIGHT))

    def down(y: NDArray[np.float64] | float) -> NDArray[np.float64]:
        return np.asarray(
            _HEIGHT - _BOTTOM - (y - y0) / ((y1 - y0) or 1) * (_HEIGHT - _TOP - _BOTTOM)
        )

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
    ]
    for tick in x_ticks:
        at = float(right(tick))
        parts.append(
            f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
        )
        parts.append(
            f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:g}</text>'
        )
    for tick in y_ticks:
        at = float(down(tick))
        shown = f"{10.0**tick:g}" if logarithmic else f"{tick:g}"
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{shown}</text>')
    for one, x, y in cleaned:
        style = f'style="--c: var(--c{one.colour})"' + (' class="faint"' if one.faint else "")
        across, along = right(x), down(y)
        if one.points:
            parts.append(f"<g {style}>")
            parts += [
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.2"/>'
                for a, b in zip(across, along, strict=True)
            ]
            parts.append("</g>")
        else:
            there = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, along, strict=True))
            parts.append(f'<polyline {style} points="{there}"/>')
    for at, words in marks:
        where = float(right(at))
        parts.append(
            f'<line class="mark" x1="{where:.1f}" x2="{where:.1f}" y1="{_TOP}" '
            f'y2="{_HEIGHT - _BOTTOM}"/>'
        )
        side, gap = ("start", 5) if where < _WIDTH / 2 else ("end", -5)
        parts.append(
            f'<text class="mark" x="{where + gap:.1f}" y="{_TOP + 12}" text-anchor="{side}">'
            f"{escape(words)}</text>"
        )
    middle = _LEFT + (_WIDTH - _LEFT - _RIGHT) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append(
        f'<text transform="translate(13 {_TOP + (_HEIGHT - _TOP - _BOTTOM) / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text></svg>'
    )
    legend = "".join(
        f'<li style="--c: var(--c{one.colour})">{escape(one.label)}</li>'
        for one in series
        if one.label
    )
    return "".join(parts) + (f'<ul class="legend">{legend}</ul>' if legend else "")


def _finite(one: Series, logarithmic: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(one.x, np.float64), np.asarray(one.y, np.float64)
    kept = np.isfinite(x) & np.isfinite(y)
    if logarithmic:
        kept &= y > 0
    x, y = x[kept], y[kept]
    step = max(1, math.ceil(len(x) / _MOST_POINTS))
    x, y = x[::step], y[::step]
    return x, np.log10(y) if logarithmic else y


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that cover a range, but for what sticks out by less than a step."""
    if high <= low:
        return [low]
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)] or [low, high]


def _decades(logs: NDArray[np.float64]) -> list[float]:
    """Whole powers of ten that cover what is there, at most six of them."""
    low, high = math.floor(float(logs.min())), math.ceil(float(logs.max()))
    step = max(1, math.ceil((high - low) / 5))
    return [float(power) for power in range(low, max(high, low + 1) + 1, step)]

"""What a notebook shows of an array: a table, and its chunks in the order of the medium.

Functions of plain values; `PMArray._repr_html_` asks the array for them. The picture has no
script, no style sheet and nothing from elsewhere, and takes the page's own colour for lines and
text, so that it reads on a dark page as on a light one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["MOST_CELLS", "Cell", "aggregate", "draw", "tabulate"]

MOST_CELLS = 64
"""Chunks are drawn together from here on."""

_WIDTH, _HEIGHT = 320.0, 96.0
_CACHED, _DIRTY = "#4c8bf5", "#e8710a"  # both stand out from white and from black


@dataclass(frozen=True, slots=True)
class Cell:
    """Adjacent chunks that are drawn as one slab."""

    first: int
    """Position of the first chunk on the medium, counted in chunks."""
    stop: int
    """Position behind the last."""
    cached: int
    """How many of them the cache holds something of."""
    dirty: int
    """How many of them have items that are newer than the medium."""


def aggregate(count: int, states: Iterable[tuple[int, bool]], most: int = MOST_CELLS) -> list[Cell]:
    """Put chunks together into few cells of about the same size.

    Parameters
    ----------
    count
        Of chunks.
    states
        Position of each cached chunk, and whether it is dirty; what lies at `count` or beyond is
        left out.
    most
        Of cells.

    Examples
    --------
    >>> aggregate(5, [(0, False), (4, True)], most=2)
    [Cell(first=0, stop=2, cached=1, dirty=0), Cell(first=2, stop=5, cached=1, dirty=1)]
    """
    cells = min(count, most)
    bounds = [count * i // cells for i in range(cells + 1)] if cells else [0]
    cached, dirty = [0] * cells, [0] * cells
    for position, is_dirty in states:
        if position < count:
            i = bisect_right(bounds, position) - 1
            cached[i] += 1
            dirty[i] += is_dirty
    return [Cell(bounds[i], bounds[i + 1], cached[i], dirty[i]) for i in range(cells)]


def draw(cells: Sequence[Cell], order: Literal["row", "col"]) -> str:
    """Draw cells as slabs of a matrix, in an SVG element: side by side for "col", else stacked.

    >>> draw([Cell(0, 1, 0, 0)], "row").count("<rect")
    1
    """
    total = cells[-1].stop if cells else 1
    slabs = []
    for cell in cells:
        start, length = cell.first / total, (cell.stop - cell.first) / total
        x, y, width, height = (
            (start * _WIDTH, 0.0, length * _WIDTH, _HEIGHT)
            if order == "col"
            else (0.0, start * _HEIGHT, _WIDTH, length * _HEIGHT)
        )
        kind, paint = _paint(cell)
        slabs.append(
            f'<rect class="{kind}" x="{x + 1:.2f}" y="{y + 1:.2f}" width="{width:.2f}" '
            f'height="{height:.2f}" {paint} stroke="currentColor" stroke-opacity="0.5" '
            f'stroke-width="0.5"><title>{_describe(cell)}</title></rect>'
        )
    wide, high = _WIDTH + 2, _HEIGHT + 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide:g}" height="{high:g}" '
        f'viewBox="0 0 {wide:g} {high:g}" role="img"><title>chunks in the order of the medium'
        f"</title>{''.join(slabs)}</svg>"
    )


def _paint(cell: Cell) -> tuple[str, str]:
    size = cell.stop - cell.first
    if cell.dirty:
        return "dirty", f'fill="{_DIRTY}" fill-opacity="{0.3 + 0.7 * cell.dirty / size:.2f}"'
    if cell.cached:
        return "cached", f'fill="{_CACHED}" fill-opacity="{0.3 + 0.7 * cell.cached / size:.2f}"'
    return "stored", 'fill="currentColor" fill-opacity="0.06"'


def _describe(cell: Cell) -> str:
    size = cell.stop - cell.first
    which = f"chunk {cell.first}" if size == 1 else f"chunks {cell.first} to {cell.stop - 1}"
    if not cell.cached:
        return f"{which}: not cached"
    if size == 1:
        return f"{which}: cached, dirty" if cell.dirty else f"{which}: cached"
    return f"{which}: {cell.cached} cached, {cell.dirty} dirty"


def tabulate(rows: Iterable[tuple[str, str]], caption: str, picture: str) -> str:
    """Put rows of text, and a picture under them, into an HTML element.

    >>> tabulate([("name", "<x>")], "no picture", "").count("&lt;x&gt;")
    1
    """
    from html import escape  # it knows 2,231 names of characters, and importing need not wait

    cell = 'style="text-align:left;padding:1px 10px 1px 0"'
    lines = "".join(
        f'<tr><th scope="row" {cell}>{escape(key)}</th><td {cell}>{escape(value)}</td></tr>'
        for key, value in rows
    )
    legend = (
        f'<div style="font-size:smaller">{escape(caption)} '
        f'<span style="color:{_CACHED}">&#9632;</span> cached '
        f'<span style="color:{_DIRTY}">&#9632;</span> dirty</div>'
        if picture
        else f'<div style="font-size:smaller">{escape(caption)}</div>'
    )
    return f"<div><table><tbody>{lines}</tbody></table>{picture}{legend}</div>"

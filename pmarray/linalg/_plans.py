"""How a matrix is walked: pure arithmetic.

A matrix has *lines* (columns of a column-major one, rows of a row-major one), each of them
contiguous. A *tile* is a range of each line times a range of lines. A plan keeps the runs, the
parts of lines in a tile, long, and a tile within the memory allowed.
"""

from __future__ import annotations

from typing import Literal

from pmarray._sizes import format_bytes
from pmarray.errors import BudgetError

__all__ = ["RUN_BYTES", "cut", "pair_tiles", "plan_panel", "plan_tile"]

RUN_BYTES = 256 << 10
"""Runs of this many bytes cost a disk little more than one long one."""
_PAGE_BYTES = 4096
_MIN_LINES = 128
"""Fewer lines at a time would read a vector operand oftener than the matrix."""


def plan_tile(
    fast: int,
    lines: int,
    *,
    stored: int,
    item: int,
    nbytes: int,
    along: Literal["lines", "fast"],
    per_fast: int = 0,
    per_line: int = 0,
    run_bytes: int = RUN_BYTES,
) -> tuple[int, int]:
    """Choose the extents of a tile.

    Parameters
    ----------
    fast, lines
        Items in a line, and lines.
    stored, item
        Bytes of an item on the medium, and of all that is held for it.
    nbytes
        Bytes that may be held at once.
    along
        The axis that is summed over: it is kept whole where that leaves long runs.
    per_fast, per_line
        Bytes held besides for each item of a line in the tile, and for each line.
    run_bytes
        From what length on runs are long.

    Returns
    -------
    tuple of int
        Items of each line, and lines. Runs are of `run_bytes` or more, or whole lines, unless not
        one such run fits.

    Raises
    ------
    BudgetError
        Not even one item fits.

    Examples
    --------
    >>> plan_tile(2_797_010, 600, stored=4, item=4, nbytes=64 << 20, along="lines")
    (65536, 256)
    >>> plan_tile(2_797_010, 100, stored=4, item=4, nbytes=64 << 20, along="lines")
    (166912, 100)
    >>> plan_tile(1000, 10**7, stored=4, item=4, nbytes=64 << 20, along="fast")
    (1000, 16777)
    """

    def most_fast(count: int) -> int:
        return (nbytes - count * per_line) // (count * item + per_fast)

    def most_lines(count: int) -> int:
        return (nbytes - count * per_fast) // (count * item + per_line)

    fast, lines = max(1, fast), max(1, lines)
    run = min(fast, max(1, run_bytes // stored))
    wanted = lines if along == "lines" else min(lines, _MIN_LINES)
    if along == "fast" and most_lines(fast) >= wanted:
        return fast, min(lines, most_lines(fast))
    if most_fast(wanted) < run:
        wanted = min(wanted, max(1, most_lines(run)))
    found = min(fast, most_fast(wanted))
    if found < 1:
        need = format_bytes(item + per_fast + per_line)
        raise BudgetError(
            f"one row of the product needs {need} and {format_bytes(nbytes)} are allowed: raise "
            "memory= or pmarray.config.work_memory"
        )
    page = max(1, _PAGE_BYTES // stored)
    if page < found < fast:
        found -= found % page  # no page is in two tiles
    return found, min(lines, max(wanted, most_lines(found))) if along == "lines" else wanted


def plan_panel(length: int, *, unit: int, fixed: int, nbytes: int, least: int, what: str) -> int:
    """Choose how many of `length` rows a panel has that holds all columns.

    Parameters
    ----------
    unit, fixed
        Bytes held for each row of the panel, and besides.
    least
        Rows below which the work is not worth doing.
    what
        Names the factor in the message.

    Raises
    ------
    BudgetError
        So many do not fit.

    Examples
    --------
    >>> plan_panel(1000, unit=8, fixed=100, nbytes=500, least=1, what="R")
    50
    """
    least = max(1, min(length, least))
    if fixed + least * unit > nbytes:
        raise BudgetError(
            f"{what} needs {format_bytes(fixed + least * unit)} of memory to work in and "
            f"{format_bytes(nbytes)} are allowed: raise memory= or pmarray.config.work_memory"
        )
    return max(1, min(length, (nbytes - fixed) // max(1, unit)))


def pair_tiles(
    rows: int, inner: int, columns: int, *, item: int, nbytes: int, direct: bool
) -> tuple[int, int, int]:
    """Choose the extents of the tiles of a product of two matrices of which neither fits.

    The first is read ``ceil(columns / tile columns)`` times, the second
    ``ceil(rows / tile rows)`` times. A square tile is the one that reads least.

    Parameters
    ----------
    direct
        The result is in memory and sums are made in it: one tile is all of it.

    Returns
    -------
    tuple of int
        Of the rows, of the inner axis and of the columns.

    Examples
    --------
    >>> pair_tiles(5000, 10**6, 600, item=8, nbytes=64 << 20, direct=True)
    (5000, 1123, 600)
    >>> pair_tiles(10**5, 10**5, 10**5, item=8, nbytes=64 << 20, direct=False)
    (1672, 836, 1672)
    """
    if direct:
        inside = nbytes * 3 // 4 // max(1, (rows + columns) * item)
        if inside >= min(inner, 16):
            return rows, min(inside, inner), columns
    # A third each for the sums, for what is added to them, and for the operands.
    area = nbytes // 3 // item
    high = min(rows, max(1, int(area**0.5)))
    wide = min(columns, max(1, min(area // high, area // 2)))
    high = min(rows, max(1, min(area // wide, area // 2)))
    inside = area // (high + wide)
    if inside < 1:
        raise BudgetError(
            f"{format_bytes(nbytes)} are too little to multiply two stored matrices: raise memory= "
            "or pmarray.config.work_memory"
        )
    # Where the inner axis is short, larger panels would be of no use.
    return high, min(inner, inside), wide


def cut(length: int, size: int) -> list[slice]:
    """Cut a range into slices of `size`.

    >>> cut(5, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(i, min(i + size, length)) for i in range(0, length, max(1, size))]

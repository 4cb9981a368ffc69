"""`PMArray._repr_html_`: the state of an array, asked for without input or output."""

from __future__ import annotations

import math

from pmarray._array.stored import StoredArray
from pmarray._exchange.info import chunk_states, describe
from pmarray._exchange.picture import Cell, aggregate, draw, tabulate
from pmarray._sizes import format_bytes
from pmarray.errors import PMArrayError

__all__ = ["cells_of", "to_html"]


def to_html(a: StoredArray) -> str:
    """Return the table and the picture; of an array that cannot be used, the reason."""
    try:
        with a._turn():
            a._admit()
            info = describe(a)
            shown = ("shape", "dtype", "layout", "chunks", "size", "stored")
            rows = [row for row in info.rows() if row[0] in shown]
            rows.insert(0, ("url", f"{info.url}#{info.name}"))
            if a._base is not None or a._storage.cached() is None:
                return tabulate(rows, "not cached: memory of this process, or a view", "")
            cache = a._group._session.cache
            used, budget = format_bytes(cache.memory.used_bytes), format_bytes(cache.budget_bytes)
            mine = f"{format_bytes(info.cached_nbytes)}, {format_bytes(info.dirty_nbytes)} dirty"
            rows.append(("cache", f"{used} used of {budget} by the group; of this array {mine}"))
            cells = cells_of(a)
            chunks = cells[-1].stop if cells else 0
            return tabulate(rows, f"{chunks} chunks in order", draw(cells, a.layout))
    except PMArrayError as error:
        return tabulate([("array", repr(a))], str(error), "")


def cells_of(a: StoredArray) -> list[Cell]:
    """Return the chunks of `a` in the order of the medium, put together into few cells."""
    layout, chunk_shape = a._layout, a._storage.chunk_shape
    grid = [-(-n // size) for n, size in zip(layout.shape, chunk_shape, strict=True)]

    def position(index: tuple[int, ...]) -> int:
        result = 0
        for axis in layout.slow_to_fast:
            result = result * grid[axis] + index[axis]
        return result

    states = [(position(state.index), state.dirty_nbytes > 0) for state in chunk_states(a)]
    return aggregate(math.prod(grid), states)

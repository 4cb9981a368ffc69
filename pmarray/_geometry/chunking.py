"""How large chunks are, and which of their items are new."""

from __future__ import annotations

from pmarray._geometry.layout import Layout, parse_chunks
from pmarray._sizes import format_bytes
from pmarray.errors import BudgetError, LayoutError

__all__ = ["TARGET_CHUNK_BYTES", "plan_chunks", "refuse_large_chunk", "unfilled"]

TARGET_CHUNK_BYTES = 4 << 20
"""Chunks of small lines collect about this much; one large line is a chunk of its own."""


def plan_chunks(
    layout: Layout, chunks: str | int | tuple[int, ...], max_nbytes: int
) -> tuple[int, ...]:
    """Return the chunk shape that ``chunks=`` asks for.

    Raises
    ------
    LayoutError
        Not a number of lines, nor a shape that is contiguous in this layout.
    BudgetError
        One chunk would take more than `max_nbytes`.
    """
    chunks = parse_chunks(chunks)
    if chunks == "auto":
        result = layout.chunk_shape(min(TARGET_CHUNK_BYTES, max_nbytes // 4), max_nbytes)
    else:
        full = [max(1, n) for n in layout.shape]
        if isinstance(chunks, int):
            full[layout.slow_axis] = chunks
            chunks = tuple(full)
        if len(chunks) != len(full) or any(
            n != full[i] for i, n in enumerate(chunks) if i != layout.slow_axis
        ):
            raise LayoutError(
                f"chunks={chunks!r} of an array of shape {layout.shape}: give 'auto', a number of "
                "lines, or a shape of whole lines"
            )
        result = tuple(max(1, n) for n in chunks)
    refuse_large_chunk(result, layout.chunk_nbytes(result), max_nbytes)
    return result


def refuse_large_chunk(shape: tuple[int, ...], nbytes: int, max_nbytes: int) -> None:
    """Raise `BudgetError` for a chunk that the cache has no room for."""
    if nbytes > max_nbytes:
        raise BudgetError(
            f"one chunk of shape {shape} needs {format_bytes(nbytes)}; the cache has room for "
            f"{format_bytes(max_nbytes)} a chunk, half of it: open the group with cache= of "
            f"{format_bytes(2 * nbytes)} or more"
        )


def unfilled(before: Layout, after: Layout, used: int) -> list[tuple[slice, ...]]:
    """The block of new lines that hold anything: those up to the byte `used` of the region."""
    stop = min(after.lines, -(-used // max(1, after.line_stride)))
    if stop <= before.lines:
        return []
    axes = [slice(0, n, 1) for n in after.shape]
    axes[after.slow_axis] = slice(before.lines, stop, 1)
    return [tuple(axes)]

"""Where the items of an array lie: pure arithmetic, no input or output, no state.

An array of *lines* along its slow axis (columns of a column-major matrix, rows of a row-major
one). A line is contiguous. From one line to the next is the *line stride* (LAPACK's leading
dimension, in bytes): the size of a line, rounded up to `BLOCK_BYTES` where a line is
`PAD_FROM_BYTES` or longer, so that large lines never share a block of the medium.

A *chunk* is the unit of caching: some whole lines, or, where one line is larger than a chunk may
be, a part of one line. Either way it is one contiguous range of bytes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal, NamedTuple

from pmarray.errors import LayoutError

__all__ = [
    "BLOCK_BYTES",
    "Extent",
    "Layout",
    "LayoutName",
    "Order",
    "cut",
    "parse_layout",
    "parse_shape",
    "refuse_unaddressable",
]

Order = Literal["row", "col"]
LayoutName = Literal["row", "col", "C", "F"]
"""What a caller may call it."""

BLOCK_BYTES = 4096
"""Direct I/O, before-images and torn writes are counted in blocks of this many bytes."""
PAD_FROM_BYTES = 64 * 1024
"""Lines of this many bytes or more start on a block."""
_MAX_WASTE = 0.25
_MAX_AXES = 64
"""NumPy's."""
_MAX_NBYTES = 1 << 62
"""Half of what NumPy and the kernel count to, so that headers and reserves can be added to it."""


def parse_layout(layout: str | None, order: str | None = None) -> Order | None:
    """Return "row" or "col" from either spelling, or None where neither is given.

    >>> parse_layout("col"), parse_layout(None, "F"), parse_layout(None)
    ('col', 'col', None)
    """
    names: dict[str | None, Order | None] = {
        None: None, "row": "row", "col": "col", "C": "row", "F": "col",
    }  # fmt: skip
    if layout not in names or order not in names:
        raise LayoutError(
            f"layout={layout!r}, order={order!r}: use layout='row' or 'col' (order='C' or 'F')"
        )
    first, second = names[layout], names[order]
    if first and second and first != second:
        raise LayoutError(f"layout={layout!r} and order={order!r} contradict each other")
    return first or second


class Extent(NamedTuple):
    """The part of a selection that lies in one chunk.

    `within` and `block` select the same items: in the chunk, and in the block of all selected
    items. `spans` are the bytes of the chunk they occupy.
    """

    chunk: tuple[int, ...]
    """Which chunk of the grid, per axis."""
    within: tuple[slice, ...]
    """The items, counted from the chunk's first, per axis."""
    block: tuple[slice, ...]
    """The items, counted from the selection's first, per axis."""
    spans: tuple[tuple[int, int], ...]
    """Disjoint ascending byte ranges of the chunk that hold the items."""
    exact: bool
    """Whether the spans hold nothing else, so that writing them needs no reading first."""


@dataclass(frozen=True)  # no slots: what is computed from the fields is kept
class Layout:
    """Shape, item size and order of an array, and from them the place of every item.

    Parameters
    ----------
    shape
        Extent of each axis; zero-dimensional arrays are laid out as ``(1,)``.
    itemsize
        Bytes of one item.
    order
        "row" (C order, the first axis is slow) or "col" (Fortran order, the last is).
    line_stride
        Bytes from one line to the next.

    Examples
    --------
    >>> layout = Layout.plan((2_797_010, 600), 4, "col")
    >>> layout.line_nbytes, layout.line_stride, layout.nbytes
    (11188040, 11190272, 6714163200)
    >>> layout.strides
    (4, 11190272)
    """

    shape: tuple[int, ...]
    itemsize: int
    order: Order
    line_stride: int

    @classmethod
    def plan(cls, shape: tuple[int, ...], itemsize: int, order: Order) -> Layout:
        """Lay out a new array, padding its lines where that costs little."""
        shape = shape or (1,)
        if any(extent < 0 for extent in shape):
            raise LayoutError(f"shape {shape} has a negative extent")
        plain = cls(shape, itemsize, order, 0)
        nbytes = plain.line_nbytes
        stride = nbytes
        if nbytes >= PAD_FROM_BYTES and len(shape) > 1:
            # The padding must be expressible as a larger extent of the next-slowest axis, or the
            # file would be no .npy that NumPy can read.
            unit = plain.strides[plain.slow_to_fast[1]]
            step = math.lcm(BLOCK_BYTES, unit)
            padded = -(-nbytes // step) * step
            if padded <= nbytes * (1 + _MAX_WASTE):
                stride = padded
        return cls(shape, itemsize, order, stride)

    @cached_property
    def slow_to_fast(self) -> tuple[int, ...]:
        """The axes, slowest first."""
        axes = range(len(self.shape))
        return tuple(axes) if self.order == "row" else tuple(reversed(axes))

    @cached_property
    def slow_axis(self) -> int:
        """The axis along which lines follow one another, and along which an array grows."""
        return 0 if self.order == "row" else len(self.shape) - 1

    @property
    def lines(self) -> int:
        """The number of lines."""
        return self.shape[self.slow_axis]

    @cached_property
    def line_nbytes(self) -> int:
        """Bytes of one line, without padding."""
        slow = self.slow_axis
        return self.itemsize * math.prod(n for i, n in enumerate(self.shape) if i != slow)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole, padding included."""
        return self.lines * self.line_stride

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one item to the next, per axis."""
        result = [0] * len(self.shape)
        step = self.itemsize
        for axis in reversed(self.slow_to_fast[1:]):
            result[axis] = step
            step *= self.shape[axis]
        result[self.slow_axis] = self.line_stride
        return tuple(result)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape with its padding, as the header of the file has it."""
        if self.line_stride == self.line_nbytes or len(self.shape) == 1:
            return self.shape
        axis = self.slow_to_fast[1]
        padded = list(self.shape)
        padded[axis] = self.line_stride // self.strides[axis]
        return tuple(padded)

    def with_lines(self, lines: int) -> Layout:
        """Return the layout after growth or shrinkage along the slow axis."""
        shape = list(self.shape)
        shape[self.slow_axis] = lines
        return Layout(tuple(shape), self.itemsize, self.order, self.line_stride)

    def chunk_shape(
        self, target_nbytes: int, max_nbytes: int, *, on_blocks: bool = True
    ) -> tuple[int, ...]:
        """Choose a chunk shape: near the target, never above the maximum.

        Parameters
        ----------
        target_nbytes, max_nbytes
            Bytes of a chunk.
        on_blocks
            Whether chunks are to start on a block, wherever that is possible within `max_nbytes`.

        Examples
        --------
        >>> Layout.plan((1000, 600), 4, "col").chunk_shape(2**22, 2**26)
        (1000, 1024)
        >>> Layout.plan((2_797_010, 600), 4, "col").chunk_shape(2**22, 2**26)
        (2797010, 1)
        >>> Layout.plan((2_797_010, 600), 4, "col").chunk_shape(2**20, 2**22)
        (262144, 1)
        """
        axes = self.slow_to_fast
        result = [max(1, extent) for extent in self.shape]
        unit = max(self.line_stride, 1)
        for depth, axis in enumerate(axes):
            fits = max_nbytes // unit
            if fits >= 1 or depth == len(axes) - 1:
                aligned = BLOCK_BYTES // math.gcd(BLOCK_BYTES, unit)
                count = max(1, min(fits, target_nbytes // unit))
                if on_blocks and aligned <= fits:
                    count = max(aligned, count // aligned * aligned)
                # The slow axis may grow, so its chunk is not cut to today's extent.
                result[axis] = count if depth == 0 else min(count, result[axis])
                return tuple(result)
            result[axis] = 1
            unit = self.strides[axes[depth + 1]]
        raise AssertionError("unreachable: the fastest axis always returns")

    def chunk_nbytes(self, chunk_shape: tuple[int, ...]) -> int:
        """Bytes of a full chunk, with the padding of its lines where it is of whole lines."""
        slow = self.slow_axis
        if all(n >= self.shape[i] for i, n in enumerate(chunk_shape) if i != slow):
            return chunk_shape[slow] * self.line_stride
        for axis in self.slow_to_fast:
            if chunk_shape[axis] != 1:
                return chunk_shape[axis] * self.strides[axis]
        return self.strides[self.slow_to_fast[-1]]

    def chunk_start(self, chunk: tuple[int, ...], chunk_shape: tuple[int, ...]) -> int:
        """Byte of the array at which `chunk` begins."""
        return sum(
            i * n * stride for i, n, stride in zip(chunk, chunk_shape, self.strides, strict=True)
        )

    def chunk_extent(self, chunk: tuple[int, ...], chunk_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of `chunk`, which the array's edge may cut."""
        return tuple(
            max(0, min(n, extent - i * n))
            for i, n, extent in zip(chunk, chunk_shape, self.shape, strict=True)
        )

    def used_nbytes(self, chunk: tuple[int, ...], chunk_shape: tuple[int, ...]) -> int:
        """Bytes of `chunk` that belong to the array, the padding of its lines included."""
        extent = self.chunk_extent(chunk, chunk_shape)
        if 0 in extent:
            return 0
        whole = tuple(slice(0, n, 1) for n in extent)
        return self.spans(whole, chunk, chunk_shape)[0][-1][1]

    def is_aligned(self, chunk_shape: tuple[int, ...]) -> bool:
        """Whether all chunks, and all lines, begin on a block of the medium and fill blocks.

        >>> Layout.plan((2_797_010, 600), 4, "col").is_aligned((2_797_010, 1))
        True
        >>> Layout.plan((3000, 512, 3), 4, "col").is_aligned((2048, 1, 1))
        False
        """
        steps = [self.chunk_nbytes(chunk_shape)]
        if len(self.shape) > 1:
            steps.append(self.line_stride)
        steps += [
            count * stride
            for extent, count, stride in zip(self.shape, chunk_shape, self.strides, strict=True)
            if extent > count
        ]
        return all(step % BLOCK_BYTES == 0 for step in steps)

    def extents(
        self, selection: tuple[slice, ...], chunk_shape: tuple[int, ...]
    ) -> Iterator[Extent]:
        """Yield where the items of `selection` lie, chunk by chunk in the order of the file.

        Parameters
        ----------
        selection
            One ascending slice an axis, within bounds, as `Selection.axes` has it.
        chunk_shape
            As `chunk_shape` chose it.
        """
        parts = [list(cut(one, size)) for one, size in zip(selection, chunk_shape, strict=True)]
        axes = self.slow_to_fast
        for combination in product(*[parts[axis] for axis in axes]):
            # The order of the axes is reversed, or it is not: reversing it again puts it right.
            chunk, within, block = zip(*[combination[i] for i in axes], strict=True)
            spans, exact = self.spans(within, chunk, chunk_shape)
            yield Extent(chunk, within, block, spans, exact)

    def spans(
        self, within: tuple[slice, ...], chunk: tuple[int, ...], chunk_shape: tuple[int, ...]
    ) -> tuple[tuple[tuple[int, int], ...], bool]:
        """Bytes that the items `within` the chunk occupy, and whether nothing else is there."""
        strides = self.strides
        slow = self.slow_axis
        low = high = 0  # first byte of the first and of the last item of a line
        full = exact = True
        for axis in reversed(self.slow_to_fast):
            if axis == slow and len(self.shape) > 1:
                break
            one = within[axis]
            count = len(range(one.start, one.stop, one.step))
            low += one.start * strides[axis]
            high += (one.start + (count - 1) * one.step) * strides[axis]
            if count > 1 and (not full or one.step != 1):
                exact = False
            full = full and one.start == 0 and count == self.shape[axis]
        high += self.itemsize
        if len(self.shape) == 1:
            return ((low, high),), exact
        if full:
            high = self.line_stride  # nothing else will ever want the padding
        elif self.line_stride > self.line_nbytes:
            # The last items of a line own the padding behind them, so that a line that is
            # written in parts (chunks smaller than a line) is still written whole.
            start = self.chunk_start(chunk, chunk_shape) % self.line_stride
            if start + high == self.line_nbytes:
                high = min(self.line_stride - start, self.chunk_nbytes(chunk_shape))
        lines = within[slow]
        indices = range(lines.start, lines.stop, lines.step)
        stride = self.line_stride
        if full and lines.step == 1:
            return ((lines.start * stride, lines.stop * stride),), True
        if len(indices) == 1 or stride >= PAD_FROM_BYTES:
            return tuple((i * stride + low, i * stride + high) for i in indices), exact
        # Many small pieces close together: one span over all of them is the cheaper I/O.
        return ((indices[0] * stride + low, indices[-1] * stride + high),), False


def cut(selection: slice, size: int) -> Iterator[tuple[int, slice, slice]]:
    """Cut an ascending slice at multiples of `size`: chunk, slice within it, slice of the block."""
    indices = range(selection.start, selection.stop, selection.step)
    done = 0
    while done < len(indices):
        chunk, first = divmod(indices[done], size)
        count = min(len(indices) - done, -(-(size - first) // selection.step))
        last = first + (count - 1) * selection.step
        yield chunk, slice(first, last + 1, selection.step), slice(done, done + count)
        done += count


def parse_chunks(chunks: Any) -> Literal["auto"] | int | tuple[int, ...]:
    """Return what ``chunks=`` asks for: "auto", a number of lines, or a shape.

    >>> parse_chunks(True), parse_chunks(None), parse_chunks([2, 3])
    ('auto', 'auto', (2, 3))
    """
    if chunks is None or chunks is True or (isinstance(chunks, str) and chunks == "auto"):
        return "auto"
    try:
        if chunks is False or isinstance(chunks, str):
            raise TypeError
        if isinstance(chunks, Iterable):
            shape = tuple(operator.index(n) for n in chunks)
            if min(shape, default=1) > 0:
                return shape
        elif (lines := operator.index(chunks)) > 0:
            return lines
    except TypeError:
        pass
    raise LayoutError(
        f"chunks={chunks!r}: give 'auto', a number of lines, or a shape of whole lines (in a chunk "
        "store, any shape)"
    )


def parse_shape(shape: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return `shape` as a tuple of extents; one number means one axis.

    >>> parse_shape(5), parse_shape([2, 3])
    ((5,), (2, 3))
    """
    try:
        axes = tuple(shape) if isinstance(shape, Iterable) else (shape,)
        result = tuple(operator.index(n) for n in axes)
    except TypeError as error:
        raise LayoutError(f"not a shape: {shape!r}") from error
    if any(n < 0 for n in result):
        raise LayoutError(f"shape {result} has a negative extent")
    refuse_unaddressable(result, 1)
    return result


def refuse_unaddressable(shape: tuple[int, ...], itemsize: int) -> None:
    """Raise for an array with more axes or bytes than anything here can count.

    An extent of 0 counts as 1: the array may grow, and the strides along the others stay.

    >>> refuse_unaddressable((2**40, 2**40), 8)
    Traceback (most recent call last):
        ...
    pmarray.errors.LayoutError: shape (1099511627776, 1099511627776) with items of 8 bytes ...
    """
    if len(shape) > _MAX_AXES:
        raise LayoutError(f"a shape of {len(shape)} axes: an array has at most {_MAX_AXES}")
    # Padding adds a quarter at most.
    if math.prod(max(1, n) for n in shape) * itemsize > _MAX_NBYTES:
        items = f" with items of {itemsize} bytes" if itemsize > 1 else ""
        raise LayoutError(f"shape {shape}{items} is more than the 4 EiB that an array can have")

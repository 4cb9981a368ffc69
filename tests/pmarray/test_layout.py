"""The layout arithmetic against brute force over every item and every byte."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from pmarray._geometry.chunking import plan_chunks
from pmarray._geometry.layout import (
    BLOCK_BYTES,
    PAD_FROM_BYTES,
    Extent,
    Layout,
    Order,
    parse_layout,
)
from pmarray._selection.basic import select
from pmarray.errors import LayoutError
from tests.sampling import examples

# Large items make long lines of few items, so that padding is met and brute force stays cheap.
ITEM_SIZES = [1, 2, 3, 4, 8, 16, 1000, 4096, 5000, 12_288, 20_000, 65_536]
ORDERS: list[Order] = ["row", "col"]
MAX_NBYTES = 3 << 20
many = examples(8)  # they are fast


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    itemsize = draw(st.sampled_from(ITEM_SIZES))
    shape = draw(npst.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=7))
    if itemsize <= 16 and draw(st.booleans()):
        axis = draw(st.integers(0, len(shape) - 1))
        long = draw(st.sampled_from([100, 1024, 5000]))
        shape = tuple(long if i == axis else min(n, 3) for i, n in enumerate(shape))
    layout = Layout.plan(shape, itemsize, draw(st.sampled_from(ORDERS)))
    while layout.nbytes > MAX_NBYTES:
        shape = tuple(-(-n // 2) for n in layout.shape)
        layout = Layout.plan(shape, itemsize, layout.order)
    return layout


@st.composite
def chunked(draw: st.DrawFn) -> tuple[Layout, tuple[int, ...]]:
    layout = draw(layouts())
    if draw(st.booleans()):
        lines = draw(st.integers(1, 4))
        chunk = [max(1, n) for n in layout.shape]
        chunk[layout.slow_axis] = lines
        return layout, tuple(chunk)
    most = max(layout.itemsize, draw(st.sampled_from([4096, 8192, 10_000, 65_536, 1 << 20])))
    return layout, layout.chunk_shape(draw(st.sampled_from([1, 4096, 1 << 22])), most)


def numpy_strides(layout: Layout) -> tuple[int, ...]:
    flag = "C" if layout.order == "row" else "F"
    return np.empty(layout.stored_shape, f"V{layout.itemsize}", order=flag).strides  # type: ignore[call-overload,no-any-return]


@given(layouts())
def test_strides_are_those_of_numpy(layout: Layout) -> None:
    if 0 in layout.shape:
        return  # NumPy's strides of nothing mean nothing
    assert layout.strides == numpy_strides(layout)


@given(layouts())
def test_the_stored_shape_holds_the_array_and_fills_the_file(layout: Layout) -> None:
    stored = layout.stored_shape
    assert len(stored) == len(layout.shape)
    assert all(s >= n for s, n in zip(stored, layout.shape, strict=True))
    assert int(np.prod(stored)) * layout.itemsize == layout.nbytes
    again = Layout(stored, layout.itemsize, layout.order, layout.line_stride)
    assert again.stored_shape == stored
    assert again.line_nbytes == again.line_stride


@given(layouts())
def test_long_lines_start_on_blocks_and_padding_stays_small(layout: Layout) -> None:
    waste = layout.line_stride - layout.line_nbytes
    assert 0 <= waste <= layout.line_nbytes / 4
    if waste:
        assert layout.line_stride % BLOCK_BYTES == 0
        assert layout.line_nbytes >= PAD_FROM_BYTES
    elif len(layout.shape) == 2 and layout.line_nbytes >= PAD_FROM_BYTES:
        # A matrix is padded wherever one item more is a small step.
        assert layout.line_stride % BLOCK_BYTES == 0 or layout.itemsize > 4


def items_of(layout: Layout, chunk_shape: tuple[int, ...], extent: Extent) -> NDArray[np.int64]:
    """The indices of the items of an extent, one a row, in the order of the block."""
    axes = [
        np.arange(w.start, w.stop, w.step) + c * n
        for c, n, w in zip(extent.chunk, chunk_shape, extent.within, strict=True)
    ]
    return np.array(list(product(*axes)), dtype=np.int64).reshape(-1, len(axes))


@many
@given(st.data(), chunked())
def test_extents_partition_every_selection(
    data: st.DataObject, case: tuple[Layout, tuple[int, ...]]
) -> None:
    layout, chunk_shape = case
    index = data.draw(npst.basic_indices(layout.shape, allow_newaxis=False))
    axes = select(index, layout.shape).axes
    selected = np.zeros(layout.shape, np.int64)
    selected[axes] = 1
    seen = np.zeros(layout.shape, np.int64)
    block = np.zeros(tuple(len(range(s.start, s.stop, s.step)) for s in axes), np.int64)
    last = -1
    for extent in layout.extents(axes, chunk_shape):
        items = items_of(layout, chunk_shape, extent)
        np.add.at(seen, tuple(items.T), 1)
        block[extent.block] += 1
        # The block's items are the chunk's, one for one and in the same order.
        of_block = np.array(
            list(
                product(
                    *(
                        np.arange(s.start, s.stop, s.step)[b]
                        for s, b in zip(axes, extent.block, strict=True)
                    )
                )
            )
        ).reshape(items.shape)
        np.testing.assert_array_equal(of_block, items)
        check_spans(layout, chunk_shape, extent, items)
        start = layout.chunk_start(extent.chunk, chunk_shape)
        assert start > last, "extents come in the order of the file"
        last = start
    np.testing.assert_array_equal(seen, selected)
    assert (block == 1).all()


def check_spans(
    layout: Layout, chunk_shape: tuple[int, ...], extent: Extent, items: NDArray[np.int64]
) -> None:
    start = layout.chunk_start(extent.chunk, chunk_shape)
    nbytes = layout.chunk_nbytes(chunk_shape)
    covered = np.zeros(nbytes, bool)
    previous = -1
    for low, high in extent.spans:
        assert previous < low < high <= nbytes, "ascending, disjoint, inside the chunk"
        covered[low:high] = True
        previous = high - 1
    wanted = np.zeros(nbytes, bool)
    for offset in items @ np.array(layout.strides) - start:
        assert offset >= 0
        assert offset + layout.itemsize <= nbytes, "a chunk is one run of bytes"
        wanted[offset : offset + layout.itemsize] = True
    assert covered[wanted].all(), "the spans hold every item"
    if extent.exact:
        in_line = (start + np.flatnonzero(covered & ~wanted)) % max(1, layout.line_stride)
        assert (in_line >= layout.line_nbytes).all(), "exact spans hold nothing else but padding"


@many
@given(chunked())
def test_chunks_are_disjoint_and_do_not_share_blocks_where_aligned(
    case: tuple[Layout, tuple[int, ...]],
) -> None:
    layout, chunk_shape = case
    whole = tuple(slice(0, n, 1) for n in layout.shape)
    aligned = layout.is_aligned(chunk_shape)
    end = 0
    for extent in layout.extents(whole, chunk_shape):
        start = layout.chunk_start(extent.chunk, chunk_shape)
        used = layout.used_nbytes(extent.chunk, chunk_shape)
        assert start >= end
        assert 0 < used <= layout.chunk_nbytes(chunk_shape)
        end = start + used
        assert end <= layout.nbytes
        if aligned:
            assert start % BLOCK_BYTES == 0
            end = -(-end // BLOCK_BYTES) * BLOCK_BYTES


@many
@given(layouts(), st.integers(1, 1 << 22), st.integers(4096, 1 << 22))
def test_a_chunk_never_exceeds_what_it_may(layout: Layout, target: int, most: int) -> None:
    most = max(most, layout.itemsize)
    chunk = layout.chunk_shape(target, most)
    assert layout.chunk_nbytes(chunk) <= most
    assert all(n >= 1 for n in chunk)


@pytest.mark.parametrize("parameters", [21_840, 795_010, 1_290_510, 2_797_010])
def test_columns_of_weights_are_chunks_of_their_own_and_aligned(parameters: int) -> None:
    """The case that everything is made for: anything else goes through the page cache."""
    layout = Layout.plan((parameters, 600), 4, "col")
    for budget in (256 << 20, 1 << 20):
        chunk = layout.chunk_shape(4 << 20, budget // 2)
        assert layout.is_aligned(chunk)
    assert layout.chunk_nbytes((parameters, 1)) == layout.line_stride


@given(layouts(), st.integers(1, 100))
def test_chunks_of_so_many_lines(layout: Layout, lines: int) -> None:
    """Also where there is nothing on another axis; the shape found asks for the same."""
    shape = plan_chunks(layout, lines, 1 << 40)
    expected = [max(1, n) for n in layout.shape]
    expected[layout.slow_axis] = lines
    assert shape == tuple(expected)
    assert plan_chunks(layout, shape, 1 << 40) == shape


@given(layouts(), st.integers(0, 50))
def test_growth_moves_nothing(layout: Layout, lines: int) -> None:
    grown = layout.with_lines(lines)
    assert grown.lines == lines
    assert grown.line_stride == layout.line_stride
    if 0 not in layout.shape and lines:
        assert grown.strides == layout.strides


def test_spellings_of_the_order() -> None:
    assert parse_layout(None) is None
    assert [parse_layout(x) for x in ("row", "col", "C", "F")] == ["row", "col", "row", "col"]
    assert parse_layout("col", "F") == "col"
    for wrong in (("col", "C"), ("A", None), (None, "K")):
        with pytest.raises(LayoutError, match=r"contradict|use layout="):
            parse_layout(*wrong)


def test_negative_extents_are_refused() -> None:
    with pytest.raises(LayoutError, match="negative"):
        Layout.plan((3, -1), 4, "row")

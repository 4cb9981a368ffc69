"""What a notebook shows: the picture as such, and against the real state of the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pmarray
from pmarray._exchange.picture import MOST_CELLS, Cell, aggregate, draw, tabulate

SVG = "{http://www.w3.org/2000/svg}"


def slabs(html: str) -> list[ElementTree.Element]:
    return ElementTree.fromstring(html.replace("&#9632;", "#")).findall(f".//{SVG}rect")


def kinds(a: pmarray.PMArray) -> list[str]:
    return [slab.attrib["class"] for slab in slabs(a._repr_html_())]


@given(st.integers(0, 10_000), st.integers(1, 100), st.data())
def test_cells_partition_the_chunks(count: int, most: int, data: st.DataObject) -> None:
    positions = st.integers(0, max(0, count - 1))
    states = data.draw(st.dictionaries(positions, st.booleans(), max_size=min(count, 50)))
    cells = aggregate(count, states.items(), most)
    assert len(cells) == min(count, most)
    assert [i for cell in cells for i in range(cell.first, cell.stop)] == list(range(count))
    for cell in cells:
        inside = [dirty for i, dirty in states.items() if cell.first <= i < cell.stop]
        assert (cell.cached, cell.dirty) == (len(inside), sum(inside))
    sizes = {cell.stop - cell.first for cell in cells}
    assert not sizes or max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("order", ["row", "col"])
def test_slabs_lie_side_by_side_along_the_slow_axis(order: Any) -> None:
    cells = [Cell(0, 1, 0, 0), Cell(1, 3, 1, 0), Cell(3, 4, 1, 1)]
    found = slabs(draw(cells, order))
    assert [slab.attrib["class"] for slab in found] == ["stored", "cached", "dirty"]
    along, extent = ("x", "width") if order == "col" else ("y", "height")
    edges = [float(slab.attrib[along]) for slab in found]
    lengths = [float(slab.attrib[extent]) for slab in found]
    assert lengths[1] == pytest.approx(2 * lengths[0])
    for i in range(2):
        assert edges[i] + lengths[i] == pytest.approx(edges[i + 1], abs=0.02)
    assert len({slab.attrib["y" if order == "col" else "x"] for slab in found}) == 1
    titles = [slab.findtext(f"{SVG}title") for slab in found]
    assert titles == ["chunk 0: not cached", "chunks 1 to 2: 1 cached, 0 dirty",
                      "chunk 3: cached, dirty"]  # fmt: skip


def test_names_are_escaped() -> None:
    html = tabulate([("<b>", "a & <script>")], "<i>", "")
    root = ElementTree.fromstring(html)
    assert [cell.text for row in root.iter("tr") for cell in row] == ["<b>", "a & <script>"]
    assert "<script" not in html


@pytest.mark.parametrize("layout", ["row", "col"])
def test_the_picture_follows_the_cache(scratch: Path, layout: Any) -> None:
    shape = (20_000, 8) if layout == "col" else (8, 20_000)
    with pmarray.open(scratch / "<g>", shape, layout=layout, chunks=1) as a:
        assert kinds(a) == ["stored"] * 8
        line = (slice(0, 100), 2) if layout == "col" else (2, slice(0, 100))
        a[line] = 1
        assert kinds(a) == ["stored", "stored", "dirty"] + ["stored"] * 5
        a.flush()
        assert kinds(a) == ["stored", "stored", "cached"] + ["stored"] * 5
        assert "&lt;g&gt;#array" in a._repr_html_()
        assert "0 B dirty" in a._repr_html_()


def test_parts_of_lines_are_drawn_in_order(scratch: Path) -> None:
    with pmarray.open(scratch / "g", (100_000, 3), layout="col", cache="1 MiB") as a:
        parts = -(-100_000 // a.chunks[0])
        assert parts > 1
        a[a.chunks[0], 2] = 1
        expected = ["stored"] * 3 * parts
        expected[2 * parts + 1] = "dirty"
        assert kinds(a) == expected


def test_an_array_of_many_chunks_is_a_small_picture(scratch: Path) -> None:
    with pmarray.open(scratch / "g", (10_000, 3000), "int8", layout="col", chunks=1) as a:
        a[0, 1500] = 1
        html = a._repr_html_()
    assert len(slabs(html)) == MOST_CELLS
    assert sum(slab.attrib["class"] == "dirty" for slab in slabs(html)) == 1
    assert len(html) < 20_000
    assert "http" not in html.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize("shape", [(), (0, 5), (7,), (2, 3, 4)])
def test_any_shape_has_a_picture(shape: Any, scratch: Path) -> None:
    with pmarray.open(scratch / "g", shape) as a:
        ElementTree.fromstring(a._repr_html_().replace("&#9632;", "#"))
        a[...] = np.ones(shape)
        assert ("dirty" in kinds(a)) == bool(a.size)


def test_nothing_is_read_or_written_for_it(scratch: Path, calls: Any) -> None:
    def reads() -> str:
        return Path("/proc/self/io").read_text().split("\n")[2]

    with pmarray.open(scratch / "g", (1000, 10), layout="col") as a:
        a[:, 1] = 1
        a._repr_html_()
        calls.log.clear()
        before = [reads(), reads()]  # reading this file is a read itself
        a._repr_html_()
        after = reads()
        assert not calls.log
    first, second = (int(text.split()[1]) for text in before)
    assert int(after.split()[1]) - second == second - first


def test_without_a_cache_there_is_no_picture(scratch: Path) -> None:
    with pmarray.open("dram:", (3, 4)) as memory, pmarray.open(scratch / "g", (3, 4)) as stored:
        for a in (memory, stored.T):
            assert "not cached" in a._repr_html_()
            assert "<svg" not in a._repr_html_()
    assert "is closed" in stored._repr_html_()


def test_a_notebook_completes_names(tmp_path: Path) -> None:
    with pmarray.open_group(f"memmap:{tmp_path}/g") as group:
        for name in ("weights", "bias"):
            group.create(name, (2,))
        group.attrs["seed"] = 1
        assert group._ipython_key_completions_() == ["bias", "weights"]
        assert group.attrs._ipython_key_completions_() == ["seed"]
    assert group._ipython_key_completions_() == []

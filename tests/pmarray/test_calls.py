"""What is typed by habit from other libraries works, or the message says what to type."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import pmarray
from pmarray._streams.progress import reporting
from pmarray.errors import ForeignDataError, LayoutError

URLS = ["dram:", "memmap:{}/m", "zarr:{}/z"]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize(
    ("chunks", "same_as"),
    [(np.int64(3), 3), (True, "auto"), (None, "auto"), ([3, 4], (3, 4)),
     (np.array([3, 4]), (3, 4)), ((np.int8(3), 4), (3, 4))],
    ids=repr,
)  # fmt: skip
def test_chunks_of_any_kind_of_number(url: str, chunks: Any, same_as: Any, tmp_path: Path) -> None:
    with pmarray.open_group(url.format(tmp_path)) as group:
        found = group.create("a", (9, 4), chunks=chunks)
        assert found.chunks == group.create("b", (9, 4), chunks=same_as).chunks


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("chunks", [False, 0, -1, 1.5, "auto ", (3,), (3, 4, 5), (0, 4), [[3]]])
def test_other_chunks_are_refused(url: str, chunks: Any, tmp_path: Path) -> None:
    with pmarray.open_group(url.format(tmp_path)) as group:
        with pytest.raises(LayoutError, match="chunks="):
            group.create("a", (9, 4), chunks=chunks)
        assert not list(group)


def test_no_cache_named_is_the_default() -> None:
    one, other = (pmarray.open("dram:", (3,), cache=cache) for cache in (None, "auto"))
    assert (
        one.group._session.cache.memory.max_chunk_bytes
        == other.group._session.cache.memory.max_chunk_bytes
    )
    with pytest.raises(ValueError, match="cache=True"):
        pmarray.open("dram:", (3,), cache=True)


def test_a_mode_in_the_place_of_the_shape() -> None:
    with pytest.raises(LayoutError, match="write mode='r'"):
        pmarray.open("dram:", "r")  # type: ignore[arg-type]


def test_a_limit_that_is_none() -> None:
    with pytest.raises(AttributeError, match="set work_memory, max_result, read_ahead"):
        pmarray.config.work_mem = 5
    with pytest.raises(TypeError, match="set work_memory, max_result, read_ahead"):
        pmarray.config.set(memory=5).__enter__()


def test_a_zarr_directory_is_named(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "g", mode="w")
    with pytest.raises(ForeignDataError, match=f"open it as 'zarr:{tmp_path}/g'"):
        pmarray.open_group(tmp_path / "g")
    with pmarray.open(tmp_path / "x.zarr", (3,)):
        pass
    assert zarr.open_array(tmp_path / "x.zarr" / "array", mode="r").shape == (3,)


def test_the_bar_is_drawn_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def __init__(self, value: str, display_id: bool) -> None:
            self.update(value)

        def update(self, value: str) -> None:
            shown.append(value)

    # What a notebook has and a test has not; the bar itself needs no more of it than this.
    library: Any = types.ModuleType("IPython.display")
    library.HTML = str
    library.display = Handle
    shell = type("ZMQInteractiveShell", (), {})
    monkeypatch.setattr("rich.console.get_ipython", shell, raising=False)
    monkeypatch.setitem(sys.modules, "IPython.display", library)
    with reporting(True) as show:
        show(1 << 20, 2 << 20)
        show(2 << 20, 2 << 20)
    assert "<progress" in shown[0]
    assert "2 MiB of 2 MiB" in shown[-1]

"""Chunks that are encoded and decoded without an event loop are those that zarr-python makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from zarr.codecs import BytesCodec
from zarr.core.buffer.cpu import NDBuffer
from zarr.core.sync import sync

import pmarray
from pmarray._formats.metadata import ArrayMetadata
from pmarray._geometry.layout import Layout
from pmarray.backends.zarr import translation as zarr_format
from pmarray.backends.zarr.bounds import is_direct
from pmarray.backends.zarr.codecs import ChunkCodecs
from pmarray.backends.zarr.local import LocalZarrBackend
from pmarray.backends.zarr.planning import plan

CODECS: list[list[Any]] = [
    [],
    ["crc32c"],
    ["zstd"],
    ["gzip", "crc32c"],
    ["blosc"],
    [numcodecs.BitRound(5), "zstd"],
    [numcodecs.LZMA()],
]


def codecs_of(order: Any, codecs: list[Any], shards: tuple[int, ...] | None = None) -> ChunkCodecs:
    """Those of an array of chunks of (4, 6)."""
    layout = Layout.plan((8, 12), 4, order)
    array = ArrayMetadata(1, (8, 12), np.dtype("f4"), order, layout.line_stride, bytes(4))
    chunks = (2, 3) if shards else (4, 6)
    planned = plan(array, chunks, 1 << 20, codecs=codecs, shards=shards)
    return ChunkCodecs(zarr_format.to_zarr(planned))


@given(
    st.sampled_from(["row", "col"]),
    st.sampled_from(CODECS),
    npst.arrays("f4", (4, 6), elements=st.floats(-5, 5, width=32)),
)
def test_both_ways_make_the_same_bytes(order: str, codecs: list[Any], items: Any) -> None:
    chunk = codecs_of(order, codecs)
    data = chunk.encode(NDBuffer.from_numpy_array(items))
    if data is None:
        assert not items.any()
        return
    (theirs,) = sync(chunk._pipeline.encode([(NDBuffer.from_numpy_array(items), chunk._spec)]))
    assert theirs is not None
    assert data.to_bytes() == theirs.to_bytes()
    (decoded,) = sync(chunk._pipeline.decode([(data, chunk._spec)]))
    assert decoded is not None
    np.testing.assert_array_equal(chunk.decode(data).as_numpy_array(), decoded.as_numpy_array())


@pytest.mark.skipif(
    not is_direct(BytesCodec()), reason="zarr-python before 3.1.6 has all codecs on an event loop"
)
def test_which_codecs_need_no_event_loop() -> None:
    """Ours by default, and those of zarr-python; shards are its own to run."""
    for codecs in CODECS[:5]:
        assert codecs_of("col", codecs)._steps is not None, codecs
    assert codecs_of("row", [], (4, 6))._steps is None


def test_a_reader_loads_the_metadata_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """zarr-python takes a few milliseconds for it."""
    pmarray.open(f"zarr:{tmp_path}/g", (3,)).close()
    kind = LocalZarrBackend
    real, loads = kind.load, []

    def load(self: Any) -> Any:
        loads.append(1)
        return real(self)

    monkeypatch.setattr(kind, "load", load)
    with pmarray.open_group(f"zarr:{tmp_path}/g", mode="r") as group:
        assert loads == [1]
        group.refresh()
    assert len(loads) == 2

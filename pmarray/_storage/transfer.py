"""Reading and writing what an advanced index selects, piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmarray._dtypes import DType
from pmarray._selection.fancy import FancySelection
from pmarray._selection.pieces import Piece, pieces
from pmarray._storage.items import Items

__all__ = ["gather", "scatter", "update"]

AnyArray = NDArray[Any]

# Reading this much more costs about what another read costs.
_READ_GAP_BYTES = 64 << 10
# What lies between is written too, so no more than shares a block of the medium anyway.
_WRITE_GAP_BYTES = 4 << 10


def gather(storage: Items, selection: FancySelection, out: AnyArray, dtype: DType) -> None:
    """Read the selected items, of `dtype`, into a block of ``selection.block_shape``."""
    if not selection.selectors:
        item = np.empty(1, dtype)
        storage.read((slice(0, 1, 1),), item)
        out[...] = item.reshape(out.shape)
        return
    if storage.gather(selection, out):
        return
    for piece in pieces(selection, storage.layout, storage.chunk_shape, _READ_GAP_BYTES):
        if piece.in_place and out.dtype == dtype:
            storage.read(piece.bounds, _in_axis_order(out[piece.where], piece))
        else:
            box = _read_box(storage, piece, dtype)
            out[piece.where] = box.transpose(piece.axes)[piece.within]


def scatter(storage: Items, selection: FancySelection, values: AnyArray, dtype: DType) -> None:
    """Write a block of ``selection.block_shape`` to the selected items."""
    if not selection.selectors:
        storage.write((slice(0, 1, 1),), values.reshape(1))
        return
    for piece in pieces(selection, storage.layout, storage.chunk_shape, _WRITE_GAP_BYTES):
        if piece.in_place:
            storage.write(piece.bounds, _in_axis_order(values[piece.where], piece))
            continue
        if piece.exact:
            box = np.empty([len(range(b.start, b.stop, b.step)) for b in piece.bounds], dtype)
        else:
            box = _read_box(storage, piece, dtype)
        box.transpose(piece.axes)[piece.within] = values[piece.where]
        storage.write(piece.bounds, box)


def update(
    storage: Items,
    selection: FancySelection,
    change: Callable[[AnyArray, Any, Any], None],
    dtype: DType,
) -> None:
    """Change the selected items by `change`, of a box, what indexes it, and what the block."""
    for piece in pieces(selection, storage.layout, storage.chunk_shape, _WRITE_GAP_BYTES):
        box = _read_box(storage, piece, dtype)
        change(box.transpose(piece.axes), piece.within, piece.where)
        storage.write(piece.bounds, box)


def _read_box(storage: Items, piece: Piece, dtype: DType) -> AnyArray:
    shape = [len(range(b.start, b.stop, b.step)) for b in piece.bounds]
    box: AnyArray = np.empty(shape, dtype, order="F" if storage.layout.order == "col" else "C")
    storage.read(piece.bounds, box)
    return box


def _in_axis_order(block: AnyArray, piece: Piece) -> AnyArray:
    return block.transpose(np.argsort(piece.axes))

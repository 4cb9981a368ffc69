"""NumPy's advanced indices, and Zarr's orthogonal and coordinate ones. Pure.

An index becomes a `FancySelection`: one selector for each axis, or for several axes that are
selected jointly. `pieces` cuts it along the chunks of the array, so that each is visited once,
whatever the order of the index. (ndindex does not take arrays that are separated by slices, nor
boolean scalars beside arrays, both of which NumPy has a meaning for.)
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pmarray._selection.basic import (
    NotBasicError,
    Selection,
    ascending,
    integer,
    select_if_basic,
)
from pmarray.errors import SelectionError

__all__ = ["FancySelection", "Points", "Range", "fancy", "orthogonal", "parse", "pointwise"]

_MAX_AXES = 64  # NumPy's limit

AnyArray = NDArray[Any]
Positions = NDArray[np.intp]


class Range(NamedTuple):
    """The items of one axis that an ascending slice selects."""

    axis: int
    items: slice

    @property
    def axes(self) -> tuple[int, ...]:
        return (self.axis,)

    @property
    def size(self) -> int:
        return len(range(self.items.start, self.items.stop, self.items.step))


class Points(NamedTuple):
    """Coordinates on one axis, or jointly on several, in any order and repeated at will."""

    axes: tuple[int, ...]
    coordinates: tuple[Positions, ...]
    """One array of shape (size,) an axis, from 0 on."""

    @property
    def size(self) -> int:
        return self.coordinates[0].size


class FancySelection(NamedTuple):
    """What an advanced index selects: a block with one axis a selector, and how to look at it."""

    selectors: tuple[Range | Points, ...]
    """Together they have every axis of the array once."""
    shape: tuple[int, ...]
    """The shape that the result has."""
    flips: tuple[slice, ...]
    """Indexes a block so that descending slices run backwards."""
    expanded: tuple[int, ...]
    """The shape of the flipped block with jointly selected axes unravelled, and new axes."""
    moved: tuple[range, range]
    """Those axes of it that NumPy puts elsewhere, and where."""

    @property
    def block_shape(self) -> tuple[int, ...]:
        """The shape of the block."""
        return tuple(selector.size for selector in self.selectors)

    def to_result(self, block: AnyArray) -> AnyArray:
        """Look at a block as NumPy's result."""
        return np.moveaxis(_look(block, self.flips).reshape(self.expanded), *self.moved)

    def place_of(self, out: AnyArray) -> AnyArray | None:
        """Look at memory of `shape` as a block, to write to; None where that takes a copy."""
        moved = np.moveaxis(out, *reversed(self.moved))
        block = moved.reshape(self.block_shape)
        if not np.may_share_memory(block, out):
            return None
        return _look(block, self.flips)

    def to_block(self, values: AnyArray) -> AnyArray:
        """Look at values that broadcast to `shape` as a block."""
        if values.size == 1:
            return np.broadcast_to(values.reshape(()), self.block_shape)
        whole = np.moveaxis(np.broadcast_to(values, self.shape), *reversed(self.moved))
        return _look(whole.reshape(self.block_shape), self.flips)


def _look(block: AnyArray, flips: tuple[Any, ...]) -> AnyArray:
    view: AnyArray = block[(*flips, ...)]  # the Ellipsis keeps an array without axes an array
    return view


def parse(index: Any, shape: tuple[int, ...]) -> Selection | FancySelection:
    """Reduce any of NumPy's indices on an array of `shape`.

    Raises
    ------
    SelectionError
        Out of bounds, too many indices, or not an index.
    """
    try:
        return select_if_basic(index, shape)
    except NotBasicError:
        parts = tuple(_as_part(part) for part in (index if isinstance(index, tuple) else (index,)))
    try:
        # Array-likes of one integer and no axes are integers.
        return select_if_basic(parts, shape)
    except NotBasicError:
        return fancy(parts, shape)


# -- NumPy's meaning ----------------------------------------------------------------------------


def fancy(index: Any, shape: tuple[int, ...]) -> FancySelection:
    """Reduce an advanced index, with NumPy's rules for the place of the resulting axes.

    >>> s = fancy((0, slice(None), [2, 0]), (3, 4, 5))
    >>> s.shape, s.block_shape
    ((2, 4), (2, 4))
    """
    parts = [_as_part(part) for part in (index if isinstance(index, tuple) else (index,))]
    used = sum(_axes_of(part) for part in parts)
    if used > len(shape):
        raise SelectionError(
            f"too many indices for array: array is {len(shape)}-dimensional, but {used} were "
            "indexed"
        )
    if len(parts) - used + len(shape) > _MAX_AXES:
        raise SelectionError(f"the result would have more than {_MAX_AXES} axes")
    if not any(part is Ellipsis for part in parts):
        parts.append(Ellipsis)
    axis = separators = 0
    ranges: list[Range] = []
    joint: list[tuple[int | None, Positions]] = []
    others: list[_Other] = []
    places: set[tuple[int, int]] = set()
    for part in parts:
        if part is None:
            separators += 1
            others.append(_Other(1, None))
        elif isinstance(part, slice) or part is Ellipsis:
            separators += 1  # also an ellipsis of no length
            count = 1 if part is not Ellipsis else len(shape) - used
            for _ in range(count):
                items, flipped = ascending(slice(None) if part is Ellipsis else part, shape[axis])
                ranges.append(Range(axis, items))
                others.append(_Other(ranges[-1].size, axis, flipped))
                axis += 1
        else:
            places.add((separators, len(others)))
            joint += _coordinates(part, axis, shape)
            axis += _axes_of(part)
    joint_shape, points = _broadcast(joint)
    at = others_before = 0
    if len(places) == 1:
        _, others_before = next(iter(places))
    # The block has the selectors in the order of the first axis that each has.
    selectors: list[Range | Points] = [*ranges]
    if points is not None:
        at = sum(one.axis < points.axes[0] for one in ranges)
        selectors.insert(at, points)
    flips = {one.axis: one.flip for one in others if one.axis is not None}
    before = 0  # how many of the others lie before the joint axes in the block
    while before < len(others) and sum(o.axis is not None for o in others[:before]) < at:
        before += 1
    dims = [one.size for one in others]
    return FancySelection(
        selectors=tuple(selectors),
        shape=(*dims[:others_before], *joint_shape, *dims[others_before:]),
        flips=tuple(
            flips.get(one.axes[0], slice(None)) if isinstance(one, Range) else slice(None)
            for one in selectors
        ),
        expanded=(*dims[:before], *joint_shape, *dims[before:]),
        moved=(
            range(before, before + len(joint_shape)),
            range(others_before, others_before + len(joint_shape)),
        ),
    )


class _Other(NamedTuple):
    """An axis of the result that no array selects."""

    size: int
    axis: int | None
    flipped: bool = False

    @property
    def flip(self) -> slice:
        return slice(None, None, -1) if self.flipped else slice(None)


def _as_part(part: Any) -> Any:
    """Return None, an ellipsis, a slice, an int, or an integer or boolean array."""
    if part is None or part is Ellipsis or isinstance(part, slice | int):
        return np.asarray(part) if isinstance(part, bool) else part
    if hasattr(part, "__index__") and not hasattr(part, "ndim"):
        return operator.index(part)
    if isinstance(part, str | bytes):
        raise SelectionError(f"cannot index with {part!r}: arrays have no fields")
    try:
        array = np.asarray(part)
    except ValueError as error:
        raise SelectionError(f"cannot index with {type(part).__name__}: {error}") from error
    if not array.size and isinstance(part, list | tuple):
        array = array.astype(np.intp)
    if array.dtype.kind not in "biu":
        raise SelectionError(
            f"cannot index with {type(part).__name__} of {array.dtype}: only integers, slices, "
            "..., None and integer or boolean arrays are indices"
        )
    return array


def _axes_of(part: Any) -> int:
    if part is None or part is Ellipsis:
        return 0
    if isinstance(part, np.ndarray) and part.dtype == bool:
        return part.ndim
    return 1


def _coordinates(
    part: Any, axis: int, shape: tuple[int, ...]
) -> list[tuple[int | None, Positions]]:
    """Turn an int, an array or a mask into coordinates by axis; of a boolean scalar, by none."""
    if isinstance(part, np.ndarray) and part.dtype == bool:
        if not part.ndim:
            return [(None, np.zeros(int(part), np.intp))]
        for i, extent in enumerate(part.shape):
            if extent not in (shape[axis + i], 0):  # as NumPy: nothing is nothing anywhere
                raise SelectionError(
                    f"boolean index did not match indexed array along axis {axis + i}; size of "
                    f"axis is {shape[axis + i]} but size of corresponding boolean axis is {extent}"
                )
        return [(axis + i, found) for i, found in enumerate(part.nonzero())]
    return [(axis, _in_bounds(np.asarray(part), axis, shape[axis]))]


def _in_bounds(coordinates: AnyArray, axis: int, extent: int) -> Positions:
    if coordinates.size:
        for extreme in (coordinates.min(), coordinates.max()):
            integer(extreme, axis, extent)
    positions = coordinates.astype(np.intp)
    return np.where(positions < 0, positions + extent, positions)


def _broadcast(
    joint: list[tuple[int | None, Positions]],
) -> tuple[tuple[int, ...], Points | None]:
    """Broadcast the coordinates; return their shape, and the points if they have any axis."""
    if not joint:
        return (), None
    try:
        arrays = np.broadcast_arrays(*(coordinates for _, coordinates in joint))
    except ValueError:
        shapes = " ".join(str(coordinates.shape) for _, coordinates in joint)
        raise SelectionError(
            f"shape mismatch: indexing arrays of shapes {shapes} cannot be broadcast together"
        ) from None
    shape = arrays[0].shape
    by_axis = {
        axis: np.ravel(array)
        for (axis, _), array in zip(joint, arrays, strict=True)
        if axis is not None
    }
    if not by_axis:
        return shape, None
    return shape, Points(tuple(by_axis), tuple(by_axis.values()))


# -- Zarr's meanings ----------------------------------------------------------------------------


def orthogonal(index: Any, shape: tuple[int, ...]) -> FancySelection:
    """Reduce an index that selects on each axis for itself: ints, slices, arrays, masks.

    >>> orthogonal(([2, 0], [1, 3]), (3, 4)).shape
    (2, 2)
    """
    parts = [_as_part(part) for part in (index if isinstance(index, tuple) else (index,))]
    if any(part is None for part in parts):
        raise SelectionError("oindex takes no new axes: add them to the result")
    parts = _fill_up(parts, shape)
    selectors: list[Range | Points] = []
    result: list[int] = []
    flips: list[slice] = []
    for axis, (part, extent) in enumerate(zip(parts, shape, strict=True)):
        flip = False
        if isinstance(part, slice):
            items, flip = ascending(part, extent)
            selectors.append(Range(axis, items))
        elif isinstance(part, np.ndarray) and part.ndim:
            if part.ndim > 1:
                raise SelectionError(f"oindex takes arrays of one axis, not {part.ndim}")
            ((_, coordinates),) = _coordinates(part, axis, shape)
            selectors.append(Points((axis,), (coordinates,)))
        else:
            i = integer(part, axis, extent)
            selectors.append(Range(axis, slice(i, i + 1, 1)))
        if not isinstance(part, int | np.integer) and not (
            isinstance(part, np.ndarray) and not part.ndim
        ):
            result.append(selectors[-1].size)
        flips.append(slice(None, None, -1) if flip else slice(None))
    none = range(0)
    return FancySelection(
        tuple(selectors), tuple(result), tuple(flips), tuple(result), (none, none)
    )


def pointwise(index: Any, shape: tuple[int, ...]) -> FancySelection:
    """Reduce an index of coordinates on every axis, broadcast together, or one mask of the whole.

    >>> pointwise(([2, 0], [1, 3]), (3, 4)).shape
    (2,)
    """
    parts = [_as_part(part) for part in (index if isinstance(index, tuple) else (index,))]
    if any(part is None or part is Ellipsis or isinstance(part, slice) for part in parts):
        raise SelectionError("vindex takes integers and integer arrays, or one mask of the whole")
    if sum(_axes_of(part) for part in parts) != len(shape):
        raise SelectionError(
            f"vindex needs coordinates on each of the {len(shape)} axes, or one mask of the whole"
        )
    return fancy(tuple(parts), shape)


def _fill_up(parts: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """Replace the ellipsis, or the end, by full slices."""
    ellipses = [i for i, part in enumerate(parts) if part is Ellipsis]
    missing = len(shape) - (len(parts) - len(ellipses))
    if missing < 0:
        raise SelectionError(f"too many indices: the array has {len(shape)} axes")
    if len(ellipses) > 1:
        raise SelectionError("an index can only have a single ellipsis ('...')")
    at = ellipses[0] if ellipses else len(parts)
    return [*parts[:at], *[slice(None)] * missing, *parts[at + 1 :]]


# -- along the chunks ---------------------------------------------------------------------------

"""Ufuncs over arrays that outgrow memory, piece by piece in the order of the medium.

A piece is read from every operand, computed by NumPy, and written, before the next is read: at most
`config.work_memory` is held. Dtypes, casting and errors are NumPy's own, since it is asked what it
would do with empty arrays of the same types before anything is read.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple
from numpy.typing import NDArray

from pmarray import linalg
from pmarray._array.overlap import apart_from, apart_from_all_of, is_stored, root
from pmarray._array.stored import StoredArray
from pmarray._config import config
from pmarray._geometry.layout import Layout, Order
from pmarray._numpy.operands import as_operand, has_numbers, in_dask, into_memory, is_operand
from pmarray._numpy.summing import add_up
from pmarray._selection.fancy import FancySelection, parse
from pmarray._storage.transfer import update
from pmarray._streams.reading import Sight, show_pieces
from pmarray._streams.sources import is_dask

__all__ = [
    "Index",
    "accumulated_dtype",
    "array_ufunc",
    "in_memory",
    "into",
    "is_foreign",
    "is_stored",
    "look_through",
    "loop_of",
    "make_result",
    "part_of",
    "reduce",
    "root",
    "same_shape",
    "walk",
]

AnyArray = NDArray[Any]
Index = tuple[slice, ...]

_UNLIMITED = 1 << 62
_PIECES = 16
"""In so many at least a long array is reduced: threads read those that follow."""
_LEAST_PIECE_BYTES, _MOST_PIECE_BYTES = 4 << 20, 16 << 20
"""Between shorter ones, the interpreter takes as long as they do. Of longer ones, what is looked at
once more has left the processor's cache."""

# (a ∘ b) ∘ c = a ∘ (b ∘ c), so that pieces can be reduced before they are put together.
_ASSOCIATIVE = {
    np.add, np.multiply, np.maximum, np.minimum, np.fmax, np.fmin,
    np.logical_and, np.logical_or, np.logical_xor,
    np.bitwise_and, np.bitwise_or, np.bitwise_xor,
    np.gcd, np.lcm, np.hypot, np.logaddexp, np.logaddexp2,
}  # fmt: skip


def array_ufunc(ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], options: Any) -> Any:
    """`PMArray.__array_ufunc__`."""
    out = options.get("out", ())
    if not out and any(is_dask(type(value)) for value in inputs):
        return in_dask(getattr(ufunc, method), inputs, options)
    if method == "at":
        array, index, *values = inputs
        if not all(map(is_operand, values)):
            return NotImplemented
        return _at(ufunc, array, index, *map(as_operand, values))
    if out and all(map(is_stored, out)):  # which leaves no doubt of what becomes of a Series
        inputs = tuple(value if is_operand(value) else into_memory(value) for value in inputs)
    if not all(is_operand(value) for value in (*inputs, *out)):
        return NotImplemented
    inputs = tuple(map(as_operand, inputs))
    if not out and any(is_foreign(type(value)) for value in inputs):
        # Such a class makes its own of the result: masked arrays their mask, matrices themselves.
        plain = (in_memory(value, ufunc.__name__) for value in inputs)
        return getattr(ufunc, method)(*plain, **_in_memory_options(ufunc, options))
    if method == "outer":
        left, right = inputs
        fresh = (None,) * np.ndim(right)
        # A lazy view with as many axes at its end as the other operand has.
        left = left.view[(..., *fresh)] if is_stored(left) else np.asarray(left)[(..., *fresh)]
        return array_ufunc(ufunc, "__call__", (left, right), options)
    if ufunc.signature is not None or method == "reduceat":
        return _whole(ufunc, method, inputs, options)
    if method == "__call__":
        return _call(ufunc, inputs, options)
    options = {**options, "out": out[0] if out else None}
    if method == "reduce":
        return reduce(ufunc, *inputs, **options)
    return _accumulate(ufunc, *inputs, **options)


def is_foreign(kind: type) -> bool:
    """Whether it is a class of arrays that are more than their items, unlike `numpy.memmap`."""
    return issubclass(kind, np.ndarray) and kind not in (np.ndarray, np.memmap)


def in_memory(value: Any, what: str) -> Any:
    """Read an operand whole, if it may be."""
    if not is_stored(value):
        return value
    config.check_result(value.nbytes, f"{what} needs the whole array in memory; use parts of it")
    return np.asarray(value)


def _in_memory_options(ufunc: np.ufunc, options: dict[str, Any]) -> dict[str, Any]:
    return {key: in_memory(value, ufunc.__name__) for key, value in options.items()}


def _whole(ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], options: Any) -> Any:
    if ufunc is np.matmul and method == "__call__" and not options.keys() - {"out"}:
        shapes = [np.ndim(value) for value in inputs]
        if max(shapes) <= 2 and min(shapes) >= 1 and all(map(has_numbers, inputs)):
            (target,) = options.get("out") or (None,)
            left, right = inputs = tuple(apart_from_all_of(target, x) for x in inputs)
            if any(map(is_stored, (*inputs, target))):
                return linalg.matmul(left, right, out=target)
    out = options.pop("out", None)
    options = _in_memory_options(ufunc, options)
    inputs = tuple(in_memory(x, ufunc.__name__) for x in inputs)
    if out is None:
        return getattr(ufunc, method)(*inputs, **options)
    memory = tuple(np.empty(o.shape, o.dtype) if is_stored(o) else o for o in out)
    getattr(ufunc, method)(*inputs, out=memory, **options)
    for one, values in zip(out, memory, strict=True):
        if one is not values:
            one[...] = values
    return out if len(out) > 1 else out[0]


# -- the walk -----------------------------------------------------------------------------------


def walk(
    shape: tuple[int, ...], item_nbytes: int, order: Order, most: int | None = None
) -> Iterator[Index]:
    """Cut a shape into pieces in the order of a layout, within the work memory.

    `item_nbytes` is what all operands and results together hold of one item; `most` is what all
    items of a piece may hold, if less than the work memory.
    """
    if not shape:
        yield ()
        return
    if 0 in shape:
        return
    layout = Layout.plan(shape, max(1, item_nbytes), order)
    # A piece is a result itself, of an index.
    nbytes = min(config.work_memory, config.max_result or config.work_memory, most or _UNLIMITED)
    whole = tuple(slice(0, n, 1) for n in shape)
    for extent in layout.extents(whole, layout.chunk_shape(nbytes, nbytes)):
        yield extent.block


def _order_of(values: Sequence[Any], shape: tuple[int, ...]) -> Order:
    """The layout of the largest stored operand."""
    stored = [value for value in values if is_stored(value)]
    if not stored:
        return "row"
    largest = max(stored, key=lambda value: (value.shape == shape, value.nbytes))
    order: Order = largest.layout
    return order


def look_through(array: Any, item_nbytes: int) -> Iterator[tuple[Index, Sight]]:
    """Look at all of an array in the order of its medium, as `show_pieces` does.

    `item_nbytes` is what is held of one item while a piece is worked on.
    """
    if not is_stored(array):
        for piece in walk(array.shape, item_nbytes, "row"):
            yield piece, Sight(np.asarray(array[piece]))
        return
    pieces = list(walk(array.shape, item_nbytes + 2 * array.itemsize, array.layout))
    largest = max((math.prod(o.stop - o.start for o in piece) for piece in pieces), default=0)
    nbytes = 3 * (largest * array.itemsize + mmap.PAGESIZE)
    yield from zip(pieces, show_pieces(array, pieces, nbytes), strict=True)


def part_of(value: Any, shape: tuple[int, ...], piece: Index) -> Any:
    """The items of an operand that broadcasts to `shape`, in one piece of it."""
    if not isinstance(value, np.ndarray) and not is_stored(value):
        return value
    own = value.shape
    index = tuple(
        slice(0, 1) if n == 1 else one
        for n, one in zip(own, piece[len(shape) - len(own) :], strict=True)
    )
    return value[index] if own else value[()]


def _empty_like(value: Any) -> Any:
    """What NumPy takes for the operand when it chooses dtypes."""
    if is_stored(value) or isinstance(value, np.ndarray):
        return np.empty(0, value.dtype)
    return value


def make_result(shape: tuple[int, ...], dtype: Any, order: Order) -> AnyArray:
    """Memory for a result, if it may be made."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    config.check_result(nbytes, "give a PMArray as out=")
    return np.empty(shape, dtype, order="F" if order == "col" else "C")


def _as_mask(where: Any) -> Any:
    """What NumPy makes of ``where=``: truth values of a list, no cast of an array."""
    if isinstance(where, list | tuple):
        return np.asarray(where, bool)
    return np.asarray(where) if isinstance(where, np.generic) else where


# -- element by element -------------------------------------------------------------------------


def _call(ufunc: np.ufunc, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    outs = list(options.pop("out", None) or [None] * ufunc.nout)
    where = _as_mask(options.pop("where", True))
    order = options.pop("order", "K")
    options.pop("subok", None)
    given = [out for out in outs if out is not None]
    # Types first, as NumPy refuses them.
    probe = ufunc(
        *(_empty_like(x) for x in inputs),
        out=tuple(None if out is None else np.empty(0, out.dtype) for out in outs),
        **options,
    )
    shape = np.broadcast_shapes(*(np.shape(x) for x in (*inputs, where)))
    for out in given:
        if np.broadcast_shapes(shape, out.shape) != out.shape:
            raise ValueError(
                f"non-broadcastable output operand with shape {out.shape} doesn't match the "
                f"broadcast shape {shape}"
            )
        shape = out.shape
    dtypes = [one.dtype for one in (probe if ufunc.nout > 1 else (probe,))]
    layout = _order_of([*given, *inputs], shape)
    memory: Order = {"C": "row", "F": "col"}.get(order, layout)  # type: ignore[assignment]
    results: list[Any] = [
        make_result(shape, dtype, memory) if out is None else out
        for out, dtype in zip(outs, dtypes, strict=True)
    ]
    inputs = tuple(apart_from(x, given) for x in inputs)
    where = apart_from(where, given, "where=")
    itemsize = sum(dtype.itemsize for dtype in dtypes)
    itemsize += sum(x.dtype.itemsize for x in inputs if is_stored(x))
    for piece in walk(shape, itemsize, layout):
        parts = [part_of(x, shape, piece) for x in inputs]
        mask = part_of(where, shape, piece)
        # What `where` leaves out keeps its value.
        targets = [
            result[(*piece, ...)]
            if not is_stored(result)
            else np.asarray(result[piece])
            if mask is not True
            else np.empty([one.stop - one.start for one in piece], result.dtype)
            for result in results
        ]
        ufunc(*parts, out=tuple(targets), where=mask, **options)
        for result, target in zip(results, targets, strict=True):
            if is_stored(result):
                result[piece] = target
    final = [
        r if out is not None or r.ndim else r[()] for r, out in zip(results, outs, strict=True)
    ]
    return tuple(final) if ufunc.nout > 1 else final[0]


# -- along axes ---------------------------------------------------------------------------------


def reduce(
    ufunc: np.ufunc,
    array: Any,
    axis: Any = 0,
    dtype: Any = None,
    out: Any = None,
    keepdims: bool = False,
    initial: Any = np._NoValue,
    where: Any = True,
    instead_of_nan: Any = None,
) -> Any:
    """`ufunc.reduce` of an array of any size; only the result is in memory.

    `instead_of_nan` is what takes the place of NaN, if anything.
    """
    where = _as_mask(where)
    if not is_stored(array):
        result = ufunc.reduce(
            array, axis=axis, dtype=dtype, keepdims=keepdims, initial=initial,
            where=in_memory(where, ufunc.__name__),
        )  # fmt: skip
        return into(out, np.asarray(result)) if out is not None else result
    shape = array.shape
    if axis is None or (not shape and axis in (0, -1)):  # which NumPy takes of one item alone
        axes = tuple(range(array.ndim))
    else:
        axes = normalize_axis_tuple(axis, array.ndim)
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    probe_options: dict[str, Any] = {} if initial is np._NoValue else {"initial": initial}
    # NumPy's own refusals: an empty axis without identity, a `where` without a start value.
    probe = ufunc.reduce(
        np.ones([min(n, 1) for n in shape], array.dtype), axis=axes if axes else (), dtype=dtype,
        where=True if where is True else np.ones((1,) * array.ndim, bool), **probe_options,
    )  # fmt: skip
    kind = probe.dtype
    if out is not None:
        same_shape(out, tuple(n for i, n in enumerate(kept) if keepdims or i not in axes))
        if dtype is None:
            kind = _loop_dtype(ufunc, array.dtype, out.dtype)
            dtype = kind
    total = make_result(kept, kind, array.layout)

    def without_nan(block: AnyArray) -> AnyArray:
        if instead_of_nan is not None and block.dtype.kind in "fc":
            block = block.copy("K")
            np.copyto(block, instead_of_nan, where=np.isnan(block))
        return block

    if 0 in shape or not axes:
        with_start = {**probe_options, "where": part_of(where, shape, _full(shape))}
        config.check_result(array.nbytes, "give an axis, or reduce parts of it")
        total[...] = ufunc.reduce(
            without_nan(array[...]), axis=axes, dtype=dtype, keepdims=True, **with_start
        )
    sequential = ufunc not in _ASSOCIATIVE
    fold = add_up if ufunc is np.add else partial(ufunc.reduce, keepdims=True)
    later: dict[str, Any] = {}
    if ufunc is np.add and kind.kind in "fc":
        # What changes no sum: from 0.0, as NumPy begins, the sum of -0.0 would be 0.0.
        later = {"initial": kind.type(-0.0 if kind.kind == "f" else complex(-0.0, -0.0))}
    most = min(max(array.nbytes // _PIECES, _LEAST_PIECE_BYTES), _MOST_PIECE_BYTES)
    # A piece may be copied.
    pieces = list(walk(shape, 2 * array.itemsize, array.layout, 2 * most) if axes else ())
    sights = show_pieces(array, pieces, config.work_memory // 2)
    for piece, sight in zip(pieces, sights, strict=True):
        mask = part_of(where, shape, piece)
        place = tuple(slice(0, 1) if i in axes else one for i, one in enumerate(piece))
        first = all(piece[i].start == 0 for i in axes)
        for block in sight.looks():
            items = without_nan(block)
            if sequential and not first:
                (along,) = axes
                items = items.astype(kind, copy=False)
                if mask is True:
                    # As one long series: what came before is its first item.
                    items = np.concatenate([total[place], items], axis=along)
                    part = ufunc.reduce(items, axis=along, dtype=dtype, keepdims=True)
                else:
                    use = np.broadcast_to(mask, items.shape)
                    part = _fold(ufunc, total[place], items, along, use)
                continue
            begin = probe_options if first or ufunc.identity is None else later
            part = fold(items, axes, dtype=dtype, where=mask, **begin)
            if not first:
                part = ufunc(total[place], part)
        total[place] = part
    if not keepdims:
        total = total.reshape([n for i, n in enumerate(kept) if i not in axes])
    if out is None:
        return total if total.ndim else total[()]
    return into(out, total, casting="unsafe")


def _fold(
    ufunc: np.ufunc, so_far: AnyArray, block: AnyArray, along: int, mask: AnyArray
) -> AnyArray:
    """Reduce what a mask leaves of a block, line by line: no start value has axes."""
    total = so_far.copy()
    for i in range(block.shape[along]):
        line = (*[slice(None)] * along, slice(i, i + 1))
        ufunc(total, block[line], out=total, where=mask[line])
    return total


def _loop_dtype(ufunc: np.ufunc, items: Any, out: Any) -> Any:
    """The dtype in which NumPy reduces items when ``out=`` is given: it takes part in the choice.

    What is reduced is then cast, in any way.
    """
    kinds = (out, np.dtype(items), None)
    return ufunc.resolve_dtypes(kinds, casting="unsafe", reduction=True)[0]


def into(out: Any, result: AnyArray, casting: Any = "same_kind") -> Any:
    """Write a result into ``out=``, which has to have its shape.

    Raises
    ------
    ValueError
        Another shape.
    TypeError
        A dtype that the result is not cast to.
    """
    same_shape(out, result.shape)
    if not np.can_cast(result.dtype, out.dtype, casting):
        raise TypeError(f"cannot cast the result from {result.dtype} to {out.dtype}")
    out[...] = result
    return out


def same_shape(out: Any, shape: tuple[int, ...]) -> None:
    """Refuse an ``out=`` that is no array, or of another shape than the result."""
    if not (is_stored(out) or isinstance(out, np.ndarray)):
        raise TypeError(f"out= is a {type(out).__name__}: give a numpy.ndarray or a PMArray")
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}, the result {shape}")


def _full(shape: tuple[int, ...]) -> Index:
    return tuple(slice(0, n) for n in shape)


def _accumulate(
    ufunc: np.ufunc, array: Any, axis: int = 0, dtype: Any = None, out: Any = None
) -> Any:
    if not is_stored(array):
        result = ufunc.accumulate(array, axis=axis, dtype=dtype)
        return into(out, np.asarray(result), casting="unsafe")
    (along,) = normalize_axis_tuple(axis, array.ndim)
    shape = array.shape
    found = accumulated_dtype(ufunc, array, dtype, out)
    result = make_result(shape, found, array.layout) if out is None else out
    same_shape(result, shape)
    array = apart_from(array, [result], "the array")
    ends = tuple(1 if i == along else n for i, n in enumerate(shape))
    config.check_result(math.prod(ends) * found.itemsize, "accumulate along another axis")
    last = np.empty(ends, found)
    for piece in walk(
        shape, 2 * array.dtype.itemsize + 4 * found.itemsize, _order_of([array, result], shape)
    ):
        block = np.asarray(array[piece])
        place = tuple(slice(0, 1) if i == along else one for i, one in enumerate(piece))
        skip: Index = ()
        if piece[along].start:
            block = np.concatenate([last[place], block.astype(found, copy=False)], axis=along)
            skip = (*[slice(None)] * along, slice(1, None))
        part = ufunc.accumulate(block, axis=along, dtype=loop_of(found))[skip]
        last[place] = part[(*[slice(None)] * along, slice(-1, None))]
        result[piece] = part
    return result


def accumulated_dtype(ufunc: np.ufunc, array: Any, dtype: Any, out: Any) -> Any:
    """The dtype of a running sum or product, and the like."""
    if dtype is None and out is not None:
        return _loop_dtype(ufunc, array.dtype, out.dtype)
    return ufunc.accumulate(np.ones(1, array.dtype), dtype=dtype).dtype


def loop_of(found: np.dtype[Any]) -> np.dtype[Any] | None:
    """What an accumulating ufunc is to be told: it takes no dtype that has a unit."""
    return None if found.kind in "mM" else found


# -- in place, at an index ----------------------------------------------------------------------


def _at(ufunc: np.ufunc, array: Any, index: Any, values: Any = None) -> None:
    more = () if values is None else (in_memory(values, ufunc.__name__),)
    if not is_stored(array):
        parts = index if isinstance(index, tuple) else (index,)
        parts = tuple(in_memory(part, "an index") for part in parts)
        ufunc.at(array, parts if isinstance(index, tuple) else parts[0], *more)
        return
    _apply_at(array, ufunc, index, *more)


def _apply_at(array: StoredArray, ufunc: np.ufunc, index: Any, *values: Any) -> None:
    """Carry out ``ufunc.at(array, index, *values)``."""
    values = tuple(apart_from(v, [array], "the value") for v in values)
    with array._turn():
        array._admit_writer()
        selection = parse(index, array.shape)
        if isinstance(selection, FancySelection) and selection.selectors:
            blocks = [selection.to_block(np.broadcast_to(v, selection.shape)) for v in values]

            def change(box: AnyArray, within: Any, where: Any) -> None:
                ufunc.at(box, within, *(block[where] for block in blocks))

            if 0 not in selection.shape:
                update(array._storage, selection, change, array.dtype)
            return
        block = np.asarray(array._read(selection))
        ufunc.at(block, cast(Any, ...), *values)
        array._write(selection, block)

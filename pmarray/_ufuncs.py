"""Ufuncs over arrays that outgrow memory, piece by piece in the order of the medium.

A piece is read from every operand, computed by NumPy, and written, before the next is read: at most
`config.work_memory` is held. Dtypes, casting and errors are NumPy's own, since it is asked what it
would do with empty arrays of the same types before anything is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple
from numpy.typing import NDArray

from pmarray._config import config
from pmarray.errors import LayoutError
from pmarray.layout import Layout, Order

if TYPE_CHECKING:
    from pmarray.array import PMArray

__all__ = [
    "Index",
    "array_ufunc",
    "in_memory",
    "is_stored",
    "make_result",
    "part_of",
    "reduce",
    "root",
    "walk",
]

AnyArray = NDArray[Any]
Index = tuple[slice, ...]

_UNLIMITED = 1 << 62
_IN_CACHE_BYTES = 4 << 20
"""A piece that is read once more is still in the processor's cache then."""

# (a ∘ b) ∘ c = a ∘ (b ∘ c), so that pieces can be reduced before they are put together.
_ASSOCIATIVE = {
    np.add, np.multiply, np.maximum, np.minimum, np.fmax, np.fmin,
    np.logical_and, np.logical_or, np.logical_xor,
    np.bitwise_and, np.bitwise_or, np.bitwise_xor,
    np.gcd, np.lcm, np.hypot, np.logaddexp, np.logaddexp2,
}  # fmt: skip


def is_stored(value: Any) -> bool:
    """Whether it is a `PMArray`."""
    from pmarray.array import PMArray  # which is made of this module's class

    return isinstance(value, PMArray)


def array_ufunc(ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], options: Any) -> Any:
    """`PMArray.__array_ufunc__`."""
    out = options.get("out", ())
    if not all(_known(value) for value in (*inputs, *out)):
        return NotImplemented
    if method == "at":
        return _at(ufunc, *inputs)
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


def _known(value: Any) -> bool:
    return (
        value is None
        or is_stored(value)
        or (isinstance(value, np.ndarray | np.generic | int | float | complex | list | tuple))
    )


def in_memory(value: Any, what: str) -> Any:
    """Read an operand whole, if it may be."""
    if not is_stored(value):
        return value
    config.check_result(value.nbytes, f"{what} needs the whole array in memory; use parts of it")
    return np.asarray(value)


def _whole(ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], options: Any) -> Any:
    if ufunc is np.matmul and method == "__call__" and not options.keys() - {"out"}:
        shapes = [np.ndim(value) for value in inputs]
        if max(shapes) <= 2 and min(shapes) >= 1:
            from pmarray.linalg import matmul

            left, right = inputs
            return matmul(left, right, out=options["out"][0] if options.get("out") else None)
    out = options.get("out")
    options = {key: in_memory(value, ufunc.__name__) for key, value in options.items()}
    if out is not None and any(is_stored(one) for one in out):
        raise LayoutError(f"{ufunc.__name__}.{method} takes no PMArray as out=: assign its result")
    return getattr(ufunc, method)(*(in_memory(x, ufunc.__name__) for x in inputs), **options)


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


def _separate(value: Any, outs: Sequence[Any]) -> Any:
    """Copy an operand whose items an output holds at other places."""
    if not is_stored(value):
        return value
    for out in outs:
        if is_stored(out) and out is not value and root(out) is root(value):
            config.check_result(value.nbytes, "the operand overlaps out=: use another out=")
            return value[...]
    return value


def root(array: PMArray) -> PMArray:
    """The array that a view is of."""
    while (base := getattr(array, "_base", None)) is not None:
        array = base
    return array


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


# -- element by element -------------------------------------------------------------------------


def _call(ufunc: np.ufunc, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    inputs = tuple(np.asarray(x) if isinstance(x, list | tuple) else x for x in inputs)
    outs = list(options.pop("out", None) or [None] * ufunc.nout)
    where = options.pop("where", True)
    where = np.asarray(where) if isinstance(where, list | tuple) else where
    order = options.pop("order", "K")
    options.pop("subok", None)
    given = [out for out in outs if out is not None]
    shape = np.broadcast_shapes(*(np.shape(x) for x in (*inputs, where)))
    for out in given:
        if np.broadcast_shapes(shape, out.shape) != out.shape:
            raise ValueError(
                f"non-broadcastable output operand with shape {out.shape} doesn't match the "
                f"broadcast shape {shape}"
            )
        shape = out.shape
    probe = ufunc(
        *(_empty_like(x) for x in inputs),
        out=tuple(None if out is None else np.empty(0, out.dtype) for out in outs),
        **options,
    )
    dtypes = [one.dtype for one in (probe if ufunc.nout > 1 else (probe,))]
    layout = _order_of([*given, *inputs], shape)
    memory: Order = {"C": "row", "F": "col"}.get(order, layout)  # type: ignore[assignment]
    results: list[Any] = [
        make_result(shape, dtype, memory) if out is None else out
        for out, dtype in zip(outs, dtypes, strict=True)
    ]
    inputs = tuple(_separate(x, given) for x in inputs)
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
) -> Any:
    """`ufunc.reduce` of an array of any size; only the result is in memory."""
    if not is_stored(array):
        result = ufunc.reduce(
            array, axis=axis, dtype=dtype, keepdims=keepdims, initial=initial,
            where=in_memory(where, ufunc.__name__),
        )  # fmt: skip
        if out is None:
            return result
        return _reduced_into(out, np.asarray(result))
    shape = array.shape
    axes = tuple(range(array.ndim)) if axis is None else normalize_axis_tuple(axis, array.ndim)
    probe_options: dict[str, Any] = {} if initial is np._NoValue else {"initial": initial}
    # NumPy's own refusals: an empty axis without identity, a `where` without a start value.
    probe = ufunc.reduce(
        np.ones([min(n, 1) for n in shape], array.dtype), axis=axes if axes else (), dtype=dtype,
        where=True if where is True else np.ones((1,) * array.ndim, bool), **probe_options,
    )  # fmt: skip
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    total = make_result(kept, probe.dtype, array.layout)
    if 0 in shape or not axes:
        with_start = {**probe_options, "where": part_of(where, shape, _full(shape))}
        total[...] = ufunc.reduce(
            np.asarray(array), axis=axes, dtype=dtype, keepdims=True, **with_start
        )
    sequential = ufunc not in _ASSOCIATIVE
    memory = _Memory(array.dtype, array.layout)
    for piece in walk(shape, 2 * array.itemsize, array.layout, _IN_CACHE_BYTES) if axes else ():
        block = memory.read(array, piece)
        mask = part_of(where, shape, piece)
        place = tuple(slice(0, 1) if i in axes else one for i, one in enumerate(piece))
        first = all(piece[i].start == 0 for i in axes)
        if sequential and not first:
            # As one long series: what came before is its first item.
            (along,) = axes
            block = np.concatenate([total[place].astype(block.dtype), block], axis=along)
            total[place] = ufunc.reduce(block, axis=along, dtype=dtype, keepdims=True)
            continue
        begin = probe_options if first or ufunc.identity is None else {}
        part = ufunc.reduce(block, axis=axes, dtype=dtype, keepdims=True, where=mask, **begin)
        if first:
            total[place] = part
        else:
            total[place] = ufunc(total[place], part)
    if not keepdims:
        total = total.reshape([n for i, n in enumerate(kept) if i not in axes])
    if out is None:
        return total if total.ndim else total[()]
    return _reduced_into(out, total)


def _reduced_into(out: Any, total: AnyArray) -> Any:
    if out.shape != total.shape:
        raise ValueError(f"out has shape {out.shape}, the result {total.shape}")
    if not np.can_cast(total.dtype, out.dtype, "same_kind"):
        raise TypeError(f"cannot cast the result from {total.dtype} to {out.dtype}")
    out[...] = total
    return out


class _Memory:
    """Memory that one piece after another is read into: new memory would be cleared each time."""

    def __init__(self, dtype: np.dtype[Any], order: Order) -> None:
        self._dtype = dtype
        self._order: Literal["C", "F"] = "F" if order == "col" else "C"
        self._items = np.empty(0, dtype)

    def read(self, array: PMArray, piece: Index) -> AnyArray:
        shape = [one.stop - one.start for one in piece]
        count = math.prod(shape)
        if self._items.size < count:
            self._items = np.empty(count, self._dtype)
        block = self._items[:count].reshape(shape, order=self._order)
        array.read(piece, out=block)
        return block


def _full(shape: tuple[int, ...]) -> Index:
    return tuple(slice(0, n) for n in shape)


def _accumulate(
    ufunc: np.ufunc, array: Any, axis: int = 0, dtype: Any = None, out: Any = None
) -> Any:
    if not is_stored(array):
        result = ufunc.accumulate(array, axis=axis, dtype=dtype)
        out[...] = result
        return out
    (along,) = normalize_axis_tuple(axis, array.ndim)
    shape = array.shape
    found = ufunc.accumulate(np.ones((1,) * array.ndim, array.dtype), axis=axis, dtype=dtype).dtype
    result = make_result(shape, found, array.layout) if out is None else out
    if result.shape != shape:
        raise ValueError(f"out has shape {result.shape}, the result {shape}")
    array = _separate(array, [result])
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
        part = ufunc.accumulate(block, axis=along, dtype=dtype)[skip]
        last[place] = part[(*[slice(None)] * along, slice(-1, None))]
        result[piece] = part
    return result


# -- in place, at an index ----------------------------------------------------------------------


def _at(ufunc: np.ufunc, array: Any, index: Any, values: Any = None) -> None:
    more = () if values is None else (in_memory(values, ufunc.__name__),)
    if not is_stored(array):
        ufunc.at(array, index, *more)
        return
    array._apply_at(ufunc, index, *more)

"""Sums of products over labelled axes, of one operand or of two, piece by piece.

The space that all labels span is cut into boxes. Outermost are tiles of the result, then pieces of
the first operand in the order of its medium, then pieces of the second. A result in memory is one
tile, so that the first operand is read once; a stored one is written tile by tile, and an operand
is read once for every cut of a label that it has not. A quarter of the work memory each goes to
the sums of a tile, a piece of either operand, and what is added to the sums.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from pmarray._array.overlap import is_stored
from pmarray._config import config
from pmarray._geometry.layout import Order
from pmarray._numpy.functions.registry import AnyArray
from pmarray._numpy.functions.subscripts import Subscripts
from pmarray._numpy.ufuncs import walk
from pmarray.errors import LayoutError
from pmarray.linalg._blocks import as_output, new_result

__all__ = ["contract"]

Box = dict[int, slice]
"""A range of each label."""

_COPIES = 3
"""Of a piece: as read, in the dtype of the sums, and transposed for BLAS."""


def contract(
    operands: list[Any], subscripts: Subscripts, out: Any = None, *, conjugate: bool = False
) -> Any:
    """Sum the products of one or two operands over the labels that `subscripts` leaves out.

    Parameters
    ----------
    operands
        `PMArray` or `numpy.ndarray`, with the extents of labels equal.
    subscripts
        With no label twice in one term.
    out : numpy.ndarray or PMArray, optional
        Takes the result; not an operand.
    conjugate
        Take the complex conjugate of the first operand.

    Returns
    -------
    numpy.ndarray or scalar or PMArray
        In the common dtype of the operands; float16 is summed in float32. `out` if given.
    """
    extents: dict[int, int] = {}
    for operand, term in zip(operands, subscripts.inputs, strict=True):
        for label, n in zip(term, operand.shape, strict=True):
            if extents.setdefault(label, n) != n:
                raise LayoutError(f"one axis has {extents[label]} items in one operand, {n} here")
    dtype = np.result_type(*(operand.dtype for operand in operands))
    working = np.dtype(np.float32) if dtype == np.float16 else dtype
    shape = tuple(extents[label] for label in subscripts.output)
    if out is None:
        result = new_result(shape, working, "pass a PMArray as out=")
    else:
        as_output(out, shape, dtype, operands)
        result = out
    terms = [
        _Term(operand, labels, working, conjugate=conjugate and not i)
        for i, (operand, labels) in enumerate(zip(operands, subscripts.inputs, strict=True))
    ]
    terms.sort(key=lambda term: (not is_stored(term.array), -term.array.nbytes))
    if len(terms) > 1:
        terms[1] = terms[1].held_if_small()
    if not is_stored(result) and result.dtype == working:
        result[...] = 0
        whole = {label: slice(0, n) for label, n in extents.items() if label in subscripts.output}
        _add(result, whole, terms, subscripts.output, extents)
    else:
        for tile in walk(shape, 4 * working.itemsize, _order_of(result)):
            sums = np.zeros([one.stop - one.start for one in tile], working)
            box = dict(zip(subscripts.output, tile, strict=True))
            _add(sums, box, terms, subscripts.output, extents)
            result[tile] = sums
    if out is not None:
        return out
    result = result.astype(dtype, copy=False)
    return result if shape else result[()]


class _Term:
    """An operand and its labels."""

    def __init__(
        self, array: Any, labels: tuple[int, ...], dtype: np.dtype[Any], *, conjugate: bool
    ) -> None:
        self.array = array
        self.labels = labels
        self._dtype = dtype
        self._conjugate = conjugate
        self._itemsize = 4 * _COPIES * max(array.dtype.itemsize, dtype.itemsize)

    def held_if_small(self) -> _Term:
        """Read the operand now if a quarter of the work memory has room for it."""
        fits = self.array.size * self._itemsize <= config.work_memory
        if not is_stored(self.array) or not fits:
            return self
        return _Term(self.array[...], self.labels, self._dtype, conjugate=self._conjugate)

    def boxes(self, fixed: Box, extents: dict[int, int]) -> Iterator[Box]:
        """Cut the operand within what is `fixed` already, in the order of the medium."""
        ranges = [fixed.get(label, slice(0, extents[label])) for label in self.labels]
        shape = tuple(one.stop - one.start for one in ranges)
        for piece in walk(shape, self._itemsize, _order_of(self.array)):
            yield {
                label: slice(one.start + part.start, one.start + part.stop)
                for label, one, part in zip(self.labels, ranges, piece, strict=True)
            }

    def read(self, box: Box) -> AnyArray:
        """Read a box."""
        part = np.asarray(self.array[tuple(box[label] for label in self.labels)])
        part = part.astype(self._dtype, copy=False)
        return part.conj() if self._conjugate else part


def _add(
    sums: AnyArray,
    tile: Box,
    terms: list[_Term],
    output: tuple[int, ...],
    extents: dict[int, int],
) -> None:
    """Add what one tile of the result gets."""
    first, *others = terms
    for box in first.boxes(tile, extents):
        block = first.read(box)
        known = tile | box
        if not others:
            _place(sums, known, tile, output)[...] += np.einsum(block, first.labels, output)
            continue
        (second,) = others
        alone = [label for label in output if label not in first.labels]
        for box2 in second.boxes(known, extents):
            factor = second.read(box2)
            for part in _cut(known | box2, alone, output, sums.dtype.itemsize):
                product = np.einsum(
                    block[_within(part, box, first.labels)],
                    first.labels,
                    factor[_within(part, box2, second.labels)],
                    second.labels,
                    output,
                    optimize=True,
                )
                _place(sums, part, tile, output)[...] += product
                del product


def _cut(box: Box, alone: list[int], output: tuple[int, ...], itemsize: int) -> Iterator[Box]:
    """Cut the labels that only the second operand gives, until the product is small enough."""
    others = math.prod(box[o].stop - box[o].start for o in output if o not in alone)
    room = max(1, config.work_memory // (4 * 2 * itemsize * max(1, others)))
    cuts: list[list[slice]] = []
    for label in reversed(alone):
        one = box[label]
        step = max(1, min(one.stop - one.start, room))
        room //= step
        cuts.append([slice(i, min(i + step, one.stop)) for i in range(one.start, one.stop, step)])
    for chosen in itertools.product(*reversed(cuts)):
        yield box | dict(zip(alone, chosen, strict=True))


def _place(sums: AnyArray, box: Box, tile: Box, output: tuple[int, ...]) -> AnyArray:
    found: AnyArray = sums[_within(box, tile, output)]
    return found


def _within(box: Box, around: Box, labels: tuple[int, ...]) -> tuple[Any, ...]:
    """Index an array that holds the items of `around`; the Ellipsis keeps it an array."""
    starts = [around[label].start for label in labels]
    return (
        *(
            slice(box[label].start - start, box[label].stop - start)
            for label, start in zip(labels, starts, strict=True)
        ),
        ...,
    )


def _order_of(array: Any) -> Order:
    order: Order = array.layout if is_stored(array) else "row"
    return order

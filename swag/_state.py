"""Nested state dicts as one array of bytes and a JSON description, without pickle.

The description repeats the nesting, with every tensor replaced by its dtype, shape and place in the
array. An array of fixed size and a small JSON value are what a group can hold, and reading them
back runs no code that the store brings along.

A description is ``None``, a bool, an int, a float, a string, or an object with one key:

====== ========================================================
dict   list of ``[key, value]`` pairs; keys are strings or ints
list   list of values
tuple  list of values
tensor ``[dtype, shape, offset]``, the offset in bytes
float  ``"nan"``, ``"inf"`` or ``"-inf"``, which JSON lacks
====== ========================================================
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from swag.errors import StoreError

__all__ = ["STORED_DTYPES", "pack", "unpack"]

# Tensors start at multiples of this many bytes, so that any dtype can be viewed in place.
_ALIGNMENT = 64

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.uint16,
        torch.uint32,
        torch.uint64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex64,
        torch.complex128,
    )
}
STORED_DTYPES = frozenset(_DTYPES.values())
"""What a tensor may be of."""


def pack(state: Any) -> tuple[Any, NDArray[np.uint8]]:
    """Split a state into a JSON description and the bytes of its tensors.

    Parameters
    ----------
    state
        Dicts with string or integer keys, lists, tuples, tensors, strings, numbers, bools and None.

    Returns
    -------
    description
        As the module says; `json.dumps` takes it.
    data
        The tensors, one after another, uint8 of shape (bytes,); a copy.

    Raises
    ------
    TypeError
        The state holds something else.

    Examples
    --------
    >>> description, data = pack({"step": 3, "weights": torch.ones(2)})
    >>> description
    {'dict': [['step', 3], ['weights', {'tensor': ['float32', [2], 0]}]]}
    >>> unpack(description, data)
    {'step': 3, 'weights': tensor([1., 1.])}
    """
    places: list[tuple[int, Tensor]] = []
    description = _describe(state, places)
    end = places[-1][0] + places[-1][1].nbytes if places else 0
    data = np.zeros(end, np.uint8)
    for offset, tensor in places:
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        data[offset : offset + raw.size] = raw
    return description, data


def unpack(description: Any, data: NDArray[np.uint8]) -> Any:
    """Put together what `pack` split.

    Parameters
    ----------
    description, data
        As `pack` returned them.

    Returns
    -------
    object
        The state; its tensors are on the CPU and own their memory.

    Raises
    ------
    StoreError
        The description is not one, or names bytes that the data lack.
    """
    try:
        return _unpack(description, data)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise StoreError(f"a saved state is damaged: {error}") from error


def _unpack(description: Any, data: NDArray[np.uint8]) -> Any:
    if description is None or isinstance(description, bool | int | float | str):
        return description
    if not isinstance(description, dict) or len(description) != 1:
        raise StoreError(f"a saved state is damaged: {description!r} describes nothing")
    (kind, value), *_ = description.items()
    match kind:
        case "dict":
            return {key: _unpack(item, data) for key, item in value}
        case "list":
            return [_unpack(item, data) for item in value]
        case "tuple":
            return tuple(_unpack(item, data) for item in value)
        case "float":
            return float(value)
        case "tensor":
            return _tensor(value, data)
    raise StoreError(f"a saved state is damaged: it holds a {kind!r}, which is not known here")


def _describe(value: Any, places: list[tuple[int, Tensor]]) -> Any:
    """Describe a value; add its tensors to `places`, each with its offset."""
    if isinstance(value, Tensor):
        end = places[-1][0] + places[-1][1].nbytes if places else 0
        offset = -(-end // _ALIGNMENT) * _ALIGNMENT
        name = str(value.dtype).removeprefix("torch.")
        if name not in _DTYPES:
            raise TypeError(f"a tensor of dtype {value.dtype} cannot be saved")
        places.append((offset, value))
        return {"tensor": [name, list(value.shape), offset]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(float(value))}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, dict):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"a key of a saved state is a string or an int, not {key!r}")
        return {"dict": [[key, _describe(item, places)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_describe(item, places) for item in value]}
    raise TypeError(f"a {type(value).__name__} cannot be part of a saved state: {value!r}")


def _tensor(value: list[Any], data: NDArray[np.uint8]) -> Tensor:
    name, shape, offset = value
    if name not in _DTYPES:
        raise StoreError(f"a saved state is damaged: {name!r} is no dtype")
    if any(type(n) is not int or n < 0 for n in (*shape, offset)):
        raise StoreError(f"a saved state is damaged: {shape} at {offset} is no place of a tensor")
    nbytes = math.prod(shape) * _DTYPES[name].itemsize
    raw = data[offset : offset + nbytes]
    if raw.size != nbytes:
        raise StoreError(
            f"a saved state is damaged: a tensor ends at byte {offset + nbytes:,},"
            f" the data at {data.size:,}"
        )
    try:
        tensor = torch.empty(tuple(shape), dtype=_DTYPES[name], device="cpu")
    except RuntimeError as error:  # an extent of 0 lets the others be anything
        raise StoreError(f"a saved state is damaged: no tensor has the shape {shape}") from error
    tensor.view(-1).view(torch.uint8).copy_(torch.from_numpy(np.ascontiguousarray(raw)))
    return tensor

"""Which dtypes an array may have, and how metadata spell them."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pmarray._extras import wanted
from pmarray.errors import LayoutError

__all__ = [
    "DType",
    "as_ndarray",
    "by_its_name",
    "decode_dtype",
    "encode_dtype",
    "parse_dtype",
    "without_gaps",
]

DType = np.dtype[Any]

# NumPy knows these only once ml_dtypes has registered them, and .npy has no spelling for them.
_ML_DTYPES = frozenset({"bfloat16", "float8_e4m3fn", "float8_e5m2"})


def as_ndarray(value: Any, dtype: DTypeLike | None = None) -> NDArray[Any]:
    """``np.asarray(value, dtype)``, also of tensors in types that PyTorch does not give to NumPy.

    >>> import torch
    >>> as_ndarray(torch.tensor([1.5], dtype=torch.bfloat16))
    array([1.5], dtype=bfloat16)
    """
    torch = sys.modules.get("torch")  # who has a tensor has imported it
    if torch is not None and isinstance(value, torch.Tensor):
        name = str(value.dtype).removeprefix("torch.")
        if name in _ML_DTYPES:
            bits = torch.int16 if value.dtype.itemsize == 2 else torch.uint8
            value = value.contiguous().view(bits).numpy().view(parse_dtype(name))
    return np.asarray(value, dtype)


def parse_dtype(dtype: DTypeLike | str) -> DType:
    """Return the NumPy dtype that `dtype` names, if its items are plain bytes.

    >>> parse_dtype("float32"), parse_dtype("bfloat16")
    (dtype('float32'), dtype(bfloat16))
    """
    if isinstance(dtype, str) and dtype in _ML_DTYPES:
        result = _ml_dtype(dtype)
    else:
        try:
            result = np.dtype(dtype)
        except TypeError as error:
            raise LayoutError(f"not a dtype: {dtype!r} ({error})") from error
    if result.hasobject:
        raise LayoutError(f"dtype {result} holds Python objects, which have no bytes to store")
    if result.itemsize == 0 or result.subdtype is not None:
        raise LayoutError(f"dtype {result} has no fixed item size; give one, such as 'S8'")
    if result.char == "T":
        raise LayoutError("variable-width strings have no fixed item size; give one, such as 'U8'")
    if result.char == "c":
        raise LayoutError(
            "dtype 'c' splits text that is assigned to it; give 'S1', which is stored"
        )
    if not _has_a_name(result):
        raise LayoutError(
            f"dtype {result} has no name that could be stored, so that it would come back as "
            "another type; store its bytes as 'V' and view them"
        )
    return result


def _has_a_name(dtype: DType) -> bool:
    """Whether metadata can spell it: the kin of bfloat16 come back as bytes of no type."""
    if dtype.names is not None:
        return all(
            _has_a_name(dtype[name].base) and dtype[name].base.name not in _ML_DTYPES
            for name in dtype.names
        )
    return dtype.name in _ML_DTYPES or np.dtype(dtype.str) == dtype


def _ml_dtype(name: str) -> DType:
    try:
        with wanted():
            import ml_dtypes
    except ImportError as error:
        raise LayoutError(f"dtype {name!r}: {error}") from error
    result: DType = np.dtype(getattr(ml_dtypes, name))
    return result


def encode_dtype(dtype: DType) -> Any:
    """Return `dtype` as a JSON value."""
    return dtype.name if dtype.name in _ML_DTYPES else np.lib.format.dtype_to_descr(dtype)


def decode_dtype(value: Any) -> DType:
    """Return the dtype that `encode_dtype` wrote.

    >>> decode_dtype(encode_dtype(np.dtype([("x", "<f4"), ("y", "<i2", (3,))])))
    dtype([('x', '<f4'), ('y', '<i2', (3,))])
    """
    if isinstance(value, str):
        return parse_dtype(value)
    return parse_dtype(np.lib.format.descr_to_dtype(_tuples(value)))


def _tuples(value: Any) -> Any:
    # JSON has no tuples: a record comes back as a list of [name, type] or [name, type, shape].
    if not isinstance(value, list):
        return value
    return [
        (
            tuple(name) if isinstance(name, list) else name,
            _tuples(kind),
            *(tuple(part) for part in shape),
        )
        for name, kind, *shape in value
    ]


def by_its_name(dtype: DType) -> DType:
    """Return the dtype that its name stands for, of several that are equal: int64, not longlong.

    >>> by_its_name(np.dtype("longlong")).type is np.int64
    True
    """
    named: DType = np.dtype(dtype.str)
    return named if named == dtype else dtype


def without_gaps(dtype: DType) -> DType:
    """Return the record of the same fields, one behind the other, in this machine's byte order.

    >>> without_gaps(np.dtype([("a", "u1"), ("b", ">i4")], align=True))
    dtype([('a', 'u1'), ('b', '<i4')])
    """
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return np.dtype((without_gaps(base), shape))
    if dtype.names is None:
        return by_its_name(dtype).newbyteorder("=")
    return np.dtype([(name, without_gaps(dtype[name])) for name in dtype.names])

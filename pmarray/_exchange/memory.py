"""The memory of a `PMArray`, or a copy of it, for NumPy, DLPack and PyTorch."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmarray._array.stored import StoredArray
from pmarray._extras import wanted

__all__ = ["array_interface", "dlpack", "to_torch"]

AnyArray = NDArray[Any]


def _buffer(view: AnyArray) -> AnyArray | None:
    """Return the flat bytes of the region that `view` looks at, read-only."""
    owner: Any = view
    while owner is not None:
        if isinstance(owner, memoryview):
            owner = owner.obj
        elif isinstance(owner, np.ndarray):
            if owner.dtype == np.uint8 and owner.ndim == 1 and owner.flags.c_contiguous:
                flat: AnyArray = owner[:]
                flat.flags.writeable = False
                return flat
            owner = owner.base
        else:
            return None
    return None


def array_interface(a: StoredArray) -> dict[str, Any]:
    """Describe the memory of `a` to NumPy; AttributeError sends NumPy to ``__array__``."""
    with a._turn():
        a._admit()
        dtype = a.dtype
        # The text of a record or of a bfloat16 does not bring the same dtype back.
        if a.size and dtype.names is None and np.dtype(dtype.str) == dtype:
            view = a._storage.view()
            flat = None if view is None else _buffer(view)
            if view is not None and flat is not None:
                view = view.reshape(a.shape)
                # NumPy keeps what it finds under "data" alive; of an address it would keep the
                # PMArray only, and not the mapping.
                interface = {
                    "data": flat,
                    "offset": view.__array_interface__["data"][0] - flat.ctypes.data,
                    "shape": view.shape,
                    "strides": view.strides,
                    "typestr": dtype.str,
                    "version": 3,
                }
                if dtype.kind == "V":  # which is optional, and without which NumPy 2.1.0 crashes
                    interface["descr"] = [("", dtype.str)]
                return interface
    raise AttributeError("there is no view of this array to describe: use __array__")


def dlpack(
    a: StoredArray,
    *,
    stream: Any,
    max_version: tuple[int, int] | None,
    dl_device: tuple[int, int] | None,
    copy: bool | None,
) -> Any:
    """Return a capsule of DLPack; see `PMArray.__dlpack__`."""
    with a._turn():
        a._admit()
        block = None if copy else _shared(a)
        if block is None and copy is False:
            block = a._storage.view()
            if block is None:
                raise BufferError("a copy is needed, and copy=False forbids it")
            block = block.reshape(a.shape)
        if block is None:
            block = np.asarray(a[...])
        return block.__dlpack__(stream=stream, max_version=max_version, dl_device=dl_device)


def to_torch(a: StoredArray, *, share: bool) -> Any:
    """Return a `torch.Tensor`; see `PMArray.torch`."""
    with a._turn():
        a._admit()
        block = _shared(a)
        if block is not None and _fits_torch(block):
            return _tensor(block)
        if not share:
            return _tensor(np.asarray(a[...]))
        block = a._storage.view()
        if block is None or not _fits_torch(block):
            raise BufferError(
                "there is no mapping of the array that a tensor could show (its strides are "
                "negative, its bytes swapped, or a transaction is open): leave out share=True"
            )
        block = block.reshape(a.shape)
    warnings.warn(
        "this tensor shows a mapping of the file: what is stored through it stays in the tensor, "
        "and changes neither the file nor what others see",
        UserWarning,
        stacklevel=3,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return _tensor(block)


def _shared(a: StoredArray) -> AnyArray | None:
    """Return the array's own memory, writable, if it lies in memory and may be written."""
    base = a
    while base._base is not None:
        base = base._base
    if base._storage.cached() is not None or a._group.mode == "r":
        return None
    view = a._storage.view()
    if view is None:
        return None
    if not view.size:  # of which nothing can be stored to
        return np.empty(a.shape, a.dtype, order="F" if a.layout == "col" else "C")
    shared = base._storage.share(view)
    return None if shared is None else shared.reshape(a.shape)


def _fits_torch(block: AnyArray) -> bool:
    return block.dtype.isnative and all(
        stride >= 0 and stride % block.itemsize == 0 for stride in block.strides
    )


def _tensor(block: AnyArray) -> Any:
    with wanted():
        import torch

    if not _fits_torch(block):
        block = block.astype(block.dtype.newbyteorder("="), order="C")
    name = block.dtype.name
    if name not in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        return torch.from_numpy(block)
    bits = block.view(np.uint16 if name == "bfloat16" else np.uint8)
    return torch.from_numpy(bits).view(getattr(torch, name))

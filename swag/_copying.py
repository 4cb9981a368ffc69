"""Weights are copied and added up in one pass over memory, on the thread that asks for it.

Both are bound by memory, and so a piece is added up while it is in the processor's cache. One
thread does it: whether PyTorch's threads are in the middle of a training step or have just come to
the end of one, there is no core that another of them could have for nothing.
"""

from __future__ import annotations

import google_crc32c
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["SHARED_ITEMS", "checksum_of", "copy_and_sum", "sum_of"]

_PIECE_ITEMS = 3 << 14
"""Of so many float32, two take 400 KB of a core's cache, and Python has little to do for each."""
SHARED_ITEMS = (1 << 15) - 64
"""PyTorch shares out no operation on so few (it begins with 32,768), and takes no core for it."""
_CHECKED_BYTES = 1 << 20
_PLAIN = (torch.float32, torch.float64)
"""Dtypes that NumPy adds up as they are."""


def copy_and_sum(out: Tensor, parameter: Tensor) -> float:
    """Copy a parameter in host memory, and return the sum of what was copied.

    Parameters
    ----------
    out
        Where to, contiguous. Values are rounded to its dtype once, to the nearest.
    parameter
        Of the same shape.

    Returns
    -------
    float
        The same for the same values, whatever PyTorch's threads. Not finite if one of the values is
        not, or if their sum is too large.

    Examples
    --------
    >>> out = torch.empty(3)
    >>> copy_and_sum(out, torch.arange(3.0)), out
    (3.0, tensor([0., 1., 2.]))
    """
    contiguous = out.is_contiguous() and parameter.is_contiguous()
    if not contiguous or out.numel() <= SHARED_ITEMS:
        out.copy_(parameter)
        return sum_of(out)
    there, here, total = out.view(-1), parameter.detach().view(-1), 0.0
    if out.dtype not in _PLAIN:
        for start in range(0, len(here), SHARED_ITEMS):
            piece = there[start : start + SHARED_ITEMS]
            piece.copy_(here[start : start + SHARED_ITEMS])
            total += _add_up_wider(piece)
    elif out.dtype == parameter.dtype:
        target, source = there.numpy(), here.numpy()
        for start in range(0, len(target), _PIECE_ITEMS):
            part = target[start : start + _PIECE_ITEMS]
            np.copyto(part, source[start : start + _PIECE_ITEMS])
            total += _add_up(part)
    else:
        for start in range(0, len(here), SHARED_ITEMS):
            there[start : start + SHARED_ITEMS].copy_(here[start : start + SHARED_ITEMS])
        total = sum_of(out)
    return total


def sum_of(values: Tensor) -> float:
    """Return the sum of values in host memory, as `copy_and_sum` does."""
    flat = values.detach().reshape(-1)
    if values.dtype not in _PLAIN:
        return sum(map(_add_up_wider, torch.split(flat, SHARED_ITEMS)))
    pieces = flat.numpy()
    return sum(
        _add_up(pieces[start : start + _PIECE_ITEMS])
        for start in range(0, len(pieces), _PIECE_ITEMS)
    )


def checksum_of(values: Tensor) -> float:
    """Return a number that tells values in host memory from others, whatever their sum.

    Examples
    --------
    >>> one, other = torch.tensor([0.25, 0.75]), torch.tensor([0.75, 0.25])
    >>> checksum_of(one) == checksum_of(one.clone()), checksum_of(one) == checksum_of(other)
    (True, False)
    """
    items = values.detach().reshape(-1).contiguous().view(torch.uint8).numpy()
    found = 0
    for start in range(0, len(items), _CHECKED_BYTES):  # in between, other threads run
        found = google_crc32c.extend(found, items[start : start + _CHECKED_BYTES])
    return float(found)


def _add_up(piece: NDArray[np.floating]) -> float:
    # In half the time of `np.sum`, which adds more exactly; and it warns of no overflow.
    return float(np.einsum("i->", piece))


def _add_up_wider(piece: Tensor) -> float:
    return piece.sum(dtype=torch.float32).item()

"""Linear algebra with matrices that outgrow memory.

Functions take a `PMArray` of one or two axes, in either layout, where `numpy.linalg` takes an
array; other operands and results are `numpy.ndarray` or `PMArray`. A matrix is walked in tiles
whose runs on the medium are long, and what is held besides operands and results in memory stays
within `pmarray.config.work_memory`, or within ``memory=``.

Tiles are read through a mapping of the file where there is one: a medium that fails then ends the
process with SIGBUS, where `PMArray.__getitem__` would raise `StorageError`.

>>> import pmarray
>>> a = pmarray.open("dram:", shape=(3, 2), layout="col")
>>> a[...] = [[1, 2], [3, 4], [5, 6]]
>>> pmarray.linalg.matmul(a, [1, 1])
array([ 3.,  7., 11.])
>>> pmarray.linalg.norm(a, axis=0).round(3)
array([5.916, 7.483])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pmarray._lazy import attach

if TYPE_CHECKING:
    from pmarray.linalg._factorizations import QRResult, qr
    from pmarray.linalg._norms import norm
    from pmarray.linalg._products import gram, matmul
    from pmarray.linalg._svd import SVDResult, svd

__all__ = ["QRResult", "SVDResult", "gram", "matmul", "norm", "qr", "svd"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "pmarray.linalg._factorizations": ["QRResult", "qr"],
        "pmarray.linalg._norms": ["norm"],
        "pmarray.linalg._products": ["gram", "matmul"],
        "pmarray.linalg._svd": ["SVDResult", "svd"],
    },
)

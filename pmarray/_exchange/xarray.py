"""What xarray asks of an array that has chunks: it takes every `chunks` for a lazy array's.

Registered under the entry-point group ``xarray.chunkmanagers``, and imported by xarray alone.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
from xarray.namedarray.parallelcompat import ChunkManagerEntrypoint

from pmarray._array.stored import StoredArray

__all__ = ["StoredArrays"]


class StoredArrays(ChunkManagerEntrypoint[Any]):
    """Loads a `PMArray` when xarray wants values, and leaves parallel work to dask."""

    def __init__(self) -> None:
        self.array_cls = StoredArray

    def chunks(self, data: Any) -> Any:
        """Return the extents of the chunks, axis by axis."""
        return tuple(
            (chunk,) * (n // chunk) + ((n % chunk,) if n % chunk else ())
            for n, chunk in zip(data.shape, data.chunks, strict=True)
        )

    def compute(self, *data: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Read the items, if they may be in memory."""
        return tuple(np.asarray(one[...]) if isinstance(one, StoredArray) else one for one in data)

    def normalize_chunks(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: there is nothing lazy here."""
        self._refuse()

    def from_array(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: there is nothing lazy here."""
        self._refuse()

    def rechunk(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: there is nothing lazy here."""
        self._refuse()

    def apply_gufunc(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: there is nothing lazy here."""
        self._refuse()

    @staticmethod
    def _refuse() -> NoReturn:
        raise TypeError(
            "a PMArray is not computed in parallel chunks: wrap xarray.DataArray(a.to_dask()), or "
            "load() it first"
        )

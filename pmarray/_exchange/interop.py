"""A `PMArray` in the hands of other libraries, of other processes, and of a notebook."""

from __future__ import annotations

from typing import Any, NoReturn, Self, cast

import numpy as np
from numpy.typing import NDArray

from pmarray import _exchange
from pmarray._array.stored import StoredArray

__all__ = ["Interop"]


class Interop(StoredArray):
    """Exchange protocols of a `PMArray`; what they do stands in `pmarray._exchange`."""

    # -- arrays of other libraries --------------------------------------------------------------

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return _exchange.array_interface(self)

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Hand the items over by DLPack.

        Memory of ``dram:`` is shared, as `torch` shares it. A file is copied: most receivers have
        no read-only arrays, and a store through a mapping would not reach the file. With
        ``copy=False`` its mapping is shared with a receiver that takes part in DLPack 1.0, where
        it can be marked as read-only, and refused with BufferError to any other.
        """
        return _exchange.dlpack(
            self,
            stream=stream,
            max_version=max_version,
            dl_device=dl_device,
            copy=copy,
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # the CPU

    def to_numpy(self) -> NDArray[Any]:
        """Return `numpy.asarray` of the array: matplotlib, and who writes for pandas, ask for it.

        Raises
        ------
        BudgetError
            It would not fit into memory.

        Examples
        --------
        >>> import pmarray
        >>> pmarray.from_array([[1, 2], [3, 4]], "dram:").to_numpy()
        array([[1, 2],
               [3, 4]])
        """
        return np.asarray(self)

    # -- the array API standard -----------------------------------------------------------------

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        """Return `numpy`, whose functions take a `PMArray`; see the array API standard."""
        return np.empty(0).__array_namespace__(api_version=cast(Any, api_version))

    @property
    def device(self) -> str:
        """Always "cpu", as NumPy's arrays say."""
        return "cpu"

    def to_device(self, device: str, /, *, stream: Any = None) -> Self:
        """Return the array itself: there is one device, "cpu"."""
        np.empty(0).to_device(cast(Any, device), stream=stream)  # NumPy's refusals
        return self

    # -- PyTorch, dask --------------------------------------------------------------------------

    def torch(self, *, share: bool = False) -> Any:
        """Return the whole array as a `torch.Tensor` on the CPU.

        On ``dram:``, and in persistent memory (``shelf:`` on DAX, without a write cache), the
        tensor shares the array's memory, and either sees what the other writes, until the array
        grows or shrinks. What is stored through it is durable after the next flush or commit. A
        transaction does not see it: it is rolled back where the tensor was made inside the
        transaction, and stays otherwise. From a handle that is open read-only, and on a file, the
        tensor is a copy.

        Parameters
        ----------
        share
            Do not copy a file either, but show a mapping of it. PyTorch has no read-only tensors:
            what is stored through this one stays in it, and changes neither the file nor what
            others see; in persistent memory that this handle only reads, too. A warning says so.

        Raises
        ------
        BufferError
            `share` is asked for where there is nothing to map: inside a transaction, or in an
            order that tensors do not have.
        BudgetError
            The copy would not fit into memory.
        TypeError
            PyTorch has no such dtype.

        Warns
        -----
        UserWarning
            The tensor must not be written to.

        Examples
        --------
        >>> import pmarray
        >>> a = pmarray.open("dram:", shape=(2, 3), dtype="float32")
        >>> t = a.torch()
        >>> t[1] = 5
        >>> a[1]
        array([5., 5., 5.], dtype=float32)
        """
        return _exchange.to_torch(self, share=share)

    def to_dask(self, chunks: Any = None) -> Any:
        """Return a `dask.array.Array` that reads this array when it is computed.

        Threads of this process read through this handle, which must stay open; other processes
        open the URL for themselves (see `pickle` under *Notes*). ``xarray.DataArray(a.to_dask())``
        gives the axes names. To write what dask computes, store into the array itself:
        ``dask.array.store(x, a, lock=False)``.

        Parameters
        ----------
        chunks
            As `dask.array.from_array` takes them; pieces that are contiguous on the medium, of at
            most half of `config.work_memory`, unless told.

        Notes
        -----
        A pickled `PMArray` is its URL: unpickling opens it with ``mode="r"``, in the state that
        was flushed or committed last. Pickling flushes first if this handle has written.

        Examples
        --------
        >>> import pmarray
        >>> a = pmarray.open("dram:", shape=(4, 3), layout="col", fill_value=2)
        >>> float(a.to_dask().sum())
        24.0
        """
        return _exchange.to_dask(self, chunks)

    def __dask_tokenize__(self) -> Any:
        return _exchange.token(self)

    # -- copies of the handle -------------------------------------------------------------------

    def __copy__(self) -> Self:
        return self  # a handle, as a file object is one

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise TypeError(
            "a PMArray is a handle on a medium and has no deep copy: a[...] copies it into "
            "memory, pmarray.copy(a, url) to another place"
        )

    # -- people ---------------------------------------------------------------------------------

    @property
    def info(self) -> _exchange.ArrayInfo:
        """What the array takes on its medium and in the cache, now.

        Examples
        --------
        >>> import pmarray
        >>> a = pmarray.open("dram:", shape=(20_000, 3), dtype="float32", layout="col")
        >>> a.info
        url     dram:
        name    array
        shape   (20000, 3)
        dtype   float32
        layout  col
        chunks  (20000, 51)
        size    234 KiB
        stored  240 KiB
        cached  0 B
        dirty   0 B
        mode    a
        backend dram
        """
        return _exchange.describe(self)

    def _repr_html_(self) -> str:
        return _exchange.to_html(self)

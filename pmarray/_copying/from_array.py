"""`pmarray.from_array`: a stored array from one of another library, piece by piece."""

from __future__ import annotations

import os
from typing import Any

from pmarray._config import config
from pmarray._copying.copy import (
    CreationMode,
    Task,
    create,
    fill,
    in_one_step,
    parse_mode,
)
from pmarray._copying.sides import refuse_itself, refuse_taken, writes_through
from pmarray._dtypes import parse_dtype
from pmarray._geometry.layout import LayoutName, parse_layout
from pmarray._opening import _open_group
from pmarray._streams.progress import Progress, reporting
from pmarray._streams.sources import as_source, is_dask, layout_of, shape_of, source_of, store_dask
from pmarray._url import DEFAULT_NAME, URL
from pmarray.array import PMArray

__all__ = ["from_array"]


def from_array(
    x: Any,
    url: str | os.PathLike[str],
    *,
    mode: CreationMode = "w-",
    layout: LayoutName | None = None,
    chunks: str | int | tuple[int, ...] = "auto",
    cache: int | str = "auto",
    progress: bool | Progress = False,
    **options: Any,
) -> PMArray:
    """Store an array of NumPy, dask or another library at a URL.

    The array appears in one transaction, complete or not at all, as by `copy`; it is durable on
    return. What is not in memory is not brought there as a whole: a `numpy.memmap`, a `PMArray`,
    and whatever else has a shape, a NumPy dtype and takes slices (h5py, Zarr) are read in pieces
    of at most `config.work_memory`, a `dask.array.Array` is computed chunk by chunk, each chunk
    once. Anything else goes through `numpy.asarray`.

    Parameters
    ----------
    x
        The items. Shape and dtype are kept.
    url
        As `open` takes it; ``#name`` is the name of the array, "array" unless told.
    mode
        ``"w-"`` the array must not exist, ``"w"`` it is replaced if it does.
    layout
        "row" or "col"; that of `x` unless told, which is "col" for a Fortran-ordered
        `numpy.ndarray` and "row" where there is none to see.
    chunks
        The unit of caching: see `Group.create`.
    cache
        The memory of the group that is returned open: see `open_group`.
    progress
        True draws a bar on the terminal; a function is called with the bytes that are done and
        the bytes there are.
    **options
        How a chunk store stores it: see `Group.create`.

    Returns
    -------
    PMArray
        Open; closing it closes its group.

    Raises
    ------
    LayoutError
        The dtype cannot be stored, or dask does not know the shape.
    TypeError
        `x` is a path (`copy` takes those), or has a mask, which could not be stored.
    ArrayExistsError
        There is an array of this name, and the mode is not ``"w"``.
    PMArrayError
        What `open` and `Group.transaction` raise.

    Examples
    --------
    >>> import numpy as np, pmarray
    >>> x = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    >>> with pmarray.from_array(x, "memmap:./x") as a:
    ...     a.layout, a[1]
    ('col', array([3., 4., 5.]))
    """
    parse_mode(mode)
    asked = parse_layout(layout)
    to = URL.parse(url)
    name = to.name or DEFAULT_NAME
    x = as_source(x)
    shape, dtype = shape_of(x), parse_dtype(x.dtype)
    order = asked or layout_of(x)
    if isinstance(x, PMArray):
        refuse_itself(x, to, name)
    shared = isinstance(x, PMArray) and writes_through(x.group, to)
    group = x.group if shared else _open_group(to._replace(name=None), "a", cache)
    try:
        refuse_taken(group, name, mode)
        with reporting(progress) as report, in_one_step(group):
            if name in group:
                del group[name]
            fill_bytes = x._array.fill if isinstance(x, PMArray) else bytes(dtype.itemsize)
            attrs = dict(x.attrs) if isinstance(x, PMArray) else {}
            task = Task(name, shape, dtype, order, fill_bytes, source_of(x), attrs)
            if is_dask(type(x)):
                target = create(group, task, chunks, options)
                store_dask(x, target, report)
                return target
            return fill(group, [task], chunks, config.work_memory, report, options)[0]
    except BaseException:
        if not shared:
            group.close()
        raise

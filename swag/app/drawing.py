"""Draws of a stored posterior, where other programs find them: what ``swag sample`` does."""

from __future__ import annotations

import re
from typing import TypedDict, Unpack

import pmarray
from swag._distribution import Distribution, Drawing
from swag.errors import StoreError
from swag.posterior import load

__all__ = ["Window", "sample"]


_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:")  # of two letters or more: C: is a drive


class Window(TypedDict, total=False):
    """Which iterates: arguments of `swag.Posterior.window`."""

    start: int
    every: int
    rank: int | None


def sample(
    store: str,
    destination: str,
    *,
    samples: int,
    window: Window | None = None,
    overwrite: bool = False,
    **options: Unpack[Drawing],
) -> str:
    """Draw from a store into files of safetensors or into a pmarray array.

    Parameters
    ----------
    store
        URL of the group.
    destination
        A folder, for files; or the URL of an array with a ``#name``, which gets the shape (samples,
        weights) and, as its attribute ``parameters``, where each parameter lies in a row.
    samples
        Draws.
    window
        Which iterates to draw from; all if None.
    overwrite
        Whether to replace draws that are there.
    **options
        As for `swag.Posterior.sample`.

    Returns
    -------
    str
        What was done, in one line.

    Raises
    ------
    StoreError
        The destination is a URL without a ``#name``.
    FileExistsError
        There are files of the same names.
    pmarray.errors.PMArrayError
        There is no such store, or an array of that name.
    WindowError
        The store has no such iterates.

    Examples
    --------
    >>> import torch, swag
    >>> model = torch.nn.Linear(4, 2)
    >>> with swag.SWAG(model, store="memmap:./posterior") as posterior:
    ...     posterior.update_parameters(model)
    >>> sample("memmap:./posterior", "memmap:./drawn#draws", samples=3, generator=0)
    '3 draws of 10 weights in memmap:./drawn#draws'
    >>> with pmarray.open("memmap:./drawn#draws", mode="r") as draws:
    ...     draws.shape, draws.attrs["parameters"]["bias"]
    ((3, 10), {'start': 8, 'shape': [2]})
    """
    if _SCHEME.match(destination) and "#" not in destination:
        raise StoreError(
            f"{destination} names a group, and no array in it: add a #name, as in "
            f"{destination}#draws, or give a folder"
        )
    with load(store) as whole:
        posterior = whole.window(**(window or {}))
        place, has_name, name = destination.rpartition("#")
        if has_name:
            _into_array(posterior, place, name, samples, overwrite, options)
        else:
            posterior.save_samples(destination, samples, overwrite=overwrite, **options)
        return f"{samples:,} draws of {posterior._table.size:,} weights in {destination}"


def _into_array(
    posterior: Distribution,
    url: str,
    name: str,
    samples: int,
    overwrite: bool,
    options: Drawing,
) -> None:
    table = posterior._table
    dtype = str(table.dtype).removeprefix("torch.")
    # All or nothing: the array appears with its draws.
    with pmarray.open_group(url) as group, group.transaction():
        if overwrite and name in group:
            del group[name]
        out = group.create(name, (samples, table.size), dtype)
        out.attrs["parameters"] = {
            entry.name: {"start": entry.start, "shape": list(entry.shape)}
            for entry in table.entries
        }
        posterior.sample_into(out, **options)

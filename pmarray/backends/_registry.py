"""Which backends there are.

The one room that imports its own modules inside functions: a backend is loaded when its scheme is
first used, and zarr-python takes longer to import than all the rest.
"""

from __future__ import annotations

from typing import Any, cast

from pmarray._extras import wanted
from pmarray._url import URL
from pmarray.backends._protocols import ChunkBackend, OpenBackend, RegionBackend
from pmarray.errors import URLError

__all__ = ["known_schemes", "open_backend"]


def known_schemes() -> list[str]:
    """Return the schemes that have a backend here.

    >>> {"dram", "memmap"} <= set(known_schemes())
    True
    """
    from importlib.metadata import entry_points  # 30 ms, for the few who need it

    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group="pmarray.backends"))})


def open_backend(url: URL, *, writable: bool) -> RegionBackend | ChunkBackend:
    """Find the backend of `url` and hand it over."""
    opener = _BUILT_IN.get(url.scheme)
    if opener is None:
        from importlib.metadata import entry_points

        for point in entry_points(group="pmarray.backends", name=url.scheme):
            return cast("OpenBackend", point.load())(url, writable=writable)
        raise URLError(f"no backend for {url.scheme + ':'!r}; known: {', '.join(known_schemes())}")
    return opener(url, writable=writable)


def _dram(url: URL, *, writable: bool) -> Any:
    from pmarray.backends import dram

    return dram.open_backend(url, writable=writable)


def _memmap(url: URL, *, writable: bool) -> Any:
    from pmarray.backends.files import memmap

    return memmap.open_backend(url, writable=writable)


def _shelf(url: URL, *, writable: bool) -> Any:
    from pmarray.backends.shelf import engines

    return engines.open_backend(url, writable=writable)


def _zarr(url: URL, *, writable: bool) -> Any:
    from pmarray.backends.zarr import opening

    return opening.open_backend(url, writable=writable)


def _icechunk(url: URL, *, writable: bool) -> Any:
    try:
        with wanted():
            from pmarray.backends.zarr import icechunk
    except ImportError as error:
        raise URLError(f"{url} cannot be opened: {error}") from error
    return icechunk.open_backend(url, writable=writable)


_BUILT_IN: dict[str, OpenBackend] = {
    "dram": _dram,
    "memmap": _memmap,
    "shelf": _shelf,
    "zarr": _zarr,
    "icechunk": _icechunk,
}

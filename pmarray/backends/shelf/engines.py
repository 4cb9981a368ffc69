"""``shelf:/mnt/pmem0`` - persistent memory, by whichever way to it is there.

==================  =====================================================================
path                engine
==================  =====================================================================
a DAX device        ``device``: a pool of our own format on the whole of it (`pool`); refused
                    where it is volatile, unless ``?volatile=1`` says that this is known
a directory on DAX  ``dax``: the files of ``memmap:``, mapped and stored to in place
any directory       ``pymm``: a shelf of IBM's PyMM, where that is installed and the directory
                    holds no group of ours
another directory   ``memmap:`` itself, with a `PersistenceWarning`
==================  =====================================================================

``?engine=dax`` or ``?engine=pymm`` insists on one. A directory is on DAX if a file in it can be
mapped with MAP_SYNC; its name says nothing.
"""

from __future__ import annotations

import errno
import os
import warnings

from pmarray._geometry.layout import BLOCK_BYTES
from pmarray._sizes import parse_bytes
from pmarray._system import osops
from pmarray._system.beneath import Below, exists, status
from pmarray._url import URL
from pmarray.backends.files.memmap import METADATA_NAME, MemmapBackend
from pmarray.backends.files.region import FileRegion
from pmarray.backends.shelf import devices, pymm
from pmarray.backends.shelf.dax import DAXRegion
from pmarray.backends.shelf.poolbackend import PoolBackend
from pmarray.errors import (
    ForeignDataError,
    GroupNotFoundError,
    PersistenceWarning,
    StorageError,
    URLError,
)

__all__ = ["DAXBackend", "is_dax", "open_backend"]

_warned: set[str] = set()


class DAXBackend(MemmapBackend):
    """One group in a directory of a DAX file system: `memmap:`, but for how bytes are reached."""

    def _region(self, path: Below, offset: int, *, writable: bool, aligned: bool) -> FileRegion:
        return DAXRegion(path, offset, writable=writable)


def open_backend(url: URL, *, writable: bool) -> MemmapBackend | PoolBackend:
    """Open ``shelf:/directory`` or ``shelf:/dev/dax0.0``."""
    path = url.local_path
    if path is None:
        raise URLError("shelf: needs a directory or a device, as in 'shelf:/mnt/pmem0'")
    engine = url.options.get("engine")
    if engine not in (None, "dax", "pymm") or set(url.options) - {"engine", "size", "volatile"}:
        raise URLError(
            f"shelf: takes ?engine=dax, ?engine=pymm&size= or ?volatile=1, got {url.options}"
        )
    device = devices.find_device(path)
    if device is not None:
        if device.volatile is not None:
            _warn_of_volatile(path, device.volatile, allowed=url.options.get("volatile") == "1")
        return PoolBackend(device, writable=writable)
    if engine == "pymm" or (engine is None and _is_for_pymm(path)):
        return _open_pymm(path, url.options.get("size"), writable=writable)
    if "size" in url.options:
        raise URLError("?size= is for ?engine=pymm; files grow as they need to")
    if is_dax(path):
        return DAXBackend(path, writable=writable)
    if engine == "dax":
        raise URLError(
            f"{path} is not on a DAX file system (a mapping with MAP_SYNC was refused): leave out "
            "?engine=dax to use it with fsync, or mount the file system with -o dax=always"
        )
    _warn_once(path, "it is used like memmap:, by system calls and fsync")
    return MemmapBackend(path, writable=writable)


def _warn_of_volatile(path: str, what: str, *, allowed: bool) -> None:
    if not allowed:
        raise URLError(
            f"{path} is {what}, which forgets everything at power-off: dram:?device={path} uses it "
            "as memory; ?volatile=1 opens it as a shelf all the same, for as long as the machine "
            "runs"
        )
    warnings.warn(
        f"{path} is {what}: what is stored there survives the process and not a power cut",
        PersistenceWarning,
        stacklevel=3,
    )


def _is_for_pymm(path: str) -> bool:
    if exists(os.path.join(path, METADATA_NAME)):
        return False
    return pymm.holds_shelf(path) or pymm.is_installed()


def _open_pymm(path: str, size: str | None, *, writable: bool) -> PoolBackend:
    if exists(os.path.join(path, METADATA_NAME)):
        raise ForeignDataError(f"{path} holds a group in files: leave out ?engine=pymm")
    if not writable and not pymm.holds_shelf(path):
        raise GroupNotFoundError(f"there is no shelf of pmarray in {path}")
    try:
        size_bytes = None if size is None else parse_bytes(size)
    except ValueError as error:
        raise URLError(f"?size={size}: {error}") from error
    arena = pymm.open_shelf(path, size_bytes)
    if not is_dax(path):
        _warn_once(path, "PyMM keeps what is stored there from kill -9, and not from a power cut")
    return PoolBackend(arena, writable=writable)


def _warn_once(path: str, consequence: str) -> None:
    if path not in _warned:
        _warned.add(path)
        warnings.warn(
            f"{path} is no persistent memory: {consequence}; `pmarray doctor` says what is missing",
            PersistenceWarning,
            stacklevel=2,
        )


def is_dax(directory: str) -> bool:
    """Whether files in a directory, or below it once it is made, can be mapped with MAP_SYNC."""
    metadata = Below(directory) / METADATA_NAME
    try:
        if status(metadata) is not None:  # a reader may not be allowed to make files
            fd = osops.open_file(metadata)
            try:
                return _can_sync(fd)
            finally:
                osops.close(fd)
        while not os.path.isdir(directory) and os.path.dirname(directory) != directory:
            directory = os.path.dirname(directory)
        fd = osops.open_nameless(directory)
        try:
            osops.ftruncate(fd, BLOCK_BYTES)
            return _can_sync(fd)
        finally:
            osops.close(fd)
    except OSError as error:
        raise StorageError(error.errno, error.strerror, directory) from error


def _can_sync(fd: int) -> bool:
    if not os.fstat(fd).st_size:
        return False
    try:
        osops.map_shared(fd, [(0, os.fstat(fd).st_size)], write=False, sync=True)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):  # no DAX; no MAP_SYNC at all
            return False
        raise
    return True

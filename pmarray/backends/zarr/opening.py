"""Which backend a URL of the scheme ``zarr:`` has."""

from __future__ import annotations

from zarr.abc.store import Store
from zarr.storage import MemoryStore

from pmarray._url import URL, whole_path
from pmarray.backends.zarr.archive import ZipBackend
from pmarray.backends.zarr.elsewhere import RemoteZarrBackend
from pmarray.backends.zarr.local import LocalZarrBackend
from pmarray.backends.zarr.remote import remote_store
from pmarray.backends.zarr.store import ZarrBackend
from pmarray.errors import (
    URLError,
)
from pmarray.locks import Lock

__all__ = ["open_backend"]

_MEMORY: dict[str, MemoryStore] = {}
_MEMORY_LOCK = Lock()


def open_backend(url: URL, *, writable: bool) -> ZarrBackend:
    """Open ``zarr:/dir``, ``zarr:/file.zip``, ``zarr:memory://name``, ``zarr:s3://bucket/x``."""
    path = url.path
    if path.startswith("file://"):
        path = path.removeprefix("file://")
    if "://" in path:
        if path.startswith("memory://") and url.options.get("store") != "fsspec":
            if url.options:
                raise URLError(f"zarr: of memory:// takes no options, got {url.options}")
            with _MEMORY_LOCK:
                store: Store = _MEMORY.setdefault(path, MemoryStore())
            return ZarrBackend(str(url), store, writable=writable)
        return RemoteZarrBackend(str(url), remote_store(url, writable=writable), writable=writable)
    if url.options:
        raise URLError(f"zarr: of a local path takes no options, got {url.options}")
    if not path:
        raise URLError("zarr: needs a directory, as in 'zarr:./run'")
    path = whole_path(path)
    if path.endswith(".zip"):
        return ZipBackend(path, writable=writable)
    return LocalZarrBackend(path, writable=writable)

"""Zarr stores that are not on this machine: object stores through obstore, the rest by fsspec."""

from __future__ import annotations

from typing import Any

from zarr.abc.store import Store

from pmarray._url import URL
from pmarray.errors import URLError

__all__ = ["remote_store"]

_OBSTORE_SCHEMES = ("s3", "gs", "az", "http", "https")


def remote_store(url: URL, *, writable: bool) -> Store:
    """Open ``s3://bucket/x`` and its kin.

    ``?store=obstore`` or ``?store=fsspec`` chooses; other options are the store's own
    configuration, such as ``endpoint``, ``region`` and ``skip_signature`` of obstore's S3 store.
    Credentials come from where the store's library looks for them, and never from the URL.
    """
    options = dict(url.options)
    scheme = url.path.partition("://")[0]
    library = options.pop("store", "obstore" if scheme in _OBSTORE_SCHEMES else "fsspec")
    if library == "obstore":
        return _obstore(url.path, options, writable=writable)
    if library == "fsspec":
        return _fsspec(url.path, options, writable=writable)
    raise URLError(f"?store={library}: use obstore or fsspec")


def _obstore(path: str, options: dict[str, Any], *, writable: bool) -> Store:
    try:
        import obstore.store
        from zarr.storage import ObjectStore
    except ImportError as error:
        raise URLError(
            f"{path!r} needs the package obstore: pip install 'pmarray[s3]', or say ?store=fsspec"
        ) from error
    client = {}
    if path.startswith("http://") or options.get("endpoint", "").startswith("http://"):
        client["allow_http"] = True
    try:
        store = obstore.store.from_url(path, config=options, client_options=client)  # type: ignore[call-overload]
    except Exception as error:  # obstore's errors have no common class but this
        raise URLError(f"cannot open {path!r}: {error}") from error
    return ObjectStore(store, read_only=not writable)


def _fsspec(path: str, options: dict[str, Any], *, writable: bool) -> Store:
    try:
        from zarr.storage import FsspecStore

        return FsspecStore.from_url(path, storage_options=options, read_only=not writable)
    except (ImportError, ValueError) as error:
        raise URLError(f"cannot open {path!r} with fsspec: {error}") from error

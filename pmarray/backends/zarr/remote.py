"""Zarr stores that are not on this machine: object stores through obstore, the rest by fsspec.

Whatever their libraries raise becomes a `StorageError` here, and nowhere else.
"""

from __future__ import annotations

import errno
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from pmarray._url import URL
from pmarray.errors import PMArrayError, StorageError, URLError

__all__ = ["remote_store"]

_OBSTORE_SCHEMES = ("s3", "gs", "az", "http", "https")
_SECRET = re.compile(r"secret|token|password|access_key|account_key|sas|credential", re.IGNORECASE)
_TIMES = {"timeout": "30s", "connect_timeout": "5s", "retry_timeout": "30s"}
"""Options of ours, with their defaults: a store that is gone is an error within a minute.

obstore's own default goes on for three minutes.
"""
_MAX_RETRIES = 10
_MAX_BACKOFF = timedelta(seconds=5)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|min)")
_DOCUMENT = re.compile(r": <.*<Code>(.*?)</Code>.*<Message>(.*?)</Message>.*")
_UNITS = {"ms": "milliseconds", "s": "seconds", "min": "minutes"}


def remote_store(url: URL, *, writable: bool) -> Store:
    """Open ``s3://bucket/x`` and its kin.

    ``?store=obstore`` or ``?store=fsspec`` chooses. Of obstore there are ``timeout``,
    ``connect_timeout``, ``retry_timeout`` and ``max_retries``. Other options are the store's own
    configuration, such as ``endpoint``, ``region`` and ``skip_signature`` of obstore's S3 store.
    Credentials come from where the store's library looks for them, and never from the URL, which
    stands in messages, pickles and logs.
    """
    options = dict(url.options)
    for name in options:
        if _SECRET.search(name):
            raise URLError(
                f"?{name}= does not belong in a URL, which is shown in messages and logs: set the "
                "environment variables that the store reads, such as AWS_ACCESS_KEY_ID"
            )
    scheme = url.path.partition("://")[0]
    library = options.pop("store", "obstore" if scheme in _OBSTORE_SCHEMES else "fsspec")
    if library == "obstore":
        store = _obstore(url.path, options, writable=writable)
    elif library == "fsspec":
        store = _fsspec(url.path, options, writable=writable)
    else:
        raise URLError(f"?store={library}: use obstore or fsspec")
    return RemoteStore(store, url.path)


def _obstore(path: str, options: dict[str, Any], *, writable: bool) -> Store:
    try:
        import obstore.store
        from zarr.storage import ObjectStore
    except ImportError as error:
        raise URLError(
            f"{path!r} needs the package obstore: pip install 'pmarray[s3]', or say ?store=fsspec"
        ) from error
    times = {name: _duration(name, options.pop(name, text)) for name, text in _TIMES.items()}
    retries = options.pop("max_retries", str(_MAX_RETRIES))
    if not retries.isdecimal():
        raise URLError(f"?max_retries={retries}: give a number")
    client: dict[str, Any] = {
        "timeout": times["timeout"],
        "connect_timeout": times["connect_timeout"],
    }
    if path.startswith("http://") or options.get("endpoint", "").startswith("http://"):
        client["allow_http"] = True
    retry = {
        "max_retries": int(retries),
        "retry_timeout": times["retry_timeout"],
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": _MAX_BACKOFF,
            "base": 2,
        },
    }
    from_url: Any = obstore.store.from_url  # its overloads know no mapping of options
    try:
        store = from_url(path, config=options, client_options=client, retry_config=retry)
    except Exception as error:  # obstore's errors have no common class but this
        raise URLError(f"cannot open {path!r}: {_first_line(error)}") from error
    return ObjectStore(store, read_only=not writable)


def _duration(name: str, text: str) -> timedelta:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise URLError(f"?{name}={text}: give a time with its unit, such as 500ms, 30s or 2min")
    return timedelta(**{_UNITS[match[2]]: float(match[1])})


def _fsspec(path: str, options: dict[str, Any], *, writable: bool) -> Store:
    try:
        from zarr.storage import FsspecStore

        return FsspecStore.from_url(path, storage_options=options, read_only=not writable)
    except (ImportError, ValueError, TypeError) as error:
        raise URLError(f"cannot open {path!r} with fsspec: {error}") from error


class RemoteStore(WrapperStore[Store]):
    """Another store, whose errors become ours.

    Parameters
    ----------
    store
        To pass on to.
    where
        Its URL without options, for messages.
    """

    def __init__(self, store: Store, where: str = "") -> None:
        super().__init__(store)
        self._where = where.rstrip("/")

    def _with_store(self, store: Store) -> RemoteStore:
        return RemoteStore(store, self._where)

    def with_read_only(self, read_only: bool = False) -> RemoteStore:
        # zarr-python has it from 3.1.6 on.
        return self._with_store(self._store.with_read_only(read_only))

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        with self._errors("read", key):
            return await self._store.get(key, prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        with self._errors("read"):
            return await self._store.get_partial_values(prototype, key_ranges)

    async def exists(self, key: str) -> bool:
        with self._errors("read", key):
            return await self._store.exists(key)

    async def set(self, key: str, value: Buffer) -> None:
        with self._errors("write", key):
            await self._store.set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        with self._errors("write", key):
            await self._store.set_if_not_exists(key, value)

    async def delete(self, key: str) -> None:
        with self._errors("delete", key):
            await self._store.delete(key)

    async def delete_dir(self, prefix: str) -> None:
        with self._errors("delete", prefix):
            await self._store.delete_dir(prefix)

    async def is_empty(self, prefix: str) -> bool:
        with self._errors("list", prefix):
            return await self._store.is_empty(prefix)

    async def list(self) -> AsyncIterator[str]:
        with self._errors("list"):
            async for key in self._store.list():
                yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        with self._errors("list", prefix):
            async for key in self._store.list_prefix(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        with self._errors("list", prefix):
            async for key in self._store.list_dir(prefix):
                yield key

    @contextmanager
    def _errors(self, what: str, key: str = "") -> Iterator[None]:
        try:
            yield
        except (PMArrayError, GeneratorExit):
            raise
        except Exception as error:  # the many libraries behind fsspec have no common class
            code, advice = _advice(error)
            path = f"{self._where}/{key}" if key else self._where
            text = f"cannot {what}: {_first_line(error)}; {advice}"
            raise StorageError(code, text, path) from error


def _advice(error: Exception) -> tuple[int, str]:
    """Return the number of the system's error that comes nearest, and what to do."""
    said = {type(error).__name__, *re.findall(r"\w+", str(error))}
    for kinds, result in _ADVICE.items():
        if isinstance(error, kinds) or not said.isdisjoint(_NAMES[kinds]):
            return result
    return errno.EIO, "check the endpoint, the region and the network, then try again"


_NAMES: Mapping[type[Exception], tuple[str, ...]] = {
    FileNotFoundError: ("NoSuchBucket",),
    PermissionError: ("PermissionDeniedError", "UnauthenticatedError", "NoCredentialsError"),
    TimeoutError: (),
}
"""Classes of obstore and botocore that are not derived from the one that they are like, and what
a server calls the same."""
_ADVICE: Mapping[type[Exception], tuple[int, str]] = {
    FileNotFoundError: (
        errno.ENOENT,
        "no such bucket or directory: create it, for nothing here does, or correct the URL",
    ),
    PermissionError: (
        errno.EACCES,
        "check the credentials (AWS_ACCESS_KEY_ID and so on), the region and the bucket's policy",
    ),
    TimeoutError: (errno.ETIMEDOUT, "check the network, then try again"),
}


def _first_line(error: Exception) -> str:
    """What obstore says before it shows its own structs, and the gist of the server's answer."""
    text = str(error).split("\n\nDebug source")[0]
    text = _DOCUMENT.sub(r": \1 (\2)", " ".join(text.split()))
    return text or type(error).__name__

"""What tests of the array library share: a seam at the system calls, and a look at a tree."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pmarray._system import osops
from tests.pmarray.objectstore import KEYS, Proxy, Server, running_server


@dataclass
class SystemCalls:
    """Records what passes through `_system.osops`, and makes chosen calls fail.

    The calls themselves are real: what is not told to fail reaches the file system.
    """

    log: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    failures: dict[str, list[int]] = field(default_factory=dict)
    """Error numbers by function, used up from the front; 0 lets one call pass."""
    always: dict[str, int] = field(default_factory=dict)
    """Error numbers by function, for every call."""
    short: int | None = None
    """The most bytes that one pwritev takes."""

    def names(self) -> list[str]:
        return [name for name, _ in self.log]

    def written(self) -> list[tuple[int, int]]:
        """Offset and length of each pwritev."""
        return [
            (args[2], sum(len(memoryview(b).cast("B")) for b in args[1]))
            for name, args in self.log
            if name == "pwritev"
        ]

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.log.append((name, args))
            code = self.failures[name].pop(0) if self.failures.get(name) else 0
            code = code or self.always.get(name, 0)
            if name == "close":
                call(*args, **kwargs)  # the descriptor is gone also when close() fails
                if code:
                    raise OSError(code, os.strerror(code))
                return None
            if code == errno.EINTR:
                raise InterruptedError(code, os.strerror(code))
            if code:
                raise OSError(code, os.strerror(code))
            if name == "pwritev" and self.short is not None:
                fd, buffers, offset = args
                return call(fd, [memoryview(buffers[0])[: self.short]], offset)
            return call(*args, **kwargs)

        return wrapped


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> SystemCalls:
    """The system calls of the library, recorded from now on."""
    result = SystemCalls()
    for name in osops.__all__:
        monkeypatch.setattr(osops, name, result.wrap(name, getattr(osops, name)))
    return result


@pytest.fixture
def fingerprint() -> Callable[[Path], dict[str, str]]:
    """Every entry below a path with its contents, to see that nothing was touched."""

    def take(root: Path) -> dict[str, str]:
        result = {}
        for path in sorted([root, *root.rglob("*")]):
            if path.is_symlink():
                state = "-> " + os.readlink(path)
            elif path.is_file():
                state = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                state = "directory"
            result[str(path.relative_to(root))] = f"{state} {path.lstat().st_mtime_ns}"
        return result

    return take


@pytest.fixture
def python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python on a piece of source, with its arguments; ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(source: str, *args: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(source), *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """An S3 server, for all tests of a process."""
    with running_server() as server:
        yield server


@dataclass(frozen=True)
class Bucket:
    """An empty bucket of a server."""

    server: Server
    name: str

    def url(
        self,
        path: str = "x",
        endpoint: str | None = None,
        options: str = "",
        scheme: str = "zarr",
    ) -> str:
        """The URL of a group in it, or as `endpoint` reaches it."""
        endpoint = endpoint or self.server.endpoint
        return f"{scheme}:s3://{self.name}/{path}?endpoint={endpoint}&region=us-east-1{options}"

    def keys(self, prefix: str = "") -> set[str]:
        return self.server.keys(self.name, prefix)


@pytest.fixture
def bucket(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A new bucket, and the credentials to use it in the environment."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    bucket = Bucket(s3_server, f"bucket-{uuid.uuid4().hex}")
    s3_server.client.create_bucket(Bucket=bucket.name)
    return bucket


@pytest.fixture
def proxy(s3_server: Server) -> Iterator[Proxy]:
    """A proxy in front of the server, which does as it should until it is told otherwise."""
    proxy = Proxy(s3_server.port)
    yield proxy
    proxy.stop()

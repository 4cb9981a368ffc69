"""What is still to be done when the interpreter ends: by other threads, by `atexit`, by nobody."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

import pmarray
from pmarray._system.threads import DaemonPool

AT_EXIT = """
import atexit, sys, threading, time
import pmarray
url, options = sys.argv[1], eval(sys.argv[2])
def last():
    x[21] = 21
atexit.register(last)
x = pmarray.open(url, (22,), chunks=(2,), **options)
def work():
    for i in range(20):
        x[i] = i + 1
        if i % 7 == 0:
            x.flush()
        if i < 4:
            time.sleep(0.05)
threading.Thread(target=work).start()
"""


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("memmap", {"chunks": 2}),
        ("zarr", {}),
        ("zarr", {"codecs": ["zstd"]}),
        ("zarr", {"codecs": ["zlib"]}),
        ("icechunk", {}),
    ],
)
def test_threads_and_atexit_handlers_go_on_writing(
    scheme: str, options: dict[str, Any], tmp_path: Path, python: Callable[..., Popen[str]]
) -> None:
    if scheme == "icechunk":
        pytest.importorskip("icechunk", reason="icechunk is not installed")
    url = f"{scheme}:{tmp_path}/group"
    source = AT_EXIT
    if scheme == "memmap":
        source = source.replace("chunks=(2,), ", "")
    process = python(source, url, repr(options))
    out, error = process.communicate(timeout=60)
    assert (out, error) == ("", "")
    assert process.returncode == 0
    with pmarray.open(url, mode="r") as x:
        assert x[...].tolist() == [*range(1, 21), 0, 21]


# As s3fs and its kin are: on the loop of who uses it, over a connection that it closes at exit.
CONNECTED = """
import asyncio, weakref
import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem

class Connection:
    open = True
    def close(self):
        self.open = False

class Connected(AsyncFileSystem):
    protocol = "connected"
    _connection = None

    async def _do(self, name, *args, **options):
        if self._connection is None:
            self._connection = Connection()
            weakref.finalize(self, Connection.close, self._connection)
        await asyncio.sleep(0)
        if not self._connection.open:
            raise OSError("the connection is closed")
        call = getattr(LocalFileSystem(auto_mkdir=True), name)
        return await asyncio.to_thread(call, *args, **options)

for name in ("cat_file", "pipe_file", "rm_file", "info", "ls", "exists"):
    async def method(self, *args, name=name, batch_size=None, **options):
        return await self._do(name, *args, **options)
    setattr(Connected, "_" + name, method)
fsspec.register_implementation("connected", Connected)
"""


@pytest.mark.parametrize("scheme", ["local", "connected"])
def test_threads_and_atexit_handlers_go_on_writing_through_fsspec(
    scheme: str, tmp_path: Path, python: Callable[..., Popen[str]]
) -> None:
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    options = "?auto_mkdir=true" if scheme == "local" else ""
    program = (CONNECTED if scheme == "connected" else "") + AT_EXIT
    process = python(program, f"zarr:{scheme}://{tmp_path}/group{options}", "{}")
    out, error = process.communicate(timeout=60)
    assert (out, error) == ("", "")
    assert process.returncode == 0
    with pmarray.open(f"zarr:{tmp_path}/group", mode="r") as x:
        assert x[...].tolist() == [*range(1, 21), 0, 21]


def test_a_pool_works_without_a_free_thread_and_after_a_fork() -> None:
    pool = DaemonPool(2, "test")
    inside = threading.Barrier(3)
    futures = [pool.submit(inside.wait, 5) for _ in range(2)]
    later = [pool.submit(divmod, i, 7) for i in range(20)]
    inside.wait(5)
    assert sorted(f.result(5) for f in futures) != []
    assert [f.result(5) for f in later] == [divmod(i, 7) for i in range(20)]
    failing = pool.submit(divmod, 1, 0)
    with pytest.raises(ZeroDivisionError):
        failing.result(5)
    pool.shutdown()
    assert pool.submit(divmod, 9, 7).result(5) == (1, 2)
    assert all(t.daemon for t in threading.enumerate() if t.name == "test")


def test_a_pool_that_can_start_no_thread_does_the_work_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    pool = DaemonPool(2, "test")
    assert [pool.submit(divmod, i, 7).result(0) for i in range(5)] == [
        divmod(i, 7) for i in range(5)
    ]

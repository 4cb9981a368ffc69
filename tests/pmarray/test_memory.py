"""What streams stays within the cache and the work memory, under a limit of the system."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pmarray


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arrays of 64 MiB each, eight times the cache and the work memory together."""
    path = tmp_path_factory.mktemp("memory") / "group"
    with pmarray.open_group(path, cache="4 MiB") as made:
        for name in "ab":
            array = made.create(name, (1 << 18, 64), "float32", layout="col")
            for j in range(64):
                array[:, j] = j
        made.create("r", (1 << 18, 64), "float32")
        made.create("m", (1 << 18, 64), "bool", layout="col")
    return path


OPERATIONS = [
    # reductions and statistics
    "a.sum()", "a.mean(axis=0)", "a.var(axis=1)", "a.argmax()", "np.nanstd(a, axis=0)",
    "a.prod(axis=0)", "a.max(axis=1)", "a.any()", "np.nansum(a, axis=1)", "np.nanmean(a)",
    "np.nanmax(a, axis=0)", "np.count_nonzero(a, axis=0)", "np.ptp(a, axis=1)",
    "np.argmin(a, axis=1)", "np.average(a, axis=1, weights=np.ones(64))",
    "b[...] = 1; np.average(a, axis=0, weights=b, returned=True)", "np.histogram(a, 20)",
    "np.histogram(a, [0, 1, 5, 70], weights=b)", "np.histogram(a, 9, (0, 9), density=True)",
    # item by item
    "np.add(a, 1, out=a)", "np.multiply(a, a, out=b)", "np.modf(a, out=(b, a))",
    "np.add(a, b, out=a, where=m)", "np.clip(a, 1, 5, out=b)",
    "np.add.at(a, [1, 5, 1], 1)", "np.where(a.view[:, :8] > 3, 1, a.view[:, 8:16])",
    # running
    "np.add.accumulate(a, axis=1, out=b)", "np.cumsum(a, axis=0, out=b)",
    "np.cumprod(a, axis=1, out=b)", "np.cumsum(a, out=flat)",
    # compared, moved, joined
    "np.copyto(b, a)", "np.copyto(a, b, where=m)", "np.allclose(a, a)", "np.array_equal(a, b)",
    "np.array_equiv(a, b)", "77.5 in a",
    "np.concatenate([a.view[:, :32], b.view[:, :32]], axis=1, out=r)",
    "np.concatenate([a.view[: 1 << 17], b.view[: 1 << 17]], out=r)",
    # products
    "a @ np.ones(64, 'f4')", "np.outer(flat, np.ones(2, 'f4'), out=wide)", "np.vdot(a, b)",
    "np.inner(a, np.ones((3, 64), 'f4'))", "np.tensordot(a, b, 2)",
    "np.tensordot(a, b, ((0,), (0,)))", "np.einsum('ij,ij->ij', a, b, out=r)",
    "np.einsum('ij,ij->j', a, b)", "np.einsum('ij,kj->ki', a, np.ones((2, 64), 'f4'))",
    "np.einsum('ij->ji', a, out=r.T)", "np.einsum('ij,j->ij', a, np.ones(64, 'f4'), out=b)",
    "np.linalg.norm(a)",
    # indexed
    "a[[5, 77777, 5], :]", "a[m.view[...]].size", "a[mask].size", "a[mask] = 1",
    "a[mask] = values", "a[m] = 3", "a.oindex[points, [3, 60]]",
    "a.read((points, slice(0, 64, 8)), out=rows)", "a[points, 3] = 5",
    "a.oindex[points, [3, 60]] = 1", "a.read(np.s_[:, :8], out=doubles)",
    # arrays as values
    "a[...] = b", "a[...] = r", "a[1:] = a.view[:-1]", "a[...] = a.view[::-1]",
    "square[...] = square.T", "a[:, 1:] = b.view[:, :1]", "a.append(b.view[:, 3:30])",
    "np.copyto(square, square.T)",
]  # fmt: skip

# What has to be in memory, and is made before the limit is set.
_OPERANDS = {
    "mask": "mask = np.zeros(a.shape, bool, order='F'); mask[:, ::7] = True",
    "values": "values = np.ones(int(mask.sum()), 'f4')",
    "points": "points = np.random.default_rng(0).integers(0, 1 << 18, 1 << 16)",
    "rows": "rows = np.empty((1 << 16, 8), 'f4')",
    "doubles": "doubles = np.empty((1 << 18, 8))",
    "flat": "flat = group.create('flat', (1 << 24,), 'float32')",
    "wide": "wide = group.create('wide', (1 << 24, 2), 'float32')",
    "square": "square = group.create('square', (4096, 4096), 'float32', layout='col')",
}

# Results that are in memory are not counted.
_RESULT_BYTES = {
    "a[mask].size": 10 << 20,
    "np.where": 8 << 20,
    "np.inner": 3 << 20,
    "np.einsum('ij,kj": 2 << 20,
    "np.argmin": 2 << 20,
}


_SERVER = """
import json, os, resource, sys, threading, traceback
import numpy as np, pmarray
import pmarray.linalg, pmarray._numpy.functions.streamed, pmarray._numpy.assignment

threading.stack_size(512 << 10)  # of which all counts, and little is used
pmarray.config.work_memory = "4 MiB"
np.ones((500, 500)) @ np.ones((500, 500))


def status():
    return int(open("/proc/self/status").read().split("VmData:")[1].split()[0]) << 10


def run(operation, operands, result_bytes):
    group = pmarray.open_group(sys.argv[1], cache="4 MiB")
    names = {"np": np, "group": group, **{name: group[name] for name in "abrm"}}
    group.flush()
    for line in operands:
        exec(line, names)
    small = pmarray.open("dram:", (50, 50))
    small.sum(), small @ np.ones(50)
    # Four threads, and what Python and NumPy need beside.
    limit = status() + (4 << 20) + (4 << 20) + (4 << 19) + (10 << 20) + result_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    exec(operation, names)
    group.flush()
    for name in {"flat", "wide", "square"} & set(group):
        del group[name]
    group.close()


for line in sys.stdin:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            run(*json.loads(line))
        except BaseException:
            os.write(write, traceback.format_exc()[-3000:].encode())
            os._exit(1)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        text = told.read()
    print(json.dumps([os.waitpid(child, 0)[1], text]), flush=True)
"""


@pytest.fixture(scope="module")
def server(group: Path) -> Iterator[subprocess.Popen[str]]:
    """Forks a process for each operation, so that the imports are paid for once."""
    command = [sys.executable, "-c", _SERVER, str(group)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"OPENBLAS_NUM_THREADS": "1", "PATH": ""},
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def asked(
    server: subprocess.Popen[str], operation: str, operands: list[str], result_bytes: int
) -> tuple[int, str]:
    """Run an operation under the limit; its exit status, and the traceback."""
    assert server.stdin is not None
    assert server.stdout is not None
    print(json.dumps([operation, operands, result_bytes]), file=server.stdin, flush=True)
    status, told = json.loads(server.stdout.readline())
    return status, told


@pytest.mark.parametrize("operation", OPERATIONS)
def test_memory_stays_within_the_budget(operation: str, server: subprocess.Popen[str]) -> None:
    result = next((n for start, n in _RESULT_BYTES.items() if operation.startswith(start)), 0)
    operands = [line for name, line in _OPERANDS.items() if name in operation]
    status, told = asked(server, operation, operands, result)
    assert status == 0, told


@pytest.mark.parametrize("operation", ["a[...]", "np.ones(a.shape, 'i2')", "x = a + 1"])
def test_what_is_made_in_memory_as_a_whole_is_noticed(
    operation: str, server: subprocess.Popen[str]
) -> None:
    """The test above could fail."""
    status, told = asked(server, operation, [], 0)
    assert status != 0
    assert "MemoryError" in told

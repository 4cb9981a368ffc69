"""What streams stays within the cache and the work memory, under a limit of the system."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import pmarray


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arrays of 256 MiB each, eight times the cache and the work memory together."""
    path = tmp_path_factory.mktemp("memory") / "group"
    with pmarray.open_group(path, cache="16 MiB") as made:
        for name in "ab":
            array = made.create(name, (1 << 20, 64), "float32", layout="col")
            for j in range(64):
                array[:, j] = j
        made.create("r", (1 << 20, 64), "float32")
        made.create("m", (1 << 20, 64), "bool", layout="col")
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
    "np.concatenate([a.view[: 1 << 19], b.view[: 1 << 19]], out=r)",
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
    "points": "points = np.random.default_rng(0).integers(0, 1 << 20, 1 << 18)",
    "rows": "rows = np.empty((1 << 18, 8), 'f4')",
    "doubles": "doubles = np.empty((1 << 20, 8))",
    "flat": "flat = group.create('flat', (1 << 26,), 'float32')",
    "wide": "wide = group.create('wide', (1 << 26, 2), 'float32')",
    "square": "square = group.create('square', (8192, 8192), 'float32', layout='col')",
}

# Results that are in memory are not counted.
_RESULT_BYTES = {
    "a[mask].size": 40 << 20,
    "np.where": 32 << 20,
    "np.inner": 12 << 20,
    "np.einsum('ij,kj": 8 << 20,
    "np.argmin": 8 << 20,
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_memory_stays_within_the_budget(operation: str, group: Path) -> None:
    result = next((n for start, n in _RESULT_BYTES.items() if operation.startswith(start)), 0)
    made = "\n".join(line for name, line in _OPERANDS.items() if name in operation)
    script = f"""
import resource, numpy as np, pmarray
import pmarray.linalg, pmarray._functions, pmarray._assignment
pmarray.config.work_memory = "16 MiB"
group = pmarray.open_group({str(group)!r}, cache="16 MiB")
a, b, r, m = (group[name] for name in "abrm")
group.flush()
{made}
small = pmarray.open("dram:", (50, 50))
small.sum(), small @ np.ones(50), np.ones((500, 500)) @ np.ones((500, 500))
status = lambda: int(open("/proc/self/status").read().split("VmData:")[1].split()[0])
# The last are stacks of the library's threads, of which all counts, and little is used.
resource.setrlimit(resource.RLIMIT_DATA, (
    ((status() + 16 * 1024 + 16 * 1024 + 24 * 1024 + 4 * 8 * 1024) << 10) + {result},) * 2)
{operation}
group.flush()
for name in {{"flat", "wide", "square"}} & set(group):
    del group[name]
group.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        env={"OPENBLAS_NUM_THREADS": "1", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]

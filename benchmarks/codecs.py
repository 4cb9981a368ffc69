"""What codecs make of a trajectory: its size, the time to write and read it, the covariance."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import pmarray
from benchmarks._tables import in_bytes, in_ms, machine

__all__ = ["CHAINS", "compare", "covariance_error"]

Matrix = NDArray[np.float32]


def _blosc(cname: str, shuffle: str) -> dict[str, Any]:
    return {
        "name": "blosc",
        "configuration": {"cname": cname, "clevel": 5, "shuffle": shuffle, "typesize": 4},
    }


def _bitround(keepbits: int) -> dict[str, Any]:
    return {"name": "bitround", "configuration": {"keepbits": keepbits}}


_GOOD = _blosc("zstd", "bitshuffle")
CHAINS: dict[str, tuple[str, list[Any] | None]] = {
    "memmap:, float32": ("float32", None),
    "memmap:, bfloat16": ("bfloat16", None),
    "zarr:, no codec": ("float32", []),
    "zarr:, crc32c": ("float32", ["crc32c"]),
    "zarr:, zstd": ("float32", ["zstd"]),
    "zarr:, blosc lz4 shuffle": ("float32", [_blosc("lz4", "shuffle")]),
    "zarr:, blosc zstd bitshuffle": ("float32", [_GOOD]),
    "zarr:, bitround 16, the same": ("float32", [_bitround(16), _GOOD]),
    "zarr:, bitround 12, the same": ("float32", [_bitround(12), _GOOD]),
    "zarr:, bitround 10, the same": ("float32", [_bitround(10), _GOOD]),
    "zarr:, bitround 7, the same": ("float32", [_bitround(7), _GOOD]),
    "zarr:, bitround 4, the same": ("float32", [_bitround(4), _GOOD]),
}


def compare(
    console: Console, *, store: str, array: str, columns: int, rounds: int, directory: Path
) -> None:
    """Store the last columns of an array in every way and print what that costs."""
    with pmarray.open(f"{store}#{array}", mode="r") as source:
        x = np.asfortranarray(source[:, -columns:])
    console.print(machine(directory), highlight=False, soft_wrap=True)
    console.print(f"the last {x.shape[1]} columns of {store}#{array}, {in_bytes(x.nbytes)}")
    written: dict[str, list[float]] = {name: [] for name in CHAINS}
    read: dict[str, list[float]] = {name: [] for name in CHAINS}
    sizes: dict[str, int] = {}
    errors: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory(dir=directory, prefix="codecs-") as scratch:
        for turn in range(rounds):
            for name, (dtype, codecs) in CHAINS.items():
                place = Path(scratch) / "x"
                scheme = name.partition(":")[0]
                options: Any = {} if codecs is None else {"codecs": codecs, "chunks": 1}
                started = time.perf_counter()
                with pmarray.open(
                    f"{scheme}:{place}", (len(x), 0), dtype, layout="col", **options
                ) as a:
                    for column in range(x.shape[1]):
                        a.append(x[:, column])
                written[name].append(time.perf_counter() - started)
                sizes[name] = _size(place)
                started = time.perf_counter()
                with pmarray.open(f"{scheme}:{place}", mode="r") as a:
                    back = a[...]
                read[name].append(time.perf_counter() - started)
                if turn == 0:
                    errors[name] = covariance_error(x, np.asarray(back, np.float32))
                shutil.rmtree(place)
    table = Table(
        "", "size", "of raw", "write, ms a column", "read, ms a column", "diagonal", "low rank"
    )
    count = x.shape[1]
    for name in CHAINS:
        diagonal, low_rank = errors[name]
        table.add_row(
            name,
            in_bytes(sizes[name]),
            f"{sizes[name] / x.nbytes:.3f}",
            in_ms(float(np.median(written[name])) / count),
            in_ms(float(np.median(read[name])) / count),
            f"{diagonal:.1e}",
            f"{low_rank:.1e}",
        )
    console.print(table)
    console.print(
        "diagonal, low rank: what rounding does to the variances and to D D', as the norm of the\n"
        "difference over the norm. Read from the page cache; written includes making it durable.",
        highlight=False,
    )


def covariance_error(x: Matrix, y: Matrix) -> tuple[float, float]:
    """Return how far the sample covariance of the columns of `y` is from that of `x`.

    Parameters
    ----------
    x, y
        Shape (n, k): k draws of n numbers, before and after.

    Returns
    -------
    tuple of float
        Of the diagonal, and of the whole n x n matrix, in the Frobenius norm, relative.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 8)).astype("f4")
    >>> y = x + np.float32(0.01) * np.roll(x, 1, axis=0)
    >>> whole = np.cov(x.astype("f8")), np.cov(y.astype("f8"))
    >>> expected = np.linalg.norm(whole[1] - whole[0]) / np.linalg.norm(whole[0])
    >>> bool(abs(covariance_error(x, y)[1] - expected) < 1e-5)
    True
    """
    k = x.shape[1]
    gram = np.zeros((2 * k, 2 * k))
    variances, differences = 0.0, 0.0
    for start in range(0, len(x), 1 << 15):
        rows = slice(start, start + (1 << 15))
        old = x[rows].astype(np.float64)
        new = y[rows].astype(np.float64)
        old -= old.mean(axis=1, keepdims=True)
        new -= new.mean(axis=1, keepdims=True)
        both = np.concatenate([old, new - old], axis=1)
        gram += both.T @ both
        before, after = (old**2).sum(axis=1), (new**2).sum(axis=1)
        variances += float((before**2).sum())
        differences += float(((after - before) ** 2).sum())
    # Y Y' - X X' = B C B' with B = [X, E], E = Y - X; its squared norm is tr(C M C M), M = B' B.
    # The difference itself enters, so that nothing cancels.
    one, none = np.eye(k), np.zeros((k, k))
    product = np.block([[none, one], [one, one]]) @ gram
    low_rank = np.sqrt(max(0.0, float((product * product.T).sum())))
    norm = float(np.linalg.norm(gram[:k, :k]))
    return np.sqrt(differences / variances), low_rank / norm


def _size(place: Path) -> int:
    """Bytes of all files below a path, each counted once."""
    return sum(
        os.lstat(os.path.join(directory, name)).st_size
        for directory, _, names in os.walk(place)
        for name in names
    )

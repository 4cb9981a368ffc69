"""What codecs make of a trajectory: its size, the time to write and read it, the covariance."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pmarray
from benchmarks._records import Recording
from benchmarks._tables import Table, in_bytes, in_ms

__all__ = ["CHAINS", "compare", "covariance_error", "tables"]

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
    run: Recording, *, store: str, array: str, columns: int, rounds: int, directory: Path
) -> None:
    """Store the last columns of an array in every way."""
    with pmarray.open(f"{store}#{array}", mode="r") as source:
        x = np.asfortranarray(source[:, -columns:])
    run.add("columns", count=x.shape[1], nbytes=x.nbytes)
    with tempfile.TemporaryDirectory(dir=directory, prefix="codecs-") as scratch:
        for turn in range(rounds):
            for name, (dtype, codecs) in CHAINS.items():
                run.report(f"round {turn + 1} of {rounds}: {name}")
                place = Path(scratch) / "x"
                scheme = name.partition(":")[0]
                options: Any = {} if codecs is None else {"codecs": codecs, "chunks": 1}
                started = time.perf_counter()
                with pmarray.open(
                    f"{scheme}:{place}", (len(x), 0), dtype, layout="col", **options
                ) as a:
                    for column in range(x.shape[1]):
                        a.append(x[:, column])
                written = time.perf_counter() - started
                size = _size(place)
                back = np.empty(x.shape, dtype, order="F")
                for _ in range(2):  # the first fetches the files, and touches the memory
                    started = time.perf_counter()
                    with pmarray.open(f"{scheme}:{place}", mode="r") as a:
                        np.copyto(back, a)
                    read = time.perf_counter() - started
                run.add("chain", name=name, round=turn, write=written, read=read, nbytes=size)
                if turn == 0:
                    diagonal, low_rank = covariance_error(x, np.asarray(back, np.float32))
                    run.add("error", name=name, diagonal=diagonal, low_rank=low_rank)
                shutil.rmtree(place)


def tables(run: Recording) -> list[Table]:
    """Lay out a run."""
    (stored,) = run.of("columns")
    count = stored["count"]
    table = Table(
        f"the last {count} columns of a trajectory, {in_bytes(stored['nbytes'])}",
        ["", "size", "of raw", "write, ms a column", "read, ms a column", "diagonal", "low rank"],
        note="diagonal, low rank: what rounding does to the variances and to D D', as the norm of"
        " the difference over the norm. Read from the page cache into memory that was used before;"
        " written includes making it durable.",
    )
    for error in run.of("error"):
        name = error["name"]
        rounds = [one for one in run.of("chain") if one["name"] == name]
        table.rows.append(
            [
                name,
                in_bytes(rounds[0]["nbytes"]),
                f"{rounds[0]['nbytes'] / stored['nbytes']:.3f}",
                in_ms(statistics.median(one["write"] for one in rounds) / count),
                in_ms(statistics.median(one["read"] for one in rounds) / count),
                f"{error['diagonal']:.1e}",
                f"{error['low_rank']:.1e}",
            ]
        )
    return [table]


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
    return float(np.sqrt(differences / variances)), float(low_rank / norm)


def _size(place: Path) -> int:
    """Bytes of all files below a path, each counted once."""
    return sum(
        os.lstat(os.path.join(directory, name)).st_size
        for directory, _, names in os.walk(place)
        for name in names
    )

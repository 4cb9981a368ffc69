"""How fast training data come: from arrays on a medium, beside loaders that have them in memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import pmarray
from benchmarks._peers import drop_caches, fill_caches
from benchmarks._records import Recording
from benchmarks._tables import Table, in_bytes, spread
from swag.datasets import ArrayDataset, ArrayLoader

__all__ = ["measure", "tables"]

_BATCH = 100

Loader = Callable[[], Iterable[tuple[Tensor, ...]]]


def measure(run: Recording, *, rows: int, columns: int, rounds: int, directory: Path) -> None:
    """Go through shuffled epochs of float32 rows with labels, in batches of 100."""
    x = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    labels = np.arange(rows)
    with tempfile.TemporaryDirectory(dir=directory, prefix="loader-") as scratch:
        with pmarray.open_group(f"memmap:{scratch}/data") as group:
            group["x"], group["y"] = x, labels
        urls = [f"memmap:{scratch}/data#{name}" for name in ("x", "y")]
        inside = TensorDataset(torch.from_numpy(x), torch.from_numpy(labels))
        with ArrayDataset(*urls) as stored:
            loaders: dict[str, Loader] = {
                "TensorDataset in memory, a DataLoader": lambda: _loader(inside),
                "ArrayDataset, a DataLoader": lambda: _loader(stored),
                "ArrayLoader": lambda: ArrayLoader(stored, _BATCH),
            }
            for turn in range(rounds):
                for name, make in loaders.items():
                    for cold in (False, True):
                        if cold and name.startswith("TensorDataset"):
                            continue
                        run.report(f"round {turn + 1} of {rounds}: {name}")
                        (drop_caches if cold else fill_caches)(Path(scratch))
                        began = time.perf_counter()
                        seen = _epoch(make())
                        seconds = time.perf_counter() - began
                        if seen != rows * (rows - 1) // 2:
                            raise RuntimeError(f"{name} has not given every row once")
                        run.add("epoch", name=name, cold=cold, round=turn, seconds=seconds)


def _loader(data: torch.utils.data.Dataset[tuple[Tensor, ...]]) -> Iterable[tuple[Tensor, ...]]:
    return DataLoader(data, batch_size=_BATCH, shuffle=True)


def _epoch(loader: Iterable[tuple[Tensor, ...]]) -> int:
    return sum(int(y.sum()) for _, y in loader)


def tables(run: Recording) -> list[Table]:
    """Lay out a run."""
    asked = run.header["parameters"]
    rows, columns = asked["rows"], asked["columns"]
    table = Table(
        f"{rows:,} rows of {columns} float32 ({in_bytes(4 * rows * columns)}), shuffled: thousands"
        " of rows a second",
        ["", "file in memory", "file on the device"],
        note=f"Median of {asked['rounds']} epochs, least and most; batches of {_BATCH}; no workers,"
        " and no training beside it. The first has all rows in memory.",
    )
    for name in dict.fromkeys(one["name"] for one in run.of("epoch")):
        cells = []
        for cold in (False, True):
            found = [
                rows / one["seconds"] / 1e3
                for one in run.of("epoch")
                if (one["name"], one["cold"]) == (name, cold)
            ]
            cells.append(f"{median(found):.3g} ({spread(found)})" if found else "-")
        table.rows.append([name, *cells])
    return [table]

"""How much memory a whole epoch's collection takes, when what it collects would not fit in it."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks._counters import peak_rss
from benchmarks._records import Recording
from benchmarks._tables import Table, in_bytes, in_ms

__all__ = ["Epoch", "collect_epoch", "measure", "tables"]

# The goal that this command is there to show.
_LIMIT_BYTES = 1_500_000_000


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch of training and collecting took."""

    steps: int
    """Minibatches."""
    seconds: float
    """From the first step to everything being durable."""
    file_bytes: int
    before_bytes: int | None
    """Most memory held when training began: Python, PyTorch, the data set."""
    peak_bytes: int | None


def collect_epoch(model: str, threads: int | None, steps: int | None, directory: Path) -> Epoch:
    """Train an epoch or less, collect every minibatch, and check the last column of the file."""
    import torch

    import swag
    from swag.app.recipe import Recipe
    from swag.app.training import Trainer
    from swag.datasets import mnist
    from swag.models import build

    if threads is not None:
        torch.set_num_threads(threads)
    net = build(model)
    recipe = Recipe(model=model, epochs=1, burn_in=0, anneal=0)
    posterior = swag.SWAG(net, store=f"memmap:{directory}")
    trainer = Trainer(net, mnist().train, recipe, posterior.update_parameters)
    before = peak_rss()
    next(trainer)
    started = time.perf_counter()
    for _ in islice(trainer, None if steps is None else steps - 1):
        pass
    posterior.flush()
    seconds = time.perf_counter() - started
    peak = peak_rss()
    posterior.close()
    file = directory / "trajectory.npy"
    last = np.load(file, mmap_mode="r")[: len(weights := _flat(net)), trainer.step - 1]
    np.testing.assert_array_equal(last, weights)
    return Epoch(trainer.step, seconds, file.stat().st_size, before, peak)


def measure(
    run: Recording,
    *,
    model: str,
    threads: int | None,
    steps: int | None,
    directory: Path,
) -> None:
    """Run `collect_epoch` in a process of its own."""
    fresh = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(dir=directory, prefix="rss-") as scratch,
        ProcessPoolExecutor(1, mp_context=fresh) as process,
    ):
        run.report("collecting every minibatch")
        epoch = process.submit(collect_epoch, model, threads, steps, Path(scratch)).result()
    run.add("epoch", model=model, **asdict(epoch))
    if epoch.peak_bytes is not None and epoch.peak_bytes > _LIMIT_BYTES:
        raise SystemExit(f"more than {in_bytes(_LIMIT_BYTES)}")


def tables(run: Recording) -> list[Table]:
    """Lay out a run."""
    table = Table(
        "Collecting every minibatch of an epoch to a file",
        ["", "minibatches", "seconds", "ms each", "file", "peak RSS", "before training"],
        note="Durable at the end; peak RSS before training is Python, PyTorch and the data set.",
    )
    for one in run.of("epoch"):
        table.rows.append(
            [
                one["model"],
                str(one["steps"]),
                f"{one['seconds']:.1f}",
                in_ms(one["seconds"] / one["steps"]),
                in_bytes(one["file_bytes"]),
                in_bytes(one["peak_bytes"]),
                in_bytes(one["before_bytes"]),
            ]
        )
    return [table]


def _flat(net: object) -> np.ndarray:
    from torch import nn
    from torch.nn.utils import parameters_to_vector

    assert isinstance(net, nn.Module)
    vector: np.ndarray = parameters_to_vector(net.parameters()).detach().numpy().copy()
    return vector

"""How much memory a whole epoch's collection takes, when what it collects would not fit in it."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks._memory import peak_rss
from benchmarks._tables import in_bytes, in_ms, machine

__all__ = ["Epoch", "collect_epoch", "measure"]

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
    from swag.datasets import mnist
    from swag.models import build
    from swag.recipe import Recipe
    from swag.training import Trainer

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
    console: Console, *, model: str, threads: int | None, steps: int | None, directory: Path
) -> Epoch:
    """Run `collect_epoch` in a process of its own and print what it took."""
    console.print(machine(directory), highlight=False, soft_wrap=True)
    fresh = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(dir=directory, prefix="rss-") as scratch,
        ProcessPoolExecutor(1, mp_context=fresh) as process,
        console.status("collecting every minibatch"),
    ):
        epoch = process.submit(collect_epoch, model, threads, steps, Path(scratch)).result()
    console.print(
        f"{model}: {epoch.steps} minibatches in {epoch.seconds:.1f} s"
        f" ({in_ms(epoch.seconds / epoch.steps)} ms each), durable;"
        f" file {in_bytes(epoch.file_bytes)}; peak RSS {in_bytes(epoch.peak_bytes)},"
        f" of which {in_bytes(epoch.before_bytes)} before training began",
        highlight=False,
        soft_wrap=True,
    )
    if epoch.peak_bytes is not None and epoch.peak_bytes > _LIMIT_BYTES:
        raise SystemExit(f"more than {in_bytes(_LIMIT_BYTES)}")
    return epoch


def _flat(net: object) -> np.ndarray:
    from torch import nn
    from torch.nn.utils import parameters_to_vector

    assert isinstance(net, nn.Module)
    vector: np.ndarray = parameters_to_vector(net.parameters()).detach().numpy().copy()
    return vector

"""What collecting adds to the training of a network of GPT-2's size, and its longest pause."""

from __future__ import annotations

import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import swag
from benchmarks._device import write_bandwidth
from benchmarks._gpt2 import Training
from benchmarks._harness import Contender, race, record, results_of, table_of
from benchmarks._records import Recording
from benchmarks._tables import Table, in_bytes, in_ms

__all__ = ["measure", "tables"]

_MARGIN = 1.25
"""Of the time that the device takes for a column: training may take the disk's time, too."""
_TRIAL_STEPS = 3
_WARM_UP_INTERVALS = 5
"""After so many iterates the store has used all memory that it will have: the host of a virtual
machine may take longer to give it than training to fill it."""


class _Alone:
    def __init__(self, training: Training) -> None:
        self._training = training

    def step(self) -> None:
        self._training.step()

    def finish(self) -> None:
        if self._training.model.tokens.weight.is_cuda:
            torch.cuda.synchronize()


class _Collecting(_Alone):
    """Collects at the first step of each interval, so that the last one, too, has its time."""

    def __init__(
        self, training: Training, posterior: swag.SWAG, interval: int, pauses: list[float]
    ) -> None:
        super().__init__(training)
        self._posterior = posterior
        self._interval = interval
        self._pauses = pauses
        self._steps = 0

    def step(self) -> None:
        before = self._seconds()
        super().step()
        if self._steps % self._interval == 0:
            self._posterior.update_parameters(self._training.model)
        self._steps += 1
        if self._steps > 1:
            self._pauses.append(self._seconds() - before)

    def _seconds(self) -> float:
        """So far in `update_parameters`, and waiting in the optimizer's step."""
        stats = self._posterior.stats()
        return stats.update_seconds + stats.step_seconds

    def finish(self) -> None:
        super().finish()
        self._posterior.flush()


def measure(
    run: Recording,
    *,
    width: int,
    depth: int,
    tokens: int,
    device: str,
    threads: int | None,
    interval: int | None,
    intervals: int,
    rounds: int,
    probe_bytes: int,
    directory: Path,
) -> None:
    """Time training alone, and with collection into files, attached.

    An iterate is collected at every `interval`-th step: unless told, at as many as the device can
    take, by what it writes in order and what a step takes, with a quarter to spare.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    pauses: list[float] = []
    with tempfile.TemporaryDirectory(dir=directory, prefix="collect-gpt2-") as scratch:
        where = Path(scratch)
        run.report("a step, and the device")
        training = Training(width, depth, tokens, device)
        nbytes = sum(p.nbytes for p in training.model.parameters())
        weights = sum(p.numel() for p in training.model.parameters())
        alone, seconds = _Alone(training), []
        for _ in range(_TRIAL_STEPS):
            began = time.perf_counter()
            alone.step()
            alone.finish()
            seconds.append(time.perf_counter() - began)
        bandwidth = write_bandwidth(where, nbytes=probe_bytes)
        if interval is None:
            interval = math.ceil(_MARGIN * nbytes / bandwidth / min(seconds))
        del training, alone

        @contextmanager
        def start_alone() -> Iterator[_Alone]:
            yield _Alone(Training(width, depth, tokens, device))

        @contextmanager
        def start_collecting() -> Iterator[_Collecting]:
            training = Training(width, depth, tokens, device)
            place = tempfile.mkdtemp(dir=where)
            try:
                with swag.SWAG(training.model, f"memmap:{place}") as posterior:
                    posterior.attach(training.optimizer)
                    yield _Collecting(training, posterior, interval, pauses)
            finally:
                shutil.rmtree(place)

        results = race(
            [
                Contender("training alone", start_alone),
                Contender("SWAG on memmap:, attached", start_collecting),
            ],
            rounds=rounds,
            steps=intervals * interval,
            warm_up=_WARM_UP_INTERVALS * interval,
            directory=where,
            report=run.report,
        )
    record(run, results)
    run.add(
        "collecting",
        weights=weights,
        nbytes=nbytes,
        interval=interval,
        bytes_per_second=bandwidth,
        step_seconds=min(seconds),
        threads=torch.get_num_threads(),
        pauses=pauses,
    )


def tables(run: Recording) -> list[Table]:
    """Lay out a run."""
    asked = run.header["parameters"]
    (found,) = run.of("collecting")
    table = table_of(
        results_of(run.records),
        f"A network of GPT-2's shape, {found['weights']:,} weights, {asked['tokens']} tokens a"
        f" step on {asked['device']}, training threads {found['threads']}; steps from one"
        f" iterate to the next: {found['interval']}; medians of {asked['rounds']} rounds of"
        f" {asked['intervals'] * found['interval']} steps",
        bandwidth=found["bytes_per_second"],
        most_bytes=found["nbytes"] / found["interval"],
    )
    pauses = sorted(found["pauses"])
    table.note += (
        f"\nan iterate of {in_bytes(found['nbytes'])}, which the device writes in"
        f" {in_ms(found['nbytes'] / found['bytes_per_second'])} ms"
        f" ({in_bytes(found['bytes_per_second'])}/s); a step of"
        f" {in_ms(found['step_seconds'])} ms"
        "\nheld up in a step, in update_parameters and before the optimizer's step, without the"
        f" first: at most {in_ms(pauses[-1])} ms, in the median {in_ms(statistics.median(pauses))}"
    )
    return [table]

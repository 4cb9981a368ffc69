"""What collecting every iterate adds to a training step."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks._device import fresh_memory_bandwidth, write_bandwidth
from benchmarks._harness import Result, race
from benchmarks._tables import in_bytes, in_ms, machine
from benchmarks._training import TrainingContenders
from swag.models import build

__all__ = ["compare", "table"]


def compare(
    console: Console,
    *,
    model: str,
    threads: int | None,
    rounds: int,
    steps: int,
    warm_up: int,
    reference_rank: int,
    reference_steps: int,
    probe_bytes: int,
    directory: Path,
) -> list[Result]:
    """Time training alone, with collection on each backend, and with the reference; print a table.

    The bandwidths of the device and of fresh memory are measured once a round. After 30 steps
    of warming up with 4fc, a cache of 256 MiB has gone round once: its memory has been touched, and
    the writer has had to write. What comes later in training is like what is timed.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    column_bytes = 4 * sum(p.numel() for p in build(model).parameters())
    device: list[float] = []
    memory: list[float] = []
    with tempfile.TemporaryDirectory(dir=directory, prefix="collect-") as scratch:
        where = Path(scratch)

        def measure_machine() -> None:
            device.append(write_bandwidth(where, nbytes=probe_bytes))
            memory.append(fresh_memory_bandwidth(probe_bytes // 2))

        ways = TrainingContenders(model, steps=steps + warm_up, directory=where)
        contenders = [ways.alone(), ways.collecting("dram"), ways.collecting("memmap")]
        if reference_steps:
            contenders += [
                ways.reference(rank=reference_rank, mapped=mapped, most_steps=reference_steps)
                for mapped in (False, True)
            ]
        console.print(machine(directory), highlight=False, soft_wrap=True)
        with console.status("") as status:
            results = race(
                contenders,
                rounds=rounds,
                steps=steps,
                warm_up=warm_up,
                between=measure_machine,
                report=status.update,
            )
    console.print(
        f"{model}, batch 100, training threads {torch.get_num_threads()},"
        f" medians of {rounds} rounds of {steps} steps"
        + (f" ({reference_steps} for row-major, rank {reference_rank})" if reference_steps else ""),
        highlight=False,
        soft_wrap=True,
    )
    console.print(table(results))
    for what, found in (
        ("device, written in order", device),
        ("memory, touched for the first time", memory),
    ):
        bandwidth = statistics.median(found)
        console.print(
            f"{what}: {in_bytes(bandwidth)}/s, in rounds from {in_bytes(min(found))}"
            f" to {in_bytes(max(found))}/s: a column of {in_bytes(column_bytes)}"
            f" in {in_ms(column_bytes / bandwidth)} ms",
            highlight=False,
            soft_wrap=True,
        )
    return results


def table(results: list[Result]) -> Table:
    """Lay out results, the first being what the others are compared with."""
    out = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption="ms a step with its share of the flush that ends a round, best and worst round,"
        " the share itself; ms of the first step of a round; most memory held",
        caption_justify="left",
    )
    out.add_column("", no_wrap=True)
    for heading in ("ms", "x alone", "best", "worst", "flush", "first", "peak RSS"):
        out.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        low, high = result.range_seconds
        out.add_row(
            result.name,
            in_ms(result.seconds),
            f"{result.ratio(results[0]):.2f}",
            in_ms(low),
            in_ms(high),
            in_ms(result.finish_seconds / result.timings[0].steps),
            in_ms(result.first_seconds),
            in_bytes(result.peak_rss_bytes),
        )
    return out

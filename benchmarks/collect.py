"""What collecting every iterate adds to a training step."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks._device import fresh_memory_bandwidth, write_bandwidth
from benchmarks._harness import race, record, results_of, table_of
from benchmarks._records import Recording
from benchmarks._tables import Table, in_bytes, in_ms
from benchmarks._training import TrainingContenders
from swag.models import build

__all__ = ["compare", "tables"]


def compare(
    run: Recording,
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
) -> None:
    """Time training alone, with collection on each backend, and with the reference.

    What copying and writing take by themselves is the limit. Collection keeps every iterate or the
    last 20, attached to the optimizer and not.

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
        contenders = [
            ways.alone(),
            ways.plain(write=False),
            ways.plain(write=True),
            *(
                ways.collecting(scheme, attached=attached, max_rank=max_rank)
                for scheme in ("dram", "memmap")
                for max_rank in (None, 20)
                for attached in (False, True)
            ),
            ways.collecting("memmap", attached=True, dtype=torch.bfloat16),
            ways.collecting("zarr", attached=True),
        ]
        if reference_steps:
            contenders += [
                ways.reference(rank=reference_rank, mapped=mapped, most_steps=reference_steps)
                for mapped in (False, True)
            ]
        results = race(
            contenders,
            rounds=rounds,
            steps=steps,
            warm_up=warm_up,
            directory=where,
            between=measure_machine,
            report=run.report,
        )
    record(run, results)
    for write, fresh in zip(device, memory, strict=True):
        run.add("limits", device_bytes_per_second=write, fresh_bytes_per_second=fresh)
    run.add("column", nbytes=column_bytes, threads=torch.get_num_threads())


def tables(run: Recording) -> list[Table]:
    """Lay out a run."""
    asked = run.header["parameters"]
    (column,) = run.of("column")
    table = table_of(
        results_of(run.records),
        f"{asked['model']}, batch 100, training threads {column['threads']}, medians of"
        f" {asked['rounds']} rounds of {asked['steps']} steps"
        + (
            f" ({asked['reference_steps']} for row-major, rank {asked['reference_rank']})"
            if asked["reference_steps"]
            else ""
        ),
        bandwidth=statistics.median(one["device_bytes_per_second"] for one in run.of("limits")),
        most_bytes=column["nbytes"],
    )
    for what, key in (
        ("device, written in order", "device_bytes_per_second"),
        ("memory, touched for the first time", "fresh_bytes_per_second"),
    ):
        found = [one[key] for one in run.of("limits")]
        bandwidth = statistics.median(found)
        table.note += (
            f"\n{what}: {in_bytes(bandwidth)}/s, in rounds from {in_bytes(min(found))}"
            f" to {in_bytes(max(found))}/s: a column of {in_bytes(column['nbytes'])}"
            f" in {in_ms(column['nbytes'] / bandwidth)} ms"
        )
    return [table]

"""The paper's Table I and Figures 1 to 3, on this machine, beside what was published.

What is compared with the published figures is each way's time over that of the same run's matrix in
DRAM. Times of two machines say nothing to each other.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from benchmarks import _published as published
from benchmarks._device import write_bandwidth
from benchmarks._harness import Contender, Result, over_limit, race, record, results_of
from benchmarks._records import Recording
from benchmarks._tables import Table, in_bytes, in_ms
from benchmarks._training import TrainingContenders
from swag.models import build

__all__ = ["DRAM", "LIKE_PUBLISHED", "contenders", "figures", "measure", "tables", "words"]

DRAM = "row-major in DRAM"
"""What the others are compared with, as in the paper."""
LIKE_PUBLISHED = {
    DRAM: published.DRAM,
    "row-major np.memmap": "row-major memory map",
    "swag on shelf: (FS-DAX)": "persistent memory, FS-DAX",
    "swag on shelf: (Dev-DAX)": "persistent memory, Dev-DAX",
}
"""Which of ours is which of theirs."""


def contenders(
    training: TrainingContenders, *, rank: int, row_major_steps: int, shelves: Sequence[str]
) -> list[Contender]:
    """The ways to keep the deviations: the paper's two, then ours.

    Parameters
    ----------
    training
        Makes the runs.
    rank
        Columns of the row-major matrix.
    row_major_steps
        Most steps of a run that writes to it.
    shelves
        Places of persistent memory: directories on DAX, devices, directories for PyMM.
    """
    found = [
        training.reference(rank=rank, mapped=False, most_steps=row_major_steps),
        training.reference(rank=rank, mapped=True, most_steps=row_major_steps),
        training.storing("swag on dram:", "dram:"),
        training.storing("swag on memmap:", "memmap:{}"),
        training.storing("swag on zarr:", "zarr:{}"),
        training.storing("swag on dram:?spill=", "dram:?spill={}"),
    ]
    for place in shelves:
        if place.startswith("/dev/"):
            found.append(training.storing("swag on shelf: (Dev-DAX)", f"shelf:{place}"))
        else:
            name = "swag on shelf: (PyMM)" if "engine=pymm" in place else "swag on shelf: (FS-DAX)"
            path, _, options = place.partition("?")
            url = "shelf:{}" + (f"?{options}" if options else "")
            found.append(training.storing(name, url, Path(path)))
    return found


def measure(
    run: Recording,
    *,
    model: str,
    threads: int | None,
    steps: int,
    rounds: int,
    most_seconds: float,
    least_steps: int,
    probe_bytes: int,
    shelves: Sequence[str] = (),
    directory: Path,
) -> None:
    """Train an epoch in every way, interleaved, and note the bytes that a store takes.

    Parameters
    ----------
    run
        Where the figures go.
    model, threads
        What is trained, and by how many threads.
    steps
        Minibatches of an epoch, and columns of the matrix.
    rounds
        Epochs in every way.
    most_seconds, least_steps
        When an epoch is broken off, to be extrapolated.
    probe_bytes
        Written once a round to see the device's bandwidth.
    shelves
        See `contenders`.
    directory
        Where files are written.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    weights = sum(p.numel() for p in build(model).parameters())
    run.add("network", weights=weights, threads=torch.get_num_threads())
    with tempfile.TemporaryDirectory(dir=directory, prefix="paper-") as scratch:
        where = Path(scratch)
        training = TrainingContenders(model, steps=steps + 2, directory=where)
        ways = contenders(training, rank=steps, row_major_steps=steps, shelves=shelves)

        def probe() -> None:
            bandwidth = write_bandwidth(where, nbytes=probe_bytes)
            run.add("limit", bytes_per_second=bandwidth)

        results = race(
            [training.alone(), *ways],
            rounds=rounds,
            steps=steps,
            warm_up=1,
            most_seconds=most_seconds,
            least_steps=least_steps,
            directory=where,
            between=probe,
            report=run.report,
        )
    record(run, results)


def tables(run: Recording) -> list[Table]:
    """Lay out a run: Table I, and one table for the three figures."""
    return [_sizes(run), _epochs(run)]


def words(run: Recording) -> str:
    """Say who wins, against the row-major matrix in DRAM, and how that compares with the paper."""
    results = results_of(run.records)
    dram = _by_name(results, DRAM)
    kept = {result.name: result.ratio(dram) for result in results[1:] if result is not dram}
    said = []
    for text, found in (
        ("Faster than the row-major matrix in DRAM", {n: r for n, r in kept.items() if r < 1}),
        ("Slower", {n: r for n, r in kept.items() if r >= 1}),
    ):
        listed = ", ".join(f"{name} ({ratio:.2f})" for name, ratio in found.items()) or "none"
        said.append(f"{text}: {listed}.")
    for ours, theirs in LIKE_PUBLISHED.items():
        if ours in kept:
            ratios = [_published(theirs, i) for i in range(len(published.EPOCHS))]
            said.append(
                f"The paper's {theirs} took {min(ratios):.2f} to {max(ratios):.2f} times its"
                f" time in DRAM, and {ours} takes {kept[ours]:.2f} times here."
            )
    said.append(
        "Nothing that keeps iterates is as fast as training alone:"
        f" the fastest takes {min(r.ratio(results[0]) for r in results[1:]):.2f} times that."
    )
    return " ".join(said)


def figures(run: Recording) -> dict[str, Figure]:
    """Draw Figure 3: an epoch over an epoch in DRAM, ours beside the published."""
    results = results_of(run.records)
    dram = _by_name(results, DRAM)
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    ours = [result for result in results if result is not dram]
    theirs = [name for name in published.EPOCH_SECONDS if name != published.DRAM]
    names = [result.name for result in ours] + [f"published: {name}" for name in theirs]
    values = [result.ratio(dram) for result in ours] + [_published(name, 0) for name in theirs]
    colours = ["tab:blue"] * len(ours) + ["tab:grey"] * len(theirs)
    axes.barh(names[::-1], values[::-1], color=colours[::-1])
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("an epoch, times one with the row-major matrix in DRAM")
    return {"paper-epoch": figure}


def _sizes(run: Recording) -> Table:
    (network,) = run.of("network")
    steps = run.header["parameters"]["steps"]
    table = Table(
        "Table I: the deviation matrix",
        ["epochs", "rank", "computed", "published", "written here"],
        note="Computed: 4 bytes x weights x rank. Written here: what the process sent to the device"
        f" while it collected {steps} columns of {in_bytes(4 * network['weights'])} to memmap:,"
        " for the lengths that were run.",
    )
    memmap = [r for r in results_of(run.records) if r.name == "swag on memmap:"]
    written = [t.written_bytes for r in memmap for t in r.timings if t.wanted_steps is None]
    for epochs, size in zip(published.EPOCHS, published.SIZE_GB, strict=True):
        rank = epochs * published.STEPS
        known = [nbytes for nbytes in written if nbytes is not None]
        measured = in_bytes(statistics.median(known)) if known and rank == steps else "-"
        table.rows.append(
            [
                str(epochs),
                f"{rank:,}",
                in_bytes(4 * network["weights"] * rank),
                f"{size} GB",
                measured,
            ]
        )
    return table


def _epochs(run: Recording) -> Table:
    (network,) = run.of("network")
    results = results_of(run.records)
    dram, alone = _by_name(results, DRAM), results[0]
    steps = run.header["parameters"]["steps"]
    bandwidth = statistics.median(one["bytes_per_second"] for one in run.of("limit"))
    headings = ["", "epoch, s", "sd", "total, s", "x alone", "x limit", "x DRAM", "peak RSS"]
    table = Table(
        f"Figures 1 to 3: {steps} minibatches, {network['threads']} training threads",
        [*headings, *(f"published {epochs}" for epochs in published.EPOCHS)],
        note="An epoch: the mean and the standard deviation of the rounds, made durable. Total: the"
        " first step too, in which the matrix is allocated. x alone, x DRAM: the median of the"
        " rounds' ratios. x limit: over the larger of training alone and the device's time for the"
        " columns. Published: an epoch over one in DRAM, at each number of epochs."
        f" The device writes a column in {in_ms(4 * network['weights'] / bandwidth)} ms."
        + (" * broken off, and extrapolated." if any(r.cut_short for r in results) else ""),
    )
    for result in results:
        epochs = [timing.seconds * steps for timing in result.timings]
        theirs = LIKE_PUBLISHED.get(result.name)
        table.rows.append(
            [
                result.name + (" *" if result.cut_short else ""),
                f"{statistics.mean(epochs):.1f}",
                f"{statistics.stdev(epochs):.1f}" if len(epochs) > 1 else "-",
                f"{statistics.mean(epochs) + result.first_seconds:.1f}",
                f"{result.ratio(alone):.2f}",
                over_limit(result, alone, bandwidth, 4 * network["weights"]),
                f"{result.ratio(dram):.2f}",
                in_bytes(result.peak_rss_bytes),
                *(
                    "-" if theirs is None else f"{_published(theirs, i):.2f}"
                    for i in range(len(published.EPOCHS))
                ),
            ]
        )
    for theirs in published.EPOCH_SECONDS:
        if theirs not in {LIKE_PUBLISHED.get(result.name) for result in results}:
            ratios = [f"{_published(theirs, i):.2f}" for i in range(len(published.EPOCHS))]
            table.rows.append([f"published only: {theirs}", *["-"] * 7, *ratios])
    return table


def _published(name: str, i: int) -> float:
    return published.EPOCH_SECONDS[name][i][0] / published.EPOCH_SECONDS[published.DRAM][i][0]


def _by_name(results: Sequence[Result], name: str) -> Result:
    return next(result for result in results if result.name == name)

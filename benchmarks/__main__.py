"""The command line: ``python -m benchmarks limits | paper | peers | collect | ... | page``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks._options import (
    RESULTS,
    RUNS,
    Directory,
    Model,
    Output,
    Probe,
    Quick,
    Rounds,
    Seconds,
    Shelves,
    Threads,
    carry_out,
)

app = typer.Typer(
    help="Measure what arrays and collection cost, in time, in memory and in bytes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def limits(
    file_mib: Annotated[int, typer.Option(min=8, help="MiB of the file and of memory.")] = 1024,
    rounds: Rounds = 3,
    cell_seconds: Annotated[float, typer.Option(min=0, help="Seconds for each figure.")] = 0.7,
    quick: Quick = False,
    directory: Directory = RUNS,
    output: Output = RESULTS,
) -> None:
    """Bandwidth of memory and device by request size and depth, latency of barriers."""
    from benchmarks.limits import measure, tables

    if quick:
        file_mib, rounds, cell_seconds = 256, 1, 0.2
    carry_out(
        "limits", measure, tables, output, directory,
        file_bytes=file_mib << 20, rounds=rounds, cell_seconds=cell_seconds,
    )  # fmt: skip


@app.command()
def paper(
    model: Model = "4fc",
    threads: Threads = None,
    steps: Annotated[int, typer.Option(min=4, help="Minibatches of an epoch.")] = 600,
    rounds: Rounds = 3,
    most_seconds: Seconds = 20,
    shelf: Shelves = None,
    probe_mib: Probe = 512,
    quick: Quick = False,
    directory: Directory = RUNS,
    output: Output = RESULTS,
) -> None:
    """The paper's Table I and Figures 1 to 3, beside what was published."""
    from benchmarks.paper import measure, tables

    if quick:
        steps, rounds, most_seconds, probe_mib = 60, 1, 2, 128
    carry_out(
        "paper", measure, tables, output, directory, {"shelves": shelf or []},
        model=model, threads=threads, steps=steps, rounds=rounds, most_seconds=most_seconds,
        least_steps=min(30, steps), probe_bytes=probe_mib << 20,
    )  # fmt: skip


@app.command()
def regime(
    model: Model = "4fc",
    threads: Threads = None,
    memory_mib: Annotated[
        int, typer.Option(min=256, help="MiB that the process may hold, page cache included.")
    ] = 1024,
    ratios: Annotated[
        list[float] | None, typer.Option("--ratio", help="Posterior over memory; may be repeated.")
    ] = None,
    rounds: Rounds = 3,
    least_steps: Annotated[int, typer.Option(min=1, help="Steps of a run at least.")] = 30,
    most_seconds: Seconds = 10,
    shelf: Shelves = None,
    quick: Quick = False,
    directory: Directory = RUNS,
    output: Output = RESULTS,
) -> None:
    """A posterior of 0.25, 1, 2 and 4 times the memory, in a memory cgroup: cost of a step."""
    from benchmarks.regime import measure, tables

    if quick:
        rounds, least_steps, most_seconds = 1, 3, 2
    carry_out(
        "regime", measure, tables, output, directory, {"shelves": shelf or []},
        model=model, threads=threads, memory_bytes=memory_mib << 20,
        ratios=ratios or [0.25, 1, 2, 4], rounds=rounds, least_steps=least_steps,
        most_seconds=most_seconds,
    )  # fmt: skip


@app.command()
def peers(
    model: Model = "4fc",
    threads: Threads = None,
    rounds: Rounds = 3,
    steps: Annotated[int, typer.Option(min=1, help="Training steps a round.")] = 60,
    warm_up: Annotated[int, typer.Option(min=1, help="Steps before those.")] = 30,
    most_seconds: Seconds = 10,
    kills: Annotated[
        int, typer.Option(min=0, help="Iterates before a process is killed; 0 for no kills.")
    ] = 20,
    only: Annotated[list[str] | None, typer.Option(help="Part of a name; may be repeated.")] = None,
    probe_mib: Probe = 512,
    quick: Quick = False,
    directory: Directory = RUNS,
    output: Output = RESULTS,
) -> None:
    """What else could keep every iterate: ms a step, memory, bytes, draws, what a kill leaves."""
    from benchmarks.peers import compare, tables

    if quick:
        rounds, steps, warm_up, most_seconds, probe_mib = 1, 10, 5, 2, 128
    carry_out(
        "peers", compare, tables, output, directory,
        model=model, threads=threads, rounds=rounds, steps=steps, warm_up=warm_up,
        most_seconds=most_seconds, kills=kills, probe_bytes=probe_mib << 20, only=only or [],
    )  # fmt: skip


@app.command()
def scaling(
    weights: Annotated[
        list[int] | None, typer.Option(min=2, help="Sizes of networks; may be repeated.")
    ] = None,
    ranks: Annotated[
        list[int] | None, typer.Option("--rank", min=2, help="Iterates drawn from.")
    ] = None,
    rounds: Rounds = 3,
    steps: Annotated[int, typer.Option(min=1, help="Steps a round.")] = 60,
    most_seconds: Seconds = 5,
    probe_mib: Probe = 512,
    quick: Quick = False,
    directory: Directory = RUNS,
    output: Output = RESULTS,
) -> None:
    """Cost of a step and of a draw by weights, rank, cache and device; a model; predictions."""
    from benchmarks.scaling import measure, tables

    sizes, held = weights or [100_000, 1_000_000, 10_000_000, 30_000_000], ranks or [20, 100, 400]
    caches, slowed = [3, 25], [400e6, 200e6]
    if quick:
        rounds, steps, most_seconds, probe_mib = 1, 10, 1, 128
        sizes, held = weights or [100_000, 1_000_000, 4_000_000], ranks or [5, 20]
    carry_out(
        "scaling", measure, tables, output, directory,
        weights=sizes, ranks=held, caches=caches, slowed=slowed, rounds=rounds, steps=steps,
        most_seconds=most_seconds, probe_bytes=probe_mib << 20,
    )  # fmt: skip


@app.command()
def collect(
    model: Model = "4fc",
    threads: Threads = None,
    rounds: Rounds = 5,
    steps: Annotated[int, typer.Option(min=1, help="Training steps a round.")] = 100,
    warm_up: Annotated[
        int,
        typer.Option(min=1, help="Steps before those: 30 of 4fc fill the cache once."),
    ] = 30,
    reference_rank: Annotated[
        int, typer.Option(min=1, help="Columns of the row-major matrix of the reference.")
    ] = 100,
    reference_steps: Annotated[
        int, typer.Option(min=0, help="Steps a round of the reference; 0 to leave it out.")
    ] = 10,
    probe_mib: Probe = 512,
    directory: Directory = RUNS,
    output: Output = RESULTS,
) -> None:
    """Milliseconds a training step: alone, with SWAG in several ways, with the reference."""
    from benchmarks.collect import compare, tables

    carry_out(
        "collect", compare, tables, output, directory,
        model=model, threads=threads, rounds=rounds, steps=steps, warm_up=warm_up,
        reference_rank=reference_rank, reference_steps=reference_steps,
        probe_bytes=probe_mib << 20,
    )  # fmt: skip


@app.command()
def collect_gpt2(
    width: Annotated[int, typer.Option(min=64, help="Of the residual stream.")] = 768,
    depth: Annotated[int, typer.Option(min=1, help="Blocks.")] = 12,
    tokens: Annotated[int, typer.Option(min=1, max=1024, help="Of a training step.")] = 64,
    device: Annotated[str, typer.Option(help="That trains: cpu, cuda.")] = "cpu",
    threads: Threads = None,
    interval: Annotated[
        int | None,
        typer.Option(min=1, help="Steps from one iterate to the next; as the disk can, if not."),
    ] = None,
    intervals: Annotated[int, typer.Option(min=1, help="Intervals a round.")] = 6,
    rounds: Rounds = 3,
    probe_mib: Probe = 1024,
    directory: Directory = RUNS,
    output: Output = RESULTS,
) -> None:
    """The same for 124 million weights, as often as the disk can; the longest pause of a step."""
    from benchmarks.collect_gpt2 import measure, tables

    carry_out(
        "collect-gpt2", measure, tables, output, directory,
        width=width, depth=depth, tokens=tokens, device=device, threads=threads,
        interval=interval, intervals=intervals, rounds=rounds, probe_bytes=probe_mib << 20,
    )  # fmt: skip


@app.command()
def collect_parts(
    model: Model = "4fc",
    threads: Threads = None,
    rounds: Rounds = 5,
    steps: Annotated[int, typer.Option(min=1, help="Training steps a round.")] = 60,
    warm_up: Annotated[int, typer.Option(min=1, help="Steps before those.")] = 30,
    directory: Directory = RUNS,
    output: Output = RESULTS,
) -> None:
    """What copy, moments, write, barriers and waits add to a step: each is left out in turn."""
    from benchmarks.collect_parts import measure, tables

    carry_out(
        "collect-parts", measure, tables, output, directory,
        model=model, threads=threads, rounds=rounds, steps=steps, warm_up=warm_up,
    )  # fmt: skip


@app.command()
def transactions(
    rows: Annotated[int, typer.Option(min=1, help="Float32 items of a column.")] = 2_797_010,
    rounds: Rounds = 5,
    steps: Annotated[int, typer.Option(min=1, help="Columns a round.")] = 60,
    directory: Directory = RUNS,
    output: Output = RESULTS,
) -> None:
    """Milliseconds a column, appended and overwritten, with a transaction a step and without."""
    from benchmarks.transactions import compare, tables

    carry_out(
        "transactions", compare, tables, output, directory, rows=rows, rounds=rounds, steps=steps
    )


@app.command()
def array(
    rows: Annotated[int, typer.Option(min=16, help="Float32 items of a column.")] = 262_144,
    columns: Annotated[int, typer.Option(min=2, help="Columns.")] = 256,
    rounds: Rounds = 3,
    only: Annotated[
        list[str] | None, typer.Option(help="Part of an operation's name; may be repeated.")
    ] = None,
    peer: Annotated[
        list[str] | None, typer.Option(help="Part of a library's name; may be repeated.")
    ] = None,
    enough_seconds: Annotated[
        float, typer.Option(min=0, help="Reads are repeated for about this long.")
    ] = 0.1,
    weights: Annotated[
        int, typer.Option(min=2, help="Weights of the posterior that is drawn from.")
    ] = 2_797_010,
    iterates: Annotated[int, typer.Option(min=0, help="Iterates in it; 0 for no draws.")] = 160,
    draws: Annotated[int, typer.Option(min=1, help="Draws from it.")] = 32,
    probe_mib: Probe = 256,
    directory: Directory = RUNS,
    output: Output = RESULTS,
) -> None:
    """Items, columns, rows, blocks, sums and products, beside other libraries, warm and cold."""
    from benchmarks.array import compare, tables

    carry_out(
        "array", compare, tables, output, directory,
        rows=rows, columns=columns, rounds=rounds, only=only or [], peers=peer or [],
        enough_seconds=enough_seconds, probe_bytes=probe_mib << 20,
        weights=weights, iterates=iterates, draws=draws,
    )  # fmt: skip


@app.command()
def codecs(
    store: Annotated[str, typer.Argument(help="A posterior that swag train has collected.")],
    array: Annotated[str, typer.Option(help="Which array of it.")] = "trajectory",
    columns: Annotated[int, typer.Option(min=2, help="Of it, the last so many columns.")] = 100,
    rounds: Rounds = 3,
    directory: Directory = RUNS,
    output: Output = RESULTS,
) -> None:
    """Size and speed of a trajectory by codec, and what rounding does to the covariance."""
    from benchmarks.codecs import compare, tables

    carry_out(
        "codecs", compare, tables, output, directory, {"store": store},
        array=array, columns=columns, rounds=rounds,
    )  # fmt: skip


@app.command()
def shelf(
    place: Annotated[
        Path | None,
        typer.Argument(
            help="A directory on DAX, or a device, whose array is replaced; DRAM if not given."
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=100, help="Float32 items of a column.")] = 1_000_000,
    columns: Annotated[int, typer.Option(min=8, help="Columns.")] = 16,
    rounds: Rounds = 5,
    output: Output = RESULTS,
) -> None:
    """Milliseconds a write to persistent memory, in place and through the write cache."""
    from benchmarks.shelf import compare, tables

    carry_out(
        "shelf", compare, tables, output, None, {"place": place},
        rows=rows, columns=columns, rounds=rounds,
    )  # fmt: skip


@app.command()
def rss(
    model: Model = "4fc",
    threads: Threads = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=600, help="Minibatches; an epoch if not given.")
    ] = None,
    directory: Directory = RUNS,
    output: Output = RESULTS,
) -> None:
    """Peak memory of an epoch on MNIST, every minibatch collected to a file (6.7 GB for 4fc)."""
    from benchmarks.rss import measure, tables

    carry_out("rss", measure, tables, output, directory, model=model, threads=threads, steps=steps)


@app.command()
def burn_in(
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each quadratic.")] = 20,
    times: Annotated[
        float, typer.Option(min=1, help="Most iterates of a run, in mixing times.")
    ] = 30.0,
    network: Annotated[str, typer.Option(help="2conv2fc, 2fc, 3fc or 4fc.")] = "2conv2fc",
    trainings: Annotated[int, typer.Option(min=0, help="Of the network, on MNIST.")] = 2,
    epochs: Annotated[int, typer.Option(min=1, help="Of a training.")] = 4,
    samples: Annotated[int, typer.Option(min=2, help="Networks of a window.")] = 10,
    threads: Threads = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the four MNIST files.")] = None,
    output: Output = RESULTS,
) -> None:
    """Where the burn-in is found to end where that is known, and what it is worth on MNIST."""
    from benchmarks.burn_in import measure, tables

    if threads is not None:
        torch.set_num_threads(threads)
    carry_out(
        "burn-in", measure, tables, output, hidden={"data": data},
        seeds=seeds, times=times, network=network, trainings=trainings, epochs=epochs,
        images=None, samples=samples,
    )  # fmt: skip


@app.command()
def toy_regression(
    seeds: Annotated[int, typer.Option(min=1, help="Data sets.")] = 5,
    samples: Annotated[int, typer.Option(min=1, help="Networks of each method.")] = 100,
    epochs: Annotated[int, typer.Option(min=6, help="Of a training.")] = 3000,
    temperature: Annotated[
        float, typer.Option(min=0.01, help="Of the likelihood in a subspace.")
    ] = 20.0,
    threads: Threads = None,
    output: Output = RESULTS,
) -> None:
    """Subspace inference of 2, 5 and 10 directions beside SWAG, on a regression of one variable."""
    from benchmarks.toy_regression import measure, tables

    if threads is not None:
        torch.set_num_threads(threads)
    carry_out(
        "toy-regression", measure, tables, output,
        seeds=seeds, samples=samples, epochs=epochs, temperature=temperature,
    )  # fmt: skip


@app.command()
def mnist(
    networks: Annotated[
        list[str] | None, typer.Argument(help="2conv2fc, 2fc, 3fc, 4fc; all if none is given.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each network.")] = 3,
    members: Annotated[int, typer.Option(min=2, help="Trainings of a mixture.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Of a training.")] = 7,
    samples: Annotated[int, typer.Option(min=2, help="Networks of a posterior.")] = 30,
    threads: Threads = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A trial: one small network, few images, one seed.")
    ] = False,
    data: Annotated[Path | None, typer.Option(help="Folder of the four MNIST files.")] = None,
    directory: Directory = RUNS,
    output: Output = RESULTS,
) -> None:
    """SGD, SWA, SWAG at several ranks, subspace, MultiSWAG and deep ensemble on MNIST.

    One training at a time is on the disk: 13 GB for the iterates of 4fc. The same command goes on
    with what was broken off.
    """
    from benchmarks.mnist import measure, tables

    full: dict[str, Any] = {
        "networks": networks or ["2conv2fc", "2fc", "3fc", "4fc"], "seeds": seeds,
        "members": members, "epochs": epochs, "rate_epochs": 2, "images": None,
        "ranks": [20, 600], "rates": [0.02, 0.05, 0.1], "samples": samples, "threads": threads,
    }  # fmt: skip
    small = {
        "networks": networks or ["2conv2fc"], "seeds": 1, "members": 2, "epochs": 3,
        "rate_epochs": 2, "images": 2000, "ranks": [5], "rates": [0.02, 0.05], "samples": 5,
        "threads": threads,
    }  # fmt: skip
    parameters = small if quick else full
    carry_out(
        "mnist", measure, tables, output, directory, hidden={"data": data}, goes_on=True,
        **parameters,
    )  # fmt: skip


@app.command()
def imports(
    modules: Annotated[list[str] | None, typer.Argument(help="numpy, pmarray, swag.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Fresh processes a module.")] = 9,
    output: Output = RESULTS,
) -> None:
    """Time that importing takes, and NumPy's share of it."""
    from benchmarks.imports import measure, tables

    carry_out(
        "imports", measure, tables, output,
        modules=modules or ["numpy", "pmarray", "swag"], processes=processes,
    )  # fmt: skip


@app.command()
def opening(
    sizes: Annotated[
        list[float] | None, typer.Option("--size", help="GB of the array; may be repeated.")
    ] = None,
    written: Annotated[
        list[int] | None,
        typer.Option(help="MiB that the killed transaction overwrites; may be repeated."),
    ] = None,
    rounds: Rounds = 5,
    quick: Quick = False,
    directory: Directory = RUNS,
    output: Output = RESULTS,
) -> None:
    """Opening arrays beyond the disk's size, and recovery after a kill, by size."""
    from benchmarks.opening import measure, tables

    if quick:
        sizes, written, rounds = sizes or [0.4, 400], written or [8], 1
    carry_out(
        "opening", measure, tables, output, directory,
        sizes=[int(size * 1e9) for size in sizes or [4, 40, 400]],
        written=[size << 20 for size in written or [16, 64, 256]], rounds=rounds,
    )  # fmt: skip


@app.command()
def loader(
    rows: Annotated[int, typer.Option(min=2, help="Rows of training data.")] = 200_000,
    columns: Annotated[int, typer.Option(min=1, help="Items of each.")] = 784,
    rounds: Rounds = 5,
    directory: Directory = RUNS,
    output: Output = RESULTS,
) -> None:
    """Rows of training data a second, from a file and from memory."""
    from benchmarks.loader import measure, tables

    carry_out(
        "loader", measure, tables, output, directory, rows=rows, columns=columns, rounds=rounds
    )


@app.command()
def guest(
    rows: Annotated[int, typer.Option(min=2, help="Items of a column.")] = 1 << 18,
    columns: Annotated[int, typer.Option(min=1, help="Columns written.")] = 24,
    rounds: Rounds = 5,
    media: Annotated[
        list[str] | None, typer.Option("--medium", help="One of them; may be repeated.")
    ] = None,
    directory: Directory = RUNS,
    output: Output = RESULTS,
) -> None:
    """Columns on persistent memory of an emulated machine (as `make powercut`, it needs QEMU)."""
    from benchmarks.guest import MEDIA, measure, tables

    carry_out(
        "guest", measure, tables, output, directory,
        rows=rows, columns=columns, rounds=rounds, media=media or list(MEDIA),
    )  # fmt: skip


@app.command()
def page(
    results: Annotated[Path, typer.Argument(help="Directory of JSON lines.")] = Path(
        "benchmarks/results"
    ),
    to: Annotated[Path, typer.Option(help="The page; figures go into a folder beside it.")] = Path(
        "docs/benchmarks.md"
    ),
    readme: Annotated[
        Path | None, typer.Option(help="Takes a few figures of `peers` between its marks.")
    ] = None,
) -> None:
    """Make the page of the documentation, and its figures, from results."""
    from benchmarks.page import write

    write(results, to, readme)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")

"""What a user would pick instead, in the training loop of `collect`."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from benchmarks._device import write_bandwidth
from benchmarks._harness import Contender, over_limit, race, record, results_of
from benchmarks._keepers import KEEPERS, Keeper, Ours, missing
from benchmarks._peers import drop_caches
from benchmarks._records import Recording
from benchmarks._tables import Table, in_bytes, in_ms
from benchmarks._training import Collecting, TrainingContenders
from swag.models import build

__all__ = ["compare", "killed", "tables", "words"]

_STEP_S = 0.02
"""Between the iterates of a process that is killed, as a step of training takes."""
_WEIGHTS_OF_THE_KILLED = 100_000
_DRAWS = 32


def compare(
    run: Recording,
    *,
    model: str,
    threads: int | None,
    rounds: int,
    steps: int,
    warm_up: int,
    most_seconds: float,
    kills: int,
    probe_bytes: int,
    only: Sequence[str] = (),
    directory: Path,
) -> None:
    """Train with each, draw from what it kept, and see what a kill leaves of it.

    Parameters
    ----------
    run
        Where the figures go.
    model, threads
        What is trained, and by how many threads.
    rounds, steps, warm_up, most_seconds
        See `benchmarks._harness.race`.
    kills
        Iterates after which a process kills itself; 0 for no kills.
    probe_bytes
        Written once a round to see the device's bandwidth.
    only
        Parts of names, to leave out the others.
    directory
        Where files are written.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    weights = sum(p.numel() for p in build(model).parameters())
    run.add("network", weights=weights, threads=torch.get_num_threads())
    chosen = []
    for keeper in KEEPERS:
        if only and not any(part in keeper.name for part in only):
            continue
        lacking = ", ".join(missing(keeper))
        run.add(
            "peer", name=keeper.name, note=f"skipped, needs {lacking}" if lacking else keeper.note
        )
        if not lacking:
            chosen.append(keeper)
    with tempfile.TemporaryDirectory(dir=directory, prefix="peers-") as scratch:
        where = Path(scratch)
        training = TrainingContenders(model, steps=steps + warm_up, directory=where)
        warm: set[type[Keeper]] = set()

        def contender(keeper: type[Keeper]) -> Contender:
            @contextmanager
            def start(model: nn.Module) -> Iterator[Collecting]:
                with _kept(keeper, model, steps + warm_up, where) as kept:
                    yield kept.collect, kept.finish
                    if keeper in warm:
                        _afterwards(run, kept)
                    warm.add(keeper)  # the first time is no round of the race

            return training.calling(keeper.name, start)

        def probe() -> None:
            bandwidth = write_bandwidth(where, nbytes=probe_bytes)
            run.add("limit", bytes_per_second=bandwidth)

        results = race(
            [training.alone(), *(contender(keeper) for keeper in chosen)],
            rounds=rounds,
            steps=steps,
            warm_up=warm_up,
            most_seconds=most_seconds,
            directory=where,
            between=probe,
            report=run.report,
        )
        record(run, results)
        if kills:
            for keeper in chosen:
                run.report(f"killed: {keeper.name}")
                place = where / "killed"
                place.mkdir()
                left, wrong, error = killed(keeper, place, kills)
                run.add("killed", name=keeper.name, left=left, wrong=wrong, error=error)
                shutil.rmtree(place)


def tables(run: Recording) -> list[Table]:
    """Lay out a run."""
    (network,) = run.of("network")
    asked = run.header["parameters"]
    results = results_of(run.records)
    bandwidth = statistics.median(one["bytes_per_second"] for one in run.of("limit"))
    notes = "; ".join(f"{one['name']}: {one['note']}" for one in run.of("peer"))
    table = Table(
        f"{asked['model']}, {in_bytes(4 * network['weights'])} a step,"
        f" {network['threads']} training threads",
        ["", "ms a step", "x alone", "x limit", "rounds", "CPU ms", "peak RSS", "on disk",
         "32 draws, s", "after a kill"],
        note=f"Medians of {asked['rounds']} rounds of {asked['steps']} steps; all is durable at the"
        " end of a round, and the time that takes is spread over its steps. On disk: bytes a step."
        " 32 draws: weights drawn afterwards, opened anew, out of the page cache. After a kill:"
        f" iterates that can be read and are right after SIGKILL at the {asked['kills']}th, one"
        f" every {1000 * _STEP_S:.0f} ms, + those"
        " that are there and are wrong. The device writes a step's weights in"
        f" {in_ms(4 * network['weights'] / bandwidth)} ms. x limit: over the larger of that and"
        " training alone."
        + (" * broken off, and extrapolated." if any(r.cut_short for r in results) else "")
        + f" {notes}.",
    )  # fmt: skip
    for result in results:
        after = [one for one in run.of("afterwards") if one["name"] == result.name]
        table.rows.append(
            [
                result.name + (" *" if result.cut_short else ""),
                in_ms(result.seconds),
                f"{result.ratio(results[0]):.2f}",
                over_limit(result, results[0], bandwidth, 4 * network["weights"]),
                " to ".join(map(in_ms, result.range_seconds)),
                in_ms(result.cpu_seconds),
                in_bytes(result.peak_rss_bytes),
                in_bytes(statistics.median(one["nbytes"] / one["steps"] for one in after))
                if after
                else "-",
                f"{statistics.median(one['draw_seconds'] for one in after):.2f}" if after else "-",
                _left(run, result.name),
            ]
        )
    return [table]


def words(run: Recording) -> str:
    """Say who wins, column by column."""
    seconds = {result.name: result.seconds for result in results_of(run.records)[1:]}
    memory = {r.name: r.peak_rss_bytes or 0 for r in results_of(run.records)[1:]}
    draws = {
        name: statistics.median(
            one["draw_seconds"] for one in run.of("afterwards") if one["name"] == name
        )
        for name in seconds
    }
    said = []
    for text, figures, write in (
        ("Least time a step", seconds, lambda value: f"{in_ms(value)} ms"),
        ("Least memory", memory, in_bytes),
        ("Fastest draws", draws, lambda value: f"{value:.2f} s"),
    ):
        best = min(figures, key=lambda name: figures[name])
        ours = Ours.name
        beside = "" if best == ours or ours not in figures else f"; {ours} {write(figures[ours])}"
        said.append(f"{text}: {best}, {write(figures[best])}{beside}.")
    left = {one["name"]: one["left"] for one in run.of("killed")}
    if Ours.name in left:
        more = [name for name, count in left.items() if count > left[Ours.name]]
        said.append(
            f"After the kill {', '.join(more) or 'nobody'} had more iterates than {Ours.name},"
            " whose last ones were on their way to the disk: what the system has taken over"
            " outlives the process, and a power cut takes it."
        )
    return " ".join(said)


def _left(run: Recording, name: str) -> str:
    for one in run.of("killed"):
        if one["name"] == name:
            wrong = f" + {one['wrong']} wrong" if one["wrong"] else ""
            return f"{one['left']}{wrong}" + (f", then {one['error']}" if one["error"] else "")
    return "-"


def killed(keeper: type[Keeper], path: Path, steps: int) -> tuple[int, int, str | None]:
    """Let a process keep iterates and kill itself; count what it left.

    The weights of iterate i are all i + 1, so that each can be told. The process does not ask for
    durability before, and what is in the page cache outlives it: a power cut would leave less.

    Parameters
    ----------
    keeper
        What keeps them.
    path
        An empty directory.
    steps
        Iterates kept; as many again were announced.

    Returns
    -------
    tuple of (int, int, str or None)
        Iterates that are right, in their order from the first; others that are there; the name of
        the exception that ended the reading.
    """
    script = "import sys; from benchmarks.peers import die; die(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", script, keeper.__name__, str(path), str(steps)],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    if done.returncode != -signal.SIGKILL:
        raise RuntimeError(f"{keeper.name} ended before it was killed: {done.stderr}")
    right = wrong = 0
    try:
        reader = keeper.__new__(keeper)
        reader.path, reader.weights = path, _WEIGHTS_OF_THE_KILLED
        for i, column in enumerate(reader.iterates()):
            if right == i and bool((column == i + 1).all()):
                right += 1
            else:
                wrong += 1
    except Exception as error:  # whatever the library says of what it finds
        return right, wrong, type(error).__name__
    return right, wrong, None


def die(keeper_name: str, path: str, steps: str) -> None:
    """Keep iterates and kill this process: what `killed` runs in another one."""
    (keeper,) = (one for one in KEEPERS if one.__name__ == keeper_name)
    model = nn.Linear(_WEIGHTS_OF_THE_KILLED, 1, bias=False)
    kept = keeper(Path(path), model, 2 * int(steps))
    for i in range(int(steps)):
        nn.init.constant_(model.weight, i + 1)
        time.sleep(_STEP_S)
        kept.collect(model)
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _kept(keeper: type[Keeper], model: nn.Module, steps: int, where: Path) -> Iterator[Keeper]:
    path = Path(tempfile.mkdtemp(dir=where))
    try:
        kept = keeper(path, model, steps)
        try:
            yield kept
        finally:
            kept.close()
    finally:
        shutil.rmtree(path)


def _afterwards(run: Recording, kept: Keeper) -> None:
    """Note what a round left on the disk, and how long drawing from it takes."""
    kept.close()
    blocks = [
        os.lstat(os.path.join(d, name)).st_blocks for d, _, fs in os.walk(kept.path) for name in fs
    ]
    drop_caches(kept.path)
    started = time.perf_counter()
    kept.draw(_DRAWS)
    seconds = time.perf_counter() - started
    run.add(
        "afterwards",
        name=kept.name,
        nbytes=512 * sum(blocks),
        steps=kept.steps,
        draw_seconds=seconds,
    )

"""What the parts of collecting cost: each is left out in turn, and what is saved is its share."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks._harness import Contender, Run, race, record, results_of, table_of
from benchmarks._records import Recording
from benchmarks._tables import Table, in_ms
from benchmarks._training import TrainingContenders
from pmarray._system import osops
from swag import _behind, _collecting, _moments, _parameters
from swag._projections import Projections
from swag._screening import Screen

__all__ = ["measure", "tables"]

_LARGE_BYTES = 1 << 20
"""A write of so much is one of columns; the journal's are needed to go on."""

Patch = tuple[Any, str, Any]


def _nothing(*_: object, **__: object) -> None:
    return None


def _no_sum(*_: object) -> float:
    return 0.0


def _without_write(real: Callable[..., int]) -> Callable[..., int]:
    def pwritev(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        nbytes = sum(buffer.nbytes for buffer in buffers)
        return nbytes if nbytes >= _LARGE_BYTES else real(fd, buffers, offset)

    return pwritev


_ALL = "all of it"
_PARTS: dict[str, list[Patch]] = {
    "the copy": [
        (_parameters, "copy_and_sum", _no_sum),
        (Screen, "look_at", _nothing),
        (_behind.Shared, "check", _nothing),
    ],
    "its projections": [(Projections, "of_one", _nothing)],
    "the write": [(osops, "pwritev", _without_write(osops.pwritev))],
    "the barriers": [(osops, "fdatasync", _nothing), (osops, "fsync_directory", _nothing)],
    "the waits": [
        (_collecting.Collecting, "_wait", _nothing),
        (_behind.Shared, "check", _nothing),
    ],
}
_PARTS_OF_RING: dict[str, list[Patch]] = {
    "the moments": [(_moments, "accumulate", _nothing)],
}


def _without(contender: Contender, name: str, patches: list[Patch]) -> Contender:
    """Leave something out while a round is set up, run and taken down."""

    @contextmanager
    def start() -> Iterator[Run]:
        with ExitStack() as left_out:
            for where, what, instead in patches:
                left_out.enter_context(mock.patch.object(where, what, instead))
            yield left_out.enter_context(contender.start())

    return Contender(f"without {name}", start, contender.most_steps)


def measure(
    run: Recording,
    *,
    model: str,
    threads: int | None,
    rounds: int,
    steps: int,
    warm_up: int,
    directory: Path,
) -> None:
    """Time collection into files, attached, whole and without each of its parts.

    What is collected without a part is of no use, and is removed. Parts run beside one another and
    beside training: what is saved without one is what it adds, not what it takes.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(dir=directory, prefix="collect-parts-") as scratch:
        where = Path(scratch)
        ways = TrainingContenders(model, steps=steps + warm_up, directory=where)
        contenders = [ways.alone()]
        for of, max_rank, parts in (
            ("every iterate", None, _PARTS),
            ("the last 20", 20, _PARTS_OF_RING),
        ):
            whole = ways.collecting("memmap", attached=True, max_rank=max_rank)
            some = [Contender(_ALL, whole.start)]
            some += [_without(whole, name, patches) for name, patches in parts.items()]
            contenders += [
                Contender(f"{of}: {one.name}", one.start, one.most_steps) for one in some
            ]
        results = race(
            contenders,
            rounds=rounds,
            steps=steps,
            warm_up=warm_up,
            directory=where,
            report=run.report,
        )
    record(run, results)
    run.add("training", threads=torch.get_num_threads())


def tables(run: Recording) -> list[Table]:
    """Lay out a run."""
    asked = run.header["parameters"]
    (training,) = run.of("training")
    results = results_of(run.records)
    table = table_of(
        results,
        f"{asked['model']}, batch 100, training threads {training['threads']}, medians of"
        f" {asked['rounds']} rounds of {asked['steps']} steps",
    )
    wholes = {one.name.partition(":")[0]: one for one in results if one.name.endswith(_ALL)}
    table.headings.insert(3, "saves")
    table.note += "; saves: ms less than with all of it, in the median of the rounds"
    for result, row in zip(results, table.rows, strict=True):
        whole = wholes.get(result.name.partition(":")[0])
        if whole is None or whole is result:
            row.insert(3, "")
            continue
        saved = [
            all_of_it.seconds - timing.seconds
            for all_of_it, timing in zip(whole.timings, result.timings, strict=True)
        ]
        row.insert(3, in_ms(float(np.median(saved))))
    return [table]

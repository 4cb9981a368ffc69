"""Processes of a distributed training, on this machine.

They are forked from one process that has imported everything and computed nothing, since imports
take longer than what they do.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 120


def run(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work` returned in each of so many processes; an exception where it raised one.

    None where a process died.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.swag.sharded"])
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        processes = [
            context.Process(target=_run, args=(rank, count, place, work, arguments))
            for rank in range(count)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + SECONDS
        for process in processes:
            process.join(max(0, deadline - time.monotonic()))
        hanging = [process for process in processes if process.is_alive()]
        for process in hanging:
            process.kill()
            process.join()
        assert not hanging, "processes hang"
        files = [place / str(rank) for rank in range(count)]
        return [torch.load(f, weights_only=False) if f.exists() else None for f in files]


def _run(
    rank: int,
    count: int,
    place: Path,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{place / 'meet'}", rank=rank, world_size=count
    )
    try:
        result = work(*arguments)
    except Exception as error:
        traceback.print_exc()
        result = f"{type(error).__name__}: {error}"
    torch.save(result, place / f"{rank}.part")
    (place / f"{rank}.part").rename(place / str(rank))
    dist.destroy_process_group()

"""What the simulated disk watches: transactions of every kind."""

from __future__ import annotations

import pmarray
from pmarray.testing import Workload

from .disk import Recorder
from .rig import Program

__all__ = ["PROGRAMS"]


def durable(workload: Workload, cache: int | str = 16384) -> Program:
    """Every commit is waited for."""

    def program(url: str, recorder: Recorder) -> None:
        with pmarray.open_group(url, cache=cache) as group:
            recorder.mark("promised", 0)
            for i in range(len(workload.transactions)):
                recorder.mark("begun", i + 1)
                with group.transaction():
                    workload.apply(i, group)
                recorder.mark("promised", i + 1)
        recorder.mark("promised", len(workload.transactions))

    return program


def pipelined(workload: Workload, cache: int | str = 16384) -> Program:
    """Commits are waited for now and then; some transactions are rolled back and done again."""

    def program(url: str, recorder: Recorder) -> None:
        with pmarray.open_group(url, cache=cache, commit="pipelined") as group:
            recorder.mark("promised", 0)
            for i in range(len(workload.transactions)):
                if i % 3 == 1:
                    _abandon(workload, i, group)
                recorder.mark("begun", i + 1)
                with group.transaction():
                    workload.apply(i, group)
                if i % 4 == 3:
                    group.flush()
                    recorder.mark("promised", i + 1)
        recorder.mark("promised", len(workload.transactions))

    return program


def flushed(workload: Workload, cache: int | str = 16384) -> Program:
    """No transactions: what was flushed is there until it is touched again."""

    def program(url: str, recorder: Recorder) -> None:
        with pmarray.open_group(url, cache=cache) as group:
            recorder.mark("promised", 0)
            for i in range(len(workload.transactions)):
                recorder.mark("loose", i)
                workload.apply(i, group)
                group.flush()
                recorder.mark("promised", i + 1)
        recorder.mark("promised", len(workload.transactions))

    return program


def _abandon(workload: Workload, i: int, group: pmarray.Group) -> None:
    try:
        with group.transaction():
            workload.apply(i, group)
            raise InterruptedError
    except InterruptedError:
        pass


PROGRAMS = {"durable": durable, "pipelined": pipelined, "flushed": flushed}

"""Work that threads share with the caller: all of it is done once, whoever is free."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import swag
from swag._crew import Batch, Crew


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Crew, "_FEW", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_every_part_is_done_once() -> None:
    done: list[int] = []
    threads = set()

    def part(number: int) -> None:
        time.sleep(0.001)
        threads.add(threading.get_ident())
        done.append(number)

    with Crew(items=1) as crew:
        for first in range(0, 100, 20):
            crew.begin([lambda i=i: part(i) for i in range(first, first + 20)]).finish()  # type: ignore[misc]
            assert sorted(done) == list(range(first + 20))
    assert len(threads) == 3


@pytest.mark.usefixtures("three_threads")
def test_nobody_waits_for_a_thread_that_is_busy_with_something_else() -> None:
    go_on = threading.Event()
    done: list[int] = []
    with Crew(items=1) as crew:
        long = crew.begin([go_on.wait, go_on.wait])
        while len(long):
            time.sleep(0.001)
        crew.begin([lambda i=i: done.append(i) for i in range(5)]).finish()  # type: ignore[misc]
        assert done == [0, 1, 2, 3, 4]
        go_on.set()
        long.finish()


@pytest.mark.usefixtures("three_threads")
def test_the_first_error_is_raised_when_what_has_begun_is_over() -> None:
    begun = threading.Event()
    over: list[int] = []

    def fail() -> None:
        begun.wait()
        raise MemoryError("no room")

    def slow() -> None:
        begun.set()
        time.sleep(0.05)
        over.append(1)

    with Crew(items=1) as crew:
        with pytest.raises(MemoryError, match="no room"):
            crew.begin([fail, slow, *[lambda: time.sleep(0.05)] * 50]).finish()
        assert over == [1]


@pytest.mark.usefixtures("three_threads")
def test_where_there_can_be_no_thread_the_caller_does_it_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    done: list[int] = []
    with Crew(items=1) as crew:
        crew.begin([lambda i=i: done.append(i) for i in range(3)]).finish()  # type: ignore[misc]
    assert done == [0, 1, 2]


def test_without_threads_the_caller_does_it_all() -> None:
    done: list[int] = []
    batch = Batch([lambda i=i: done.append(i) for i in range(3)])  # type: ignore[misc]
    batch.finish()
    batch.finish()
    assert done == [0, 1, 2]


def test_draws_and_moments_do_not_depend_on_who_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.nn.Linear(50_000, 3)
    generator = torch.Generator().manual_seed(1)
    with swag.SWAG(model, store=f"memmap:{tmp_path}/p") as collected:
        for _ in range(5):
            torch.nn.init.normal_(model.weight, generator=generator)
            collected.update_parameters(model)
    found = []
    before = torch.get_num_threads()
    for threads, few in ((1, 1 << 20), (2, 0), (4, 0)):
        torch.set_num_threads(threads)
        monkeypatch.setattr(Crew, "_FEW", few)
        with swag.load(f"memmap:{tmp_path}/p") as posterior:
            for memory in (1 << 20, 64 << 20):
                draws = posterior.sample(3, generator=2, memory_bytes=memory)
                found.append((draws, posterior.window(start=1).mean()))
    torch.set_num_threads(before)
    for draws, mean in found[1:]:
        for name, values in found[0][0].items():
            assert torch.allclose(draws[name], values, rtol=0, atol=1e-6)  # products of BLAS
        for name, values in found[0][1].items():
            assert torch.equal(mean[name], values)

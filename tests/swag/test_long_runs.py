"""Runs that are long: which steps, how much room, and what happens where there is none."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import resource
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import swag
from pmarray._system import osops
from pmarray.errors import GroupNotFoundError
from swag.errors import StoreError, SwagWarning, WindowError
from swag.integrations import Collector
from tests.limited import run_with_memory
from tests.swag.nets import network, steps


@pytest.mark.parametrize("every", [1, 3])
def test_start_and_every_choose_what_a_window_would(every: int) -> None:
    model = network()
    some, all_of_them = swag.SWAG(model, start=4, every=every), swag.SWAG(model)
    for _ in steps(model, 12):
        some.update_parameters(model)
        all_of_them.update_parameters(model)
    chosen = all_of_them.window(start=4, every=every)
    assert some.n_averaged == chosen.n_averaged == len(range(4, 12, every))
    for i, iterate in enumerate(chosen.iterates):
        assert torch.equal(some.iterate(i)["0.weight"], all_of_them.iterate(iterate)["0.weight"])


def test_the_count_of_calls_goes_on_from_the_last_iterate(scratch: Path) -> None:
    store, model = f"memmap:{scratch / 'posterior'}", network()
    options: dict[str, Any] = {"store": store, "mode": "a", "start": 2, "every": 3}
    loop = enumerate(steps(model, 12))
    seen = {}
    with swag.SWAG(model, **options) as posterior:
        for step, _ in loop:
            seen[step] = model.state_dict()["0.weight"].clone()
            posterior.update_parameters(model)
            if step == 5:  # which is collected, as 2 is
                break
    with swag.SWAG(model, **options) as posterior:
        for step, _ in loop:
            seen[step] = model.state_dict()["0.weight"].clone()
            posterior.update_parameters(model)
        assert posterior.rewind(to=3) == 3
        assert posterior.n_averaged == 3
    with swag.load(store) as read:
        for i, step in enumerate([2, 5, 8]):
            assert torch.equal(read.iterate(i)["0.weight"], seen[step])


@pytest.mark.parametrize("attach", [False, True])
@pytest.mark.parametrize("call", ["fallocate", "pwritev"])
def test_training_goes_on_where_the_disk_is_full(
    attach: bool, call: str, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"memmap:{scratch / 'posterior'}"
    torch.manual_seed(0)
    model = torch.nn.Linear(1000, 1000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    posterior = swag.SWAG(model, store=store, on_full="stop")
    if attach:
        posterior.attach(optimizer)
    seen = []

    def train(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            model(torch.ones(1, 1000)).square().mean().backward()
            optimizer.step()
            seen.append(model.weight[0].detach().clone())
            posterior.update_parameters(model)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    train(3)
    posterior.flush()
    with monkeypatch.context() as patch:
        patch.setattr(osops, call, full)
        with pytest.warns(SwagWarning, match="is full: collecting has ended") as told:
            train(40)
        assert len(told) == 1
        posterior.close()
    assert posterior.closed
    with swag.load(store) as read:
        assert 3 <= read.n_averaged < len(seen)
        for i in range(read.n_averaged):
            assert torch.equal(read.iterate(i)["weight"][0], seen[i])
    with swag.SWAG(model, store=store, mode="a") as again:  # when there is room
        again.update_parameters(model)


FILLS = """
import torch, swag
rank, attach = {"None": None, "3": 3}[sys.argv[1]], sys.argv[2] == "attach"
model = torch.nn.Linear(2000, 2000)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
posterior = swag.SWAG(model, max_rank=rank, on_full="stop", checkpoint_every=60)
if attach:
    posterior.attach(optimizer)
room, seen = posterior.stats().room, []
for _ in range(110):
    optimizer.zero_grad()
    model(torch.ones(1, 2000)).square().mean().backward()
    optimizer.step()
    seen.append(model.weight[0, 0].item())
    posterior.update_parameters(model)
kept = posterior.n_averaged
held = range(kept - posterior.rank, kept)
print(room, kept, all(posterior.iterate(i)["weight"][0, 0].item() == seen[i] for i in held))
posterior.close()
"""


@pytest.mark.parametrize(("rank", "attach"), [("None", "attach"), ("3", "not")])
def test_training_goes_on_where_memory_is_full(rank: str, attach: str) -> None:
    done = run_with_memory(1500 << 20, FILLS, rank, attach)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stderr.count("dram: is full: collecting has ended, and training goes on") == 1
    room, kept, is_right = done.stdout.split()
    assert 20 < int(kept) < int(room) < 110
    assert is_right == "True"


def test_training_goes_on_past_checkpoints_where_the_disk_is_full(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, model = f"memmap:{scratch / 'posterior'}", network()

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def train() -> None:
        with monkeypatch.context() as patch, Collector(store, on_full="stop") as collector:
            collector.begin(model)
            for step, _ in enumerate(steps(model, 10), start=1):
                collector.stepped(model, step)
                if step == 4:
                    collector.saving(step)
                    patch.setattr(osops, "pwritev", full)
                elif step > 5:
                    collector.saving(step)  # as the framework writes its own, elsewhere

    with pytest.warns(SwagWarning, match="is full") as told:
        train()
    assert len(told) == 1
    with swag.load(store) as read:
        assert read.n_averaged == 4
    resumed = Collector(store)
    resumed.begin(model, step=4)
    assert resumed.posterior.n_averaged == 4
    resumed.end()


def test_training_goes_on_where_a_file_may_not_grow(scratch: Path) -> None:
    """`ulimit -f`, or the largest file of a file system."""
    store, model = f"memmap:{scratch / 'posterior'}", network()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    posterior = swag.SWAG(model, store=store, on_full="stop")

    def train() -> None:
        for _ in steps(model, 1_000):
            posterior.update_parameters(model)

    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.warns(SwagWarning, match="is full: .*too large") as told:
            train()
        posterior.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(told) == 1
    with swag.load(store) as read:
        assert 3 < read.n_averaged < 1_000
    with swag.SWAG(model, store=store, mode="a") as again:  # where it may
        again.update_parameters(model)


def test_a_full_disk_is_an_error_unless_told(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()

    def full(*_: Any) -> int:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    posterior = swag.SWAG(model, store=f"memmap:{scratch / 'posterior'}")
    with monkeypatch.context() as patch:
        patch.setattr(osops, "fallocate", full)
        patch.setattr(osops, "pwritev", full)
        with pytest.raises(OSError) as caught:  # noqa: PT011
            for _ in steps(model, 50):
                posterior.update_parameters(model)
                posterior.flush()
    assert caught.value.errno == errno.EDQUOT
    posterior.close()


def test_a_run_that_finds_no_room_is_told_of_it_at_once(scratch: Path) -> None:
    model, store = network(), f"memmap:{scratch / 'posterior'}"
    with pytest.warns(SwagWarning, match=r"TiB each|bytes are free|are free: collect fewer"):
        swag.SWAG(model, store=store, expected=10**15).close()
    swag.SWAG(model, store=store, expected=10, mode="a").close()
    with pytest.warns(SwagWarning, match=r"more in dram:, and .* are free: collect fewer"):
        swag.SWAG(model, store="dram:", expected=10**15).close()
    with pytest.raises(ValueError, match="on_full='wait': use one of 'raise', 'stop'"):
        swag.SWAG(model, store=store, on_full="wait")  # type: ignore[arg-type]


def test_what_collecting_costs_is_told(scratch: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, store = network(), f"memmap:{scratch / 'posterior'}"
    with caplog.at_level(logging.INFO, "swag"):
        posterior = swag.SWAG(model, store=store)
        for _ in steps(model, 4):
            posterior.update_parameters(model)
        with pytest.warns(SwagWarning, match="bit for bit"):
            posterior.update_parameters(model)  # the last one again
        stats = posterior.stats()
        posterior.close()
    assert (stats.collected, stats.behind, stats.skipped) == (4, 0, 1)
    assert stats.iterate_bytes == 4 * sum(p.numel() for p in model.parameters())
    assert stats.update_seconds > 0
    assert stats.room is not None
    assert stats.room > 0
    assert posterior.stats().collected == 4
    first, last = (record.getMessage() for record in caplog.records)
    assert first.startswith(f"collecting into {store}")
    assert last == f"collected into {store}; ended"


def grow(store: str, rank: int | None, until: Path) -> None:
    """Collect networks whose weights are all the number of the iterate, until told to end."""
    model = network()
    with swag.SWAG(model, store=store, max_rank=rank, checkpoint_every=4) as posterior:
        while not until.exists():
            for parameter in model.parameters():
                torch.nn.init.constant_(parameter, posterior.n_averaged)
            posterior.update_parameters(model)


@pytest.mark.parametrize("rank", [None, 3, 0])
def test_another_process_draws_meanwhile(rank: int | None, scratch: Path) -> None:
    store, until = f"memmap:{scratch / 'posterior'}", scratch / "until"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.swag.sharded"])
    writer = context.Process(target=grow, args=(store, rank, until))
    writer.start()
    seen: set[int] = set()
    deadline = time.monotonic() + 60
    try:
        while len(seen) < 12 and time.monotonic() < deadline:
            # It begins by making a group, and then the posterior in it.
            not_yet = () if seen else (GroupNotFoundError, StoreError)
            with suppress(*not_yet), swag.load(store) as read:
                if not read.n_averaged:
                    continue
                try:
                    draws = read.sample(2, generator=0, scale=0)
                except WindowError:
                    assert (
                        rank is not None
                    )  # a ring has gone on; it is said, and no number is wrong
                    continue
                seen.add(read.n_averaged)
                for value in draws.values():
                    torch.testing.assert_close(
                        value, torch.full_like(value, (read.n_averaged - 1) / 2)
                    )
    finally:
        until.touch()
        writer.join(60)
    assert writer.exitcode == 0
    assert len(seen) == 12

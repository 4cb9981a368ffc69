"""Interrupts while collecting: caught, and gone on from, as in a notebook.

Injected at lines of swag's own, which are more places than a signal can hit, and by real signals,
which hit those of pmarray too. Afterwards the object, its group, and whoever opens the group again
agree on what was collected.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pmarray
import swag
import swag._attached
from swag.errors import StoreError
from tests.sampling import examples

SCHEMES = ["dram", "memmap", "zarr"]


class Step(nn.Module):
    """Weights and a buffer that say which step they are of."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((5, 3), float(step)))
        self.bias = nn.Parameter(torch.full((4,), float(step)))
        self.register_buffer("step", torch.tensor(step))


@contextmanager
def place(scheme: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory:
        yield f"{scheme}:{uuid.uuid4() if scheme == 'dram' else directory + '/posterior'}"


@contextmanager
def interrupted_at(line: int) -> Iterator[Callable[[], int]]:
    """Raise KeyboardInterrupt before the so-manieth line of swag's that this thread runs."""
    inside, seen = str(Path(swag.__file__).parent), 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen
        if event == "call":
            return trace if frame.f_code.co_filename.startswith(inside) else None
        if event == "line":
            seen += 1
            if seen == line:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lambda: seen
    finally:
        sys.settrace(before)


def check(location: str, accepted: list[int], max_rank: int | None, every: int) -> None:
    """What was collected is what the store holds, for whoever opens it."""
    with swag.load(location) as stored:
        assert stored.n_averaged == len(accepted)
        assert_moments(stored, accepted)
        if accepted:
            assert int(stored._last_buffers().tensors["step"]) == accepted[-1]
        if max_rank is None:
            assert stored._store.rows is not None
            found = stored._store.rows[:, :]
            np.testing.assert_array_equal(found, np.broadcast_to(np.array(accepted), found.shape))
    with swag.SWAG(Step(0), location, max_rank, mode="a", checkpoint_every=every) as again:
        assert_moments(again, accepted)


def assert_moments(posterior: swag.Posterior, accepted: list[int]) -> None:
    if not accepted:
        return
    mean, variance = np.mean(accepted), np.var(accepted)
    np.testing.assert_allclose(posterior.mean()["weight"], np.full((5, 3), mean), rtol=1e-6)
    np.testing.assert_allclose(posterior.variance()["bias"], np.full(4, variance), rtol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
@examples(0.5)
@given(
    max_rank=st.sampled_from([None, 0, 2]),
    every=st.integers(1, 4),
    lines=st.lists(st.integers(0, 700), min_size=3, max_size=12),
    spare=st.booleans(),
)
def test_whoever_was_interrupted_goes_on(
    scheme: str, max_rank: int | None, every: int, lines: list[int], spare: bool
) -> None:
    with place(scheme) as location, pytest.MonkeyPatch.context() as patch:
        patch.setattr(swag._attached, "has_spare_core", lambda: spare)
        posterior = swag.SWAG(Step(0), location, max_rank, checkpoint_every=every)
        accepted: list[int] = []
        for step, line in enumerate(lines, 1):
            try:
                with interrupted_at(line):
                    posterior.update_parameters(Step(step))
                    if step % 3 == 0:
                        posterior.flush()
                    posterior.mean()
            except KeyboardInterrupt:
                pass
            else:
                assert posterior.n_averaged == len(accepted) + 1
            if posterior.n_averaged > len(accepted):
                accepted.append(step)
            assert posterior.n_averaged == len(accepted)
            assert_moments(posterior, accepted)
        try:
            with interrupted_at(lines[0]):
                posterior.close()
        except KeyboardInterrupt:
            kept = posterior.n_averaged
            posterior.close()
            assert kept == len(accepted)
            if max_rank == 0:  # in memory only, since the last checkpoint
                with swag.load(location) as stored:
                    accepted = accepted[: stored.n_averaged]
        assert posterior.closed
        assert not [t for t in threading.enumerate() if t.name == "swag-collecting"]
        check(location, accepted, max_rank, every)


@pytest.mark.parametrize("max_rank", [None, 2])
def test_every_line_of_a_collection(monkeypatch: pytest.MonkeyPatch, max_rank: int | None) -> None:
    # The moments of a ring are then taken here, and torn in the middle of them.
    monkeypatch.setattr(swag._attached, "has_spare_core", lambda: False)
    every = 2 if max_rank is None else 5
    for line in range(1, 3000):
        model, group = Step(1), pmarray.open_group("dram:")
        posterior = swag.SWAG(model, group, max_rank, checkpoint_every=every)
        posterior.update_parameters(model)
        try:
            with interrupted_at(line) as seen:
                posterior.update_parameters(Step(2))
        except KeyboardInterrupt:
            # The program's own transactions are free to begin.
            with group.transaction():
                group.attrs["mine"] = line
        count = posterior.n_averaged
        assert count == group.attrs["swag.progress"]["collected"]
        if max_rank is None:
            assert group["trajectory"].shape[1] == count
        assert_moments(posterior, [1, 2][:count])
        posterior.update_parameters(Step(3))
        assert_moments(posterior, [1, 2, 3] if count == 2 else [1, 3])
        posterior.close()
        assert swag.load(group).n_averaged == count + 1
        if seen() < line:
            assert line > 100  # it was interrupted everywhere
            return
    pytest.fail("a collection has more lines than were tried")


@pytest.mark.parametrize("max_rank", [None, 0, 2])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_checkpoint_that_raises_takes_its_iterate_back(scheme: str, max_rank: int | None) -> None:
    fails = True

    def on_checkpoint(group: pmarray.Group) -> None:
        group.attrs["checkpoint"] = 1
        if fails:
            raise ZeroDivisionError

    with place(scheme) as location, pmarray.open_group(location) as group:
        posterior = swag.SWAG(
            Step(0), group, max_rank, checkpoint_every=4, on_checkpoint=on_checkpoint
        )
        accepted = []
        for step in range(1, 10):
            fails = step in (4, 5)
            if fails:
                with pytest.raises(ZeroDivisionError):
                    posterior.update_parameters(Step(step))
                assert "checkpoint" not in group.attrs
            else:
                posterior.update_parameters(Step(step))
                accepted.append(step)
            assert posterior.n_averaged == len(accepted)
            assert_moments(posterior, accepted)
        assert group.attrs["checkpoint"] == 1
        posterior.close()
        group.flush()
        check_group = swag.load(group)
        assert check_group.n_averaged == len(accepted) == 7
        assert_moments(check_group, accepted)


@pytest.mark.parametrize("change", [{"collected": 5}, {"checkpointed": 9}, {"skipped": 3}])
def test_a_store_whose_counters_do_not_fit_is_refused(change: dict[str, Any]) -> None:
    group = pmarray.open_group("dram:")
    with swag.SWAG(Step(0), group) as posterior:
        for step in range(4):
            posterior.update_parameters(Step(step))
    group.attrs["swag.progress"] = {**group.attrs["swag.progress"], **change}
    for open_it in (swag.load, lambda g: swag.SWAG(Step(0), g, mode="a")):
        with pytest.raises(StoreError, match="damaged"):
            open_it(group)
    with swag.SWAG(Step(0), group, mode="w") as posterior:
        posterior.update_parameters(Step(3))
    assert swag.load(group).n_averaged == 1


def test_real_signals() -> None:
    """In a process of its own, so that one that hangs is told from one that is slow."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.swag.signals", "--seconds", "2"],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_buffers_are_those_of_the_iterates_in_the_moments() -> None:
    """Between two checkpoints, with ``max_rank=0``, an interrupt takes both or neither."""
    for line in range(250, 450):
        with place("dram") as location:
            posterior = swag.SWAG(Step(0), location, max_rank=0, checkpoint_every=9)
            posterior.update_parameters(Step(1))
            try:
                with interrupted_at(line):
                    posterior.update_parameters(Step(2))
            except KeyboardInterrupt:
                pass
            collected = posterior.n_averaged
            posterior.close()
            check(location, [1, 2][:collected], 0, 9)

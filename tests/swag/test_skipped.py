"""Weights that are no iterates, and stores and transactions that are somebody else's."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pmarray
import swag
from pmarray.errors import TransactionError
from swag.errors import NonFiniteError, StoreError, StoreExistsError, SwagWarning, WindowError
from tests.swag.test_interrupts import Step, assert_moments

# -- no iterates ----------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from(["good", "nan", "inf", "again"]), min_size=1, max_size=12),
    st.sampled_from([None, 0, 2]),
    st.integers(1, 4),
)
def test_the_posterior_is_that_of_the_finite_iterates_that_differ(
    kinds: list[str], max_rank: int | None, every: int
) -> None:
    group = pmarray.open_group("dram:")
    accepted: list[int] = []
    wrong = dict.fromkeys(("nan", "inf", "again"), 0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with swag.SWAG(Step(0), group, max_rank, checkpoint_every=every) as posterior:
            for step, kind in enumerate(kinds, 1):
                model = Step(step)
                if kind == "good" or (kind == "again" and not accepted):
                    accepted.append(step)
                elif kind == "again":
                    model = Step(accepted[-1])
                    wrong[kind] += 1
                else:
                    model.weight.data[1, 1] = float(kind)
                    wrong[kind] += 1
                posterior.update_parameters(model)
                assert posterior.n_averaged == len(accepted)
            assert_moments(posterior, accepted)
            if accepted:
                assert posterior.sample(2)["weight"].isfinite().all()
                assert posterior.window().mean()["bias"].isfinite().all()
            assert posterior.n_nonfinite == wrong["nan"] + wrong["inf"]
            assert posterior.n_repeated == wrong["again"]
    # Once each, of two kinds.
    assert len(told) == (posterior.n_nonfinite > 0) + (posterior.n_repeated > 0)
    assert all(issubclass(one.category, SwagWarning) for one in told)
    with swag.SWAG(Step(0), group, max_rank, mode="a", checkpoint_every=every) as again:
        assert again.n_averaged == len(accepted)
        assert (again.n_nonfinite, again.n_repeated) == (posterior.n_nonfinite, wrong["again"])


def test_training_that_diverged_can_be_stopped() -> None:
    posterior = swag.SWAG(Step(0), on_nonfinite="raise")
    posterior.update_parameters(Step(1))
    model = Step(2)
    model.bias.data[0] = torch.nan
    with pytest.raises(NonFiniteError, match="bias is not finite"):
        posterior.update_parameters(model)
    posterior.update_parameters(Step(3))
    assert_moments(posterior, [1, 3])
    with pytest.raises(ValueError, match="on_nonfinite"):
        swag.SWAG(Step(0), on_nonfinite="ignore")  # type: ignore[arg-type]


def test_finite_weights_whose_sum_is_not_are_collected() -> None:
    posterior = swag.SWAG(Step(0))
    posterior.update_parameters(Step(1))
    model = Step(2)
    model.weight.data.fill_(1e38)
    posterior.update_parameters(model)
    assert (posterior.n_averaged, posterior.n_nonfinite) == (2, 0)


def test_a_step_that_a_gradient_scaler_skips_is_no_iterate() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    posterior = swag.SWAG(model)
    for scale in (1.0, torch.inf, 1.0):
        optimizer.zero_grad()
        loss = scaler.scale(model(torch.ones(2, 3)).square().mean() * scale)
        torch.autograd.backward(loss)
        scaler.step(optimizer)
        scaler.update()
        if scale == 1:
            posterior.update_parameters(model)
        else:
            with pytest.warns(SwagWarning, match="gradient scaler"):
                posterior.update_parameters(model)
    assert (posterior.n_averaged, posterior.n_repeated) == (2, 1)


# -- what is there already ------------------------------------------------------------------------


def test_existing_iterates_are_refused_gone_on_with_or_replaced(location: str) -> None:
    def run(mode: Any, *steps: int, **options: Any) -> None:
        with swag.SWAG(Step(0), location, mode=mode, **options) as posterior:
            for step in steps:
                posterior.update_parameters(Step(step))

    run("w-")
    run("w-", 1, 2, max_rank=3)  # nothing was lost
    for _ in range(2):
        with pytest.raises(StoreExistsError, match='mode="a" to go on with it, or mode="w"'):
            run("w-", 9)
    run("a", 3, max_rank=3)
    with swag.load(location) as stored:
        assert_moments(stored, [1, 2, 3])
    with pytest.raises(StoreError, match="max_rank is None, not 3"):
        run("a", 9)
    with pmarray.open_group(location) as group:
        group.create("mine", 3)
    run("w", 5, 6)
    with swag.load(location) as stored:
        assert_moments(stored, [5, 6])
        assert stored.rank == 2
    with pmarray.open_group(location) as group:
        assert "mine" in group
    with pytest.raises(ValueError, match="mode"):
        run("r")


# -- windows of what goes on ----------------------------------------------------------------------


def test_a_window_of_a_ring_raises_once_it_was_overwritten() -> None:
    posterior = swag.SWAG(Step(0), max_rank=3, checkpoint_every=2)
    for step in range(1, 6):
        posterior.update_parameters(Step(step))
    live, other = posterior.window(rank=3), swag.load(posterior._store.group)
    expected = live.sample(2, generator=1)["weight"]
    other.mean()  # moments that are not at hand are worked out at the first use
    for step in range(6, 14):
        posterior.update_parameters(Step(step))
        for window in (live, other):
            if step < 8:  # the second checkpoint since gives them up
                torch.testing.assert_close(window.sample(2, generator=1)["weight"], expected)
            else:
                with pytest.raises(WindowError, match="overwritten"):
                    window.sample(2, generator=1)
    assert_moments(posterior, list(range(1, 14)))


def test_a_window_raises_once_collection_went_back() -> None:
    posterior = swag.SWAG(Step(0), checkpoint_every=4)
    for step in range(1, 7):
        posterior.update_parameters(Step(step))
    window, used = posterior.window(start=3), posterior.window(start=1)
    used.mean()
    assert posterior.rewind() == 4
    for step in (8, 9):
        posterior.update_parameters(Step(step))
    with pytest.raises(WindowError, match="went back"):
        window.mean()
    with pytest.raises(WindowError, match="went back"):
        used.sample()
    assert_moments(posterior, [1, 2, 3, 4, 8, 9])


# -- transactions of the program's own ------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["dram", "memmap", "zarr"])
@pytest.mark.parametrize("max_rank", [None, 2])
@pytest.mark.parametrize("outcome", ["commits", "rolls back"])
def test_a_transaction_of_the_programs_is_joined(
    scheme: str, max_rank: int | None, outcome: str, scratch: Any
) -> None:
    with pmarray.open_group(f"{scheme}:{scratch}" if scheme != "dram" else "dram:") as group:
        posterior = swag.SWAG(Step(0), group, max_rank, checkpoint_every=2)
        posterior.update_parameters(Step(1))
        with group.transaction():
            group.attrs["mine"] = 1
        try:
            with group.transaction():
                for step in (2, 3):
                    group.attrs["mine"] = step
                    posterior.update_parameters(Step(step))
                    assert posterior.n_averaged == step
                if outcome == "rolls back":
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        expected = [1, 2, 3] if outcome == "commits" else [1]
        assert group.attrs["mine"] == len(expected)
        assert posterior.n_averaged == len(expected)
        assert_moments(posterior, expected)
        for step in (4, 5, 6):
            posterior.update_parameters(Step(step))
        assert_moments(posterior, [*expected, 4, 5, 6])
        posterior.close()
        assert_moments(swag.load(group), [*expected, 4, 5, 6])


def test_a_transaction_of_another_thread_is_waited_for_and_named() -> None:
    group = pmarray.open_group("dram:")
    posterior = swag.SWAG(Step(0), group)
    begun, go = threading.Event(), threading.Event()

    def other() -> None:
        with group.transaction():
            begun.set()
            go.wait(30)
            group.attrs["other"] = 1

    thread = threading.Thread(target=other, name="somebody")
    thread.start()
    begun.wait(30)
    with pytest.raises(TransactionError, match="somebody"):
        group.transaction().__enter__()
    threading.Timer(0.1, go.set).start()
    posterior.update_parameters(Step(1))
    assert group.attrs["other"] == 1
    thread.join()
    assert_moments(posterior, [1])


def test_transactions_of_a_thread_beside_collection() -> None:
    group = pmarray.open_group("dram:")
    posterior = swag.SWAG(Step(0), group, checkpoint_every=3)
    mine = group.create("mine", (1,), "int64")
    failures: list[Exception] = []
    done = 0

    def work() -> None:
        nonlocal done
        while done < 30:
            try:
                with group.transaction():
                    mine[0] = done + 1
                done += 1
            except TransactionError as error:  # it is ours that is open, for an instant
                failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    steps = 0
    while thread.is_alive() and steps < 200:
        steps += 1
        posterior.update_parameters(Step(steps))
    thread.join(60)
    assert mine[0] == 30
    assert_moments(posterior, list(range(1, steps + 1)))
    np.testing.assert_array_equal(group["trajectory"].shape, (19, steps))

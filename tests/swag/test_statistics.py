"""What is kept beside each iterate: as if it had been taken from the trajectory, and never more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pmarray
import swag
from swag import _projections
from swag._statistics import NAME
from swag.gradients import Gradients
from swag.pruning import prune

STEPS, EVERY = 120, 25


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of a few hundred weights are large ones."""
    monkeypatch.setattr(_projections, "WEIGHTS", 16)
    monkeypatch.setattr("swag._collecting.WEIGHTS", 1)


def network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(300, 1)


def train(
    location: str,
    steps: range = range(STEPS),
    *,
    model: nn.Module | None = None,
    attached: bool = True,
    gradients: bool = False,
    loss: bool = False,
    **options: Any,
) -> list[float]:
    """Collect every step of a training, in which the first iterates are far off."""
    model = model or network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002)
    losses = []
    with swag.SWAG(model, location, checkpoint_every=EVERY, **options) as posterior:
        if attached:
            posterior.attach(optimizer, gradients=gradients)
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            inputs = torch.randn(20, 300, generator=generator)
            optimizer.zero_grad()
            found = (model(inputs) - torch.randn(20, 1, generator=generator)).square().mean()
            found.backward()
            optimizer.step()
            losses.append(found.item())
            posterior.update_parameters(model, loss=found if loss else None)
    return losses


def rows(location: str) -> np.ndarray[Any, Any]:
    with pmarray.open_group(location, mode="r") as group:
        return np.array(group[NAME][:]) if NAME in group else np.empty((71, 0))


def test_projections_are_those_of_the_trajectory_to_the_bit(tmp_path: Path) -> None:
    beside, alone = (f"memmap:{tmp_path}/{name}" for name in ("beside", "alone"))
    train(beside)
    train(alone, attached=False)
    assert rows(alone).shape == (71, 0)  # nothing was known, and there is no array
    taken = rows(beside)[0]
    assert taken.shape[0] >= STEPS - 1
    assert (taken == 1).mean() > 0.9  # but the first and those of checkpoints
    with swag.load(beside) as one, swag.load(alone) as other:
        found, expected = one.suggest_burn_in(), other.suggest_burn_in()
    assert found.start == expected.start
    np.testing.assert_array_equal(found.projections, expected.projections)
    np.testing.assert_allclose(found.squared_distance, expected.squared_distance, rtol=1e-12)


def test_what_is_recorded_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = f"memmap:{tmp_path}/store"
    train(location)
    read: list[int] = []
    along = _projections.Projections.along

    def counted(self: Any, columns: Any, **options: Any) -> Any:
        read.extend(columns.iterates)
        return along(self, columns, **options)

    monkeypatch.setattr(_projections.Projections, "along", counted)
    with swag.load(location) as posterior:
        posterior.suggest_burn_in()
    assert read == [0, *range(EVERY - 1, STEPS, EVERY)]


@pytest.mark.parametrize("max_rank", [None, 90])
def test_loss_and_gradients_are_tested_where_they_were_recorded(
    tmp_path: Path, max_rank: int | None
) -> None:
    location = f"memmap:{tmp_path}/store"
    losses = train(location, loss=True, gradients=True, max_rank=max_rank)
    with swag.load(location) as posterior:
        found = posterior.suggest_burn_in()
        given = posterior.suggest_burn_in(loss=losses[-len(found.iterates) :])
    assert all(check.holds is not None for check in found.checks)
    assert [c.value for c in found.checks] == [c.value for c in given.checks]

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002)
    with Gradients(optimizer) as expected:
        for step in range(5):
            generator = torch.Generator().manual_seed(step)
            inputs = torch.randn(20, 300, generator=generator)
            optimizer.zero_grad()
            (model(inputs) - torch.randn(20, 1, generator=generator)).square().mean().backward()
            optimizer.step()
    np.testing.assert_allclose(rows(location)[67:, :5].T, expected.values, rtol=1e-6)


def test_an_iterate_without_a_loss_leaves_the_test_out(tmp_path: Path) -> None:
    location = f"memmap:{tmp_path}/store"
    train(location, range(60), loss=True)
    train(location, range(60, STEPS), mode="a")
    with swag.load(location) as posterior:
        (check,) = (c for c in posterior.suggest_burn_in().checks if "loss" in c.name)
    assert check.holds is None


def test_going_back_forgets_them_and_going_on_adds_them(tmp_path: Path) -> None:
    location = f"memmap:{tmp_path}/store"
    losses = train(location, loss=True)
    with swag.SWAG(network(), location, mode="a", checkpoint_every=EVERY) as posterior:
        posterior.rewind(40)
    assert rows(location).shape == (71, 40)
    model = network()
    with swag.load(location) as posterior:
        model.load_state_dict(posterior.iterate(39), strict=False)
    train(location, range(40, 80), model=model, mode="a")  # without their loss
    found = rows(location)
    np.testing.assert_array_equal(found[66, :40], np.array(losses[:40]))
    assert not found[66, 40:].any()
    assert set(found[0, 40:]) <= {0.0, 1.0}


def test_an_iterate_that_was_not_collected_has_none(tmp_path: Path) -> None:
    def refuse(_: Any) -> None:
        raise RuntimeError("the disk of the training state is full")

    model = network()
    location = f"memmap:{tmp_path}/store"
    posterior = swag.SWAG(model, location, checkpoint_every=3, on_checkpoint=refuse)
    for step in range(3):
        nn.init.constant_(model.weight, step + 1)
        if step < 2:
            posterior.update_parameters(model, loss=step)
        else:
            with pytest.raises(RuntimeError, match="disk"):
                posterior.update_parameters(model, loss=step)
    assert posterior._store.group[NAME].shape == (71, 2)
    nn.init.constant_(model.weight, torch.nan)
    with pytest.warns(swag.errors.SwagWarning):
        posterior.update_parameters(model, loss=2)
    assert posterior._store.group[NAME].shape == (71, posterior.n_averaged) == (71, 2)
    with pytest.raises(RuntimeError, match="disk"):
        posterior.close()


@pytest.mark.parametrize("start", [0, 6])
def test_pruning_keeps_those_of_the_iterates_that_remain(tmp_path: Path, start: int) -> None:
    location = f"memmap:{tmp_path}/store"
    losses = train(location, range(200), loss=True)
    kept = prune(location, start=start, every=2)
    found = rows(location)
    assert found.shape == (71, kept)
    np.testing.assert_array_equal(found[66], np.array(losses[start::2]))
    with swag.load(location) as posterior:
        beside = posterior.suggest_burn_in()
        expected = _projections.Projections(301).along(posterior._store.columns(range(kept)))
    np.testing.assert_allclose(beside.projections, expected.projections, atol=1e-6)
    np.testing.assert_allclose(beside.squared_distance, expected.squared_distance, rtol=1e-9)
    assert bool(found[0, :].astype(int).max() & 1) == (start == 0)


def test_gradients_of_another_optimizer_say_nothing() -> None:
    model = network()
    posterior = swag.SWAG(model)
    with pytest.raises(TypeError, match="SGD"):
        posterior.attach(torch.optim.Adam(model.parameters()), gradients=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    posterior.attach(optimizer, gradients=True)
    posterior.close()
    assert not optimizer._optimizer_step_post_hooks

"""Moments of a ring: on a thread, for which nobody waits, or at once where no core is to spare."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch import nn

import swag
import swag._attached
import swag._moments
import swag.errors
from swag._attached import has_spare_core
from tests.sampling import examples
from tests.swag.test_collect import flat, in_a_row, network, wandering

PATIENCE_S = 20.0


class Gate:
    """Holds up whoever takes moments."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        self._accumulate = swag._moments.accumulate

    def accumulate(self, *arguments: Any, **others: Any) -> None:
        self.reached.set()
        assert self.open.wait(PATIENCE_S)
        self._accumulate(*arguments, **others)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(swag._moments, "accumulate", gate.accumulate)
    yield gate
    gate.open.set()


def right(posterior: swag.SWAG, models: Sequence[nn.Module]) -> None:
    """Compare mean and variance with those of the models."""
    iterates = np.stack([flat(model) for model in models])
    assert_allclose(in_a_row(posterior.mean()), iterates.mean(0), rtol=0, atol=1e-6)
    assert_allclose(in_a_row(posterior.variance()), iterates.var(0), rtol=1e-4, atol=1e-9)


def test_training_does_not_wait_for_moments(gate: Gate, location: str) -> None:
    models = wandering(network(), 30)
    with swag.SWAG(models[0], store=location, max_rank=4, checkpoint_every=100) as posterior:
        for model in models[:12]:
            posterior.update_parameters(model)
        assert gate.reached.wait(PATIENCE_S)
        for model in models[12:]:
            posterior.update_parameters(model)
        assert not gate.open.is_set()
        gate.open.set()
        right(posterior, models)


def test_a_checkpoint_waits_for_them(gate: Gate, location: str) -> None:
    models = wandering(network(), 12)
    with swag.SWAG(models[0], store=location, max_rank=4, checkpoint_every=12) as posterior:
        for model in models[:11]:
            posterior.update_parameters(model)
        assert gate.reached.wait(PATIENCE_S)
        last = threading.Thread(target=posterior.update_parameters, args=(models[11],))
        last.start()
        last.join(0.2)
        assert last.is_alive()
        gate.open.set()
        last.join(PATIENCE_S)
        assert not last.is_alive()
        right(posterior, models)


def test_what_was_rolled_back_meanwhile_is_in_no_moment(gate: Gate) -> None:
    models = wandering(network(), 40)
    with swag.SWAG(models[0], max_rank=4, checkpoint_every=100) as posterior:
        for model in models[:5]:
            posterior.update_parameters(model)
        with suppress(KeyError), posterior.group.transaction():
            for model in models[5:20]:
                posterior.update_parameters(model)
            assert gate.reached.wait(PATIENCE_S)
            threading.Timer(0.2, gate.open.set).start()
            raise KeyError
        for model in models[20:]:
            posterior.update_parameters(model)
        right(posterior, [*models[:5], *models[20:]])


@examples(1)
@given(st.data())
def test_any_order_of_what_ends_and_goes_on(data: st.DataObject) -> None:
    """Collecting, checkpoints, rollbacks, rewinding, reading and reopening, in any order."""
    every = data.draw(st.integers(1, 9), "checkpoint_every")
    spare = data.draw(st.booleans(), "a core to spare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(swag._attached, "has_spare_core", lambda: spare)
        in_any_order(data, every)


def in_any_order(data: st.DataObject, every: int) -> None:
    location = f"dram:{uuid.uuid4().hex}"
    models = iter(wandering(network(), 120, seed=every))
    first = network()
    posterior = swag.SWAG(first, store=location, max_rank=3, checkpoint_every=every)
    kept: list[nn.Module] = []
    for step in data.draw(
        st.lists(
            st.sampled_from(["collect", "roll back", "flush", "mean", "rewind", "reopen"]),
            max_size=7,
        ),
        "steps",
    ):
        some = [next(models) for _ in range(data.draw(st.integers(1, 6), "how many"))]
        match step:
            case "collect":
                for model in some:
                    posterior.update_parameters(model)
                kept += some
            case "roll back":
                with suppress(KeyError), posterior.group.transaction():
                    for model in some:
                        posterior.update_parameters(model)
                    raise KeyError
            case "flush":
                posterior.flush()
            case "mean":
                if kept:
                    right(posterior, kept)
            case "rewind":
                kept = kept[: posterior.rewind()]
            case "reopen":
                posterior.close()
                posterior = swag.SWAG(
                    first, store=location, max_rank=3, checkpoint_every=every, mode="a"
                )
        if len(kept) > 100:
            break
    assert posterior.n_averaged == len(kept)
    if kept:
        right(posterior, kept)
    posterior.close()


def test_a_core_is_to_spare_where_training_has_not_all_of_them() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4096)
        assert not has_spare_core()
        torch.set_num_threads(1)
        assert has_spare_core() == (len(os.sched_getaffinity(0)) > 1)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("long", [False, True])
def test_without_one_an_iterate_is_collected_at_once_unless_it_is_large(
    monkeypatch: pytest.MonkeyPatch, long: bool
) -> None:
    monkeypatch.setattr(swag._attached, "has_spare_core", lambda: False)
    monkeypatch.setattr(swag._attached, "_LONG_COPY_BYTES", 64 if long else 1 << 40)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with swag.SWAG(model) as posterior:
        posterior.attach(optimizer)
        for count in range(1, 4):
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
            posterior.update_parameters(model)
            if long and count > 1:
                assert posterior._behind is not None
            else:
                assert posterior._behind is None
                assert posterior.stats().collected == count


def test_without_one_training_waits_for_moments_of_several(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    monkeypatch.setattr(swag._attached, "has_spare_core", lambda: False)
    gate.open.set()
    models, missing = wandering(network(), 30), set()
    with swag.SWAG(models[0], store=location, max_rank=9, checkpoint_every=100) as posterior:
        for count, model in enumerate(models, 1):
            gate.reached.clear()
            posterior.update_parameters(model)
            taken = posterior._summing.moments.count
            assert gate.reached.is_set() == (taken == count)
            missing.add(count - taken)
        assert missing == set(range(8))
        right(posterior, models)


def test_what_came_to_be_taken_on_the_thread_is_waited_for_first(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = wandering(network(), 20)
    with swag.SWAG(models[0], max_rank=4, checkpoint_every=100) as posterior:
        for model in models[:12]:
            posterior.update_parameters(model)
        assert gate.reached.wait(PATIENCE_S)
        monkeypatch.setattr(swag._attached, "has_spare_core", lambda: False)
        threading.Timer(0.2, gate.open.set).start()
        posterior.update_parameters(models[12])
        assert gate.open.is_set()
        assert posterior._summing.moments.count == 8
        for model in models[13:]:
            posterior.update_parameters(model)
        right(posterior, models)


def test_moments_that_cannot_be_taken_are_taken_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swag._attached, "has_spare_core", lambda: False)
    accumulate, fails = swag._moments.accumulate, True

    def failing(*arguments: Any, **others: Any) -> None:
        accumulate(*arguments, **others)
        if fails:
            raise swag.errors.StoreError("there is no memory")

    monkeypatch.setattr(swag._moments, "accumulate", failing)
    models = wandering(network(), 12)
    with swag.SWAG(models[0], max_rank=4, checkpoint_every=100) as posterior:
        for step, model in enumerate(models):
            fails = 3 <= step < 6
            posterior.update_parameters(model)
        right(posterior, models)

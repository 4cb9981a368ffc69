"""One thread collects, and others ask what was collected, or collect as well."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest
import torch

import swag
from tests.swag.test_collect import network, wandering

PATIENCE_S = 60.0
STEPS = 40


def beside(work: Callable[[], object], *others: Callable[[], object]) -> None:
    """Do something while other threads do something else, again and again; raise what any does."""
    errors: list[BaseException] = []
    over = threading.Event()

    def again(other: Callable[[], object]) -> None:
        try:
            while not over.is_set():
                other()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=again, args=(other,)) for other in others]
    for thread in threads:
        thread.start()
    try:
        work()
    finally:
        over.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("max_rank", [None, 3, 0])
def test_others_ask_while_one_collects(location: str, max_rank: int | None, attached: bool) -> None:
    """As a page does that shows how training gets on."""
    model, own = network(), threading.local()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs, counts = torch.randn(8, 2, 3), []
    with swag.SWAG(model, location, max_rank, checkpoint_every=7) as posterior:
        if attached:
            posterior.attach(optimizer)

        def train() -> None:
            for step in range(STEPS):
                optimizer.zero_grad()
                (model(inputs[step % 8]) - step).square().mean().backward()
                optimizer.step()
                posterior.update_parameters(model)

        def look() -> None:
            counts.append(posterior.n_averaged)
            posterior.stats()
            if counts[-1] > 1:
                posterior.mean()
                own.model = getattr(own, "model", None) or network()
                posterior.predict_regression(own.model, inputs[0], samples=2)

        beside(train, look, look, lambda: posterior.n_nonfinite)
        assert posterior.n_averaged == STEPS
    with swag.load(location) as stored:
        assert stored.n_averaged == STEPS


def test_several_collect_into_one(location: str) -> None:
    """The iterates of all of them are there; in which order, nobody says."""
    models = wandering(network(), 60)
    with swag.SWAG(models[0], location, checkpoint_every=7) as posterior:
        rest = iter(models[3:])
        turn = threading.Lock()

        def collect() -> None:
            with turn:
                model = next(rest, None)
            if model is not None:
                posterior.update_parameters(model)

        def some() -> None:
            for model in models[:3]:
                posterior.update_parameters(model)
            while posterior.n_averaged < len(models):
                collect()

        beside(some, collect, collect, posterior.flush)
        assert posterior.n_averaged == len(models)
        found = {float(posterior.iterate(i)["0.weight"].sum()) for i in range(len(models))}
        assert found == {float(one.get_parameter("0.weight").detach().sum()) for one in models}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_does_not_wait_for_a_thread_of_its_parent(scratch: str) -> None:
    model = network()
    with swag.SWAG(model, f"memmap:{scratch}/posterior") as posterior:
        posterior.update_parameters(model)
        held, over = threading.Event(), threading.Event()

        def hold() -> None:
            with posterior._turn:
                held.set()
                over.wait(PATIENCE_S)

        thread = threading.Thread(target=hold)
        thread.start()
        assert held.wait(PATIENCE_S)
        child = os.fork()
        if not child:
            code = 1
            try:
                posterior.update_parameters(model)
            except swag.errors.SwagError:
                code = 1
            except Exception as error:
                code = 0 if "forked" in str(error) else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        over.set()
        thread.join(PATIENCE_S)
        assert os.waitstatus_to_exitcode(status) == 0

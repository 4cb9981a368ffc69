"""Whoever reads a posterior beside its training has the iterates that were there, and goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
import torch

import pmarray
import swag
from pmarray.errors import SnapshotExpiredError
from swag.errors import WindowError
from swag.pruning import prune
from tests.swag.nets import facts, same
from tests.swag.test_collect import network, wandering

COUNT = 90
MODELS = wandering(network(), 60)


class Training:
    """A training that commits on and on."""

    def __init__(self, place: Path, max_rank: int | None) -> None:
        self.url = f"memmap:{place / 'posterior'}"
        self.posterior = swag.SWAG(MODELS[0], store=self.url, checkpoint_every=7, max_rank=max_rank)
        self.count = 0

    def go_on(self, count: int) -> None:
        for _ in range(count):
            self.posterior.update_parameters(MODELS[self.count % len(MODELS)])
            self.count += 1
        self.posterior.flush()

    def witness(self) -> pmarray.Group:
        return pmarray.open_group(self.url, mode="r")

    def outrun(self, handle: pmarray.Group) -> None:
        """Go on until what another handle reads is gone."""
        for _ in range(10_000):
            self.go_on(1)
            try:
                handle["anchor"][:]
            except SnapshotExpiredError:
                return
        raise AssertionError("nothing expires")


@pytest.fixture
def training(scratch: Path, request: pytest.FixtureRequest) -> Iterator[Training]:
    training = Training(scratch, getattr(request, "param", None))
    training.go_on(COUNT)
    yield training
    training.posterior.close()


def alone(count: int, max_rank: int | None = None) -> swag.SWAG:
    posterior = swag.SWAG(MODELS[0], checkpoint_every=7, max_rank=max_rank)
    for i in range(count):
        posterior.update_parameters(MODELS[i % len(MODELS)])
    return posterior


def equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("first", ["moments", "draws", "iterate", "window", "burn-in"])
def test_a_reader_goes_on_where_its_commit_is_gone(training: Training, first: str) -> None:
    with (
        swag.load(training.url) as posterior,
        training.witness() as witness,
    ):
        training.outrun(witness)
        expected = alone(COUNT)
        if first == "moments":
            assert equal(posterior.variance(), expected.variance())
        elif first == "draws":
            assert equal(posterior.sample(3, generator=1), expected.sample(3, generator=1))
        elif first == "iterate":
            assert equal(posterior.iterate(-1), expected.iterate(-1))
        elif first == "window":
            assert same(facts(posterior.window(3, 2)), facts(expected.window(3, 2)))
        else:
            found = posterior.suggest_burn_in()
            assert found.start == expected.suggest_burn_in().start
        assert same(facts(posterior), facts(expected))


def test_a_reading_of_many_columns_goes_on_in_its_middle(training: Training) -> None:
    with (
        swag.load(training.url) as posterior,
        training.witness() as witness,
    ):
        columns = posterior._store.columns(range(40))
        found: list[tuple[slice, np.ndarray]] = []
        for _, which, values in columns.weights_of([(0, 5), (5, 9)], 1):
            if len(found) in (7, 50):
                training.outrun(witness)
                witness.refresh()
            found.append((which, np.array(values)))
        assert len(found) == 80
        vectors = [torch.nn.utils.parameters_to_vector(m.parameters()) for m in MODELS[:40]]
        for i, (which, values) in enumerate(found):
            start, stop = ((0, 5), (5, 9))[i // 40]
            assert which == slice(i % 40, i % 40 + 1)
            assert np.array_equal(values[0], vectors[i % 40][start:stop].detach().numpy())


@pytest.mark.parametrize("training", [2], indirect=True)
def test_a_ring_that_has_gone_round_says_so(training: Training) -> None:
    with (
        swag.load(training.url) as posterior,
        training.witness() as witness,
    ):
        training.outrun(witness)
        with pytest.raises(WindowError, match="was overwritten since"):
            posterior.sample(1)
    with swag.load(training.url) as posterior:
        assert same(facts(posterior), facts(alone(training.count, max_rank=2)))


@pytest.mark.parametrize("how", ["prune", "rewind"])
def test_iterates_that_are_others_by_now_are_refused(training: Training, how: str) -> None:
    """Their numbers are the same, and there are as many: only the progress can tell."""
    with (
        swag.load(training.url) as posterior,
        training.witness() as witness,
    ):
        if how == "prune":
            training.posterior.close()
            prune(training.url, start=1)
            training.posterior = swag.SWAG(
                MODELS[0], store=training.url, mode="a", checkpoint_every=7
            )
        else:
            training.posterior.rewind(to=20)
        training.go_on(30)
        training.outrun(witness)
        with pytest.raises(WindowError, match="went back"):
            posterior.sample(1)
        with pytest.raises(WindowError, match="went back"):
            posterior.iterate(0)


def test_a_group_of_the_program_is_left_where_it_is(training: Training) -> None:
    with training.witness() as group:
        posterior = swag.load(group)
        training.outrun(group)
        with pytest.raises(SnapshotExpiredError, match="refresh"):
            posterior.sample(1)
        group.refresh()
        assert same(facts(posterior), facts(alone(COUNT)))


def test_threads_draw_from_one_posterior_beside_training(training: Training) -> None:
    expected, over = alone(COUNT).sample(2, generator=3), threading.Event()

    def draw() -> int:
        count = 0
        with swag.load(training.url) as alone_here:
            while not over.is_set():
                for posterior in (shared, alone_here):
                    found = posterior.window().sample(2, generator=3)
                    assert equal(found, expected)
                    count += 1
        return count

    with (
        swag.load(training.url) as shared,
        training.witness() as witness,
        ThreadPoolExecutor(3) as threads,
    ):
        try:
            drawing = [threads.submit(draw) for _ in range(3)]
            wait(drawing, timeout=0.1)
            for _ in range(8):
                training.outrun(witness)
                witness.refresh()
        finally:
            over.set()
        assert all(one.result() for one in drawing)

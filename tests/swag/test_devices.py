"""Iterates that a device brings home beside its computations; on a GPU, and where there is none."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swag
from swag._behind import Brought
from swag.errors import SwagWarning
from tests.swag.devices import Late, late_device
from tests.swag.test_attach import (
    CHANGES,
    Train,
    accumulating,
    closures,
    columns,
    flat,
    network,
    not_every_step,
    plain,
    several,
)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.fixture
def late() -> Iterator[list[Late]]:
    with late_device() as made:
        yield made


class Normalised(nn.Module):
    """Buffers that every forward pass changes, weights of two dtypes, and some that are shared."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 2100)
        self.norm = nn.BatchNorm1d(2100)
        self.scale = nn.Parameter(torch.ones(2100, dtype=torch.float64))
        self.last = nn.Linear(2100, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.norm(self.first(x)).tanh() * self.scale.to(x.dtype))
        return found


def normalised() -> Normalised:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Normalised()


def train(
    model: nn.Module,
    posterior: swag.SWAG | None,
    *,
    steps: int = 9,
    attached: bool = True,
    device: str = "cpu",
    quiet: Any = None,
) -> list[tuple[Tensor, Tensor, float]]:
    """Train; return weights, running means and losses as they were at each call."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(1)
    if posterior is not None and attached:
        posterior.attach(optimizer)
    seen = []
    for number in range(steps):
        x = torch.randn(16, 6, generator=generator).to(device)
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        torch.autograd.backward(loss)
        with quiet(number) if quiet else _nothing():
            optimizer.step()
            if posterior is not None:
                posterior.update_parameters(model, loss=loss)
        mean = model.get_buffer("norm.running_mean").detach().cpu().clone()
        seen.append((flat(model).cpu(), mean, float(loss.detach())))
        if posterior is not None:
            with torch.no_grad():
                loss.fill_(1e9)  # somebody goes on with it
    return seen


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("how", "max_rank"),
    [(plain, 3), (several, None), (closures, None), (accumulating, 3), (not_every_step, None)],
)
def test_training_is_the_same_and_so_are_the_iterates(
    scratch: Path, late: list[Late], how: Train, max_rank: int | None
) -> None:
    seen: list[Tensor] = []
    model = network()
    torch.manual_seed(5)  # of dropout
    how(model, lambda _: None, lambda: seen.append(flat(model)))
    end = flat(model)
    model = network()
    torch.manual_seed(5)
    location = f"memmap:{scratch}"
    with swag.SWAG(model, location, max_rank, checkpoint_every=5) as posterior:
        how(model, posterior.attach, lambda: posterior.update_parameters(model))
        assert posterior.n_averaged == 12
        iterates = [
            torch.cat([w.reshape(-1) for w in posterior.iterate(i).values()])
            for i in range(12 - (max_rank or 12), 12)
        ]
    assert torch.equal(flat(model), end)
    assert torch.equal(torch.stack(iterates), torch.stack(seen)[-len(iterates) :])
    (device,) = late
    assert len(device.events) == 12 - 1 - 2, "all but the first, and two checkpoints"
    assert {id(event) for event in device.held} == {id(event) for event in device.events[:-1]}


def test_buffers_and_losses_are_those_of_the_call(scratch: Path, late: list[Late]) -> None:
    """The next forward pass changes them before the next step."""
    model = normalised()
    alone = train(normalised(), None)
    with swag.SWAG(model, f"memmap:{scratch}", checkpoint_every=100) as posterior:
        seen = train(model, posterior)
        assert posterior.n_averaged == 9
        buffers = posterior._last_buffers().tensors
        assert torch.equal(buffers["norm.running_mean"], seen[-1][1])
        assert int(buffers["norm.num_batches_tracked"]) == 9
    assert torch.equal(columns(f"memmap:{scratch}"), torch.stack([one[0] for one in seen]))
    with swag.load(f"memmap:{scratch}") as loaded:
        statistics = loaded._store.statistics
        assert statistics is not None
        known = statistics.of(range(9)).loss
        assert known is not None
        assert known.tolist() == [one[2] for one in alone]
    for one, other in zip(seen, alone, strict=True):
        assert torch.equal(one[0], other[0]), "collecting changes nothing"
    assert len(late[0].events) == 8


def test_the_call_waits_for_no_copy_and_the_step_for_one(scratch: Path, late: list[Late]) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with swag.SWAG(model, f"memmap:{scratch}") as posterior:
        posterior.attach(optimizer)
        for number in range(4):
            optimizer.zero_grad()
            model(torch.ones(2, 6)).square().mean().backward()
            if number > 1:
                assert not late[0].events[-1].reached.is_set()
            optimizer.step()
            if number > 1:
                assert late[0].events[-1].reached.is_set()
            posterior.update_parameters(model)
        assert isinstance(posterior._behind, Brought)


def test_one_stretch_of_memory_is_used_again(scratch: Path, late: list[Late]) -> None:
    model = normalised()
    with swag.SWAG(model, f"memmap:{scratch}", checkpoint_every=100) as posterior:
        train(model, posterior)
    nbytes = sum(p.nbytes for p in model.parameters())
    large = [memory for memory in late[0].memory if memory.nbytes >= nbytes]
    assert len(large) == 1
    assert large[0].nbytes < nbytes + 64 * 8


@pytest.mark.parametrize("how", CHANGES)
def test_weights_that_change_before_the_step(scratch: Path, late: list[Late], how: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = []
    with swag.SWAG(model, f"memmap:{scratch}") as posterior:
        posterior.attach(optimizer)

        def step() -> None:
            optimizer.zero_grad()
            model(torch.ones(2, 6)).square().mean().backward()
            optimizer.step()
            posterior.update_parameters(model)

        for _ in range(3):
            step()
            kept.append(flat(model))
        posterior.wait()  # as one should
        CHANGES[how](model.get_parameter("3.weight"))
        step()
        CHANGES[how](model.get_parameter("3.weight"))  # as one should not
        with pytest.warns(SwagWarning, match="call wait"):
            step()
        kept.append(flat(model))
        step()
        kept.append(flat(model))
        assert posterior._behind is None
    assert torch.equal(columns(f"memmap:{scratch}"), torch.stack(kept))


def test_other_memory_before_the_step(scratch: Path, late: list[Late]) -> None:
    """An average that is swapped in leaves the iterate's memory alone."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = []
    with swag.SWAG(model, f"memmap:{scratch}") as posterior:
        posterior.attach(optimizer)
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.ones(2, 6)).square().mean().backward()
            optimizer.step()
            posterior.update_parameters(model)
            kept.append(flat(model))
            for parameter in model.parameters():
                parameter.data = parameter.data * 0.5
        assert posterior.n_averaged == 4
    assert torch.equal(columns(f"memmap:{scratch}"), torch.stack(kept))


def test_weights_that_are_let_go_are_copied_all_the_same(scratch: Path, late: list[Late]) -> None:
    """Their memory is somebody else's as soon as nobody has it any more."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with swag.SWAG(model, f"memmap:{scratch}") as posterior:
        posterior.attach(optimizer)
        for _ in range(2):
            model(torch.ones(2, 6)).square().mean().backward()
            optimizer.step()
            posterior.update_parameters(model)
        expected = flat(model)
        posterior.wait = lambda: None  # type: ignore[method-assign]
        del model, optimizer
        gc.collect()
        assert posterior.n_averaged == 2
    assert torch.equal(columns(f"memmap:{scratch}")[1], expected)


@needs_gpu
@pytest.mark.parametrize("max_rank", [None, 3])
def test_a_gpu_is_never_waited_for(scratch: Path, max_rank: int | None) -> None:
    """But at the first iterate, and at checkpoints; and the iterates are the same bits."""

    @contextmanager
    def quiet(number: int) -> Iterator[None]:
        torch.cuda.set_sync_debug_mode("error" if number > 0 and number % 5 != 4 else "default")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    ends = []
    for attached in (False, True):
        model = normalised().to("cuda")
        location = f"memmap:{scratch / str(attached)}"
        with swag.SWAG(model, location, max_rank, checkpoint_every=5) as posterior:
            seen = train(
                model, posterior, steps=14, attached=attached, device="cuda",
                quiet=quiet if attached else None,
            )  # fmt: skip
            assert posterior.n_averaged == 14
            last = torch.cat([w.reshape(-1) for w in posterior.iterate(-1).values()])
            assert torch.equal(last, seen[-1][0])
            ends.append((flat(model).cpu(), posterior.mean(), posterior.variance()))
        if max_rank is None:
            assert torch.equal(columns(location), torch.stack([one[0] for one in seen]))
    assert torch.equal(ends[0][0], ends[1][0])
    for one, other in zip(ends[0][1:], ends[1][1:], strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())


@needs_gpu
@pytest.mark.parametrize("how", ["in place", "through .data"])
def test_weights_on_a_gpu_that_change_before_the_step(scratch: Path, how: str) -> None:
    model = network().to("cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with swag.SWAG(model, f"memmap:{scratch}") as posterior:
        posterior.attach(optimizer)
        for number in range(4):
            optimizer.zero_grad()
            model(torch.ones(2, 6, device="cuda")).square().mean().backward()
            optimizer.step()
            if number == 3:
                with pytest.warns(SwagWarning, match="call wait"):
                    posterior.update_parameters(model)
            else:
                posterior.update_parameters(model)
            if number == 2:
                # The device is busy, so that the copy comes first or last, and not at once.
                torch.cuda._sleep(50_000_000)  # type: ignore[no-untyped-call]
                CHANGES[how](model.get_parameter("3.weight"))
        assert posterior.n_averaged == 3

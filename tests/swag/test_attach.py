"""Copied behind training: the same iterates, the same training, and nothing that is half of one."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pmarray
import swag
from swag.errors import NonFiniteError, SwagWarning


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The copying thread waits for the event, or half a second, before it copies."""
    going = threading.Event()
    collect = swag.SWAG._collect_behind

    def late(self: Any, *arguments: Any) -> None:
        going.wait(0.2)
        collect(self, *arguments)

    monkeypatch.setattr(swag.SWAG, "_collect_behind", late)
    yield going
    going.set()


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 50), nn.Tanh(), nn.Dropout(0.1), nn.Linear(50, 2))


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])


def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
    result: Tensor = (model(torch.randn(8, 6, generator=generator)) - 1).square().mean()
    return result


def descend(model: nn.Module, generator: torch.Generator) -> None:
    torch.autograd.backward(loss(model, generator))


def columns(location: str) -> Tensor:
    with swag.load(location) as posterior:
        stored = posterior._store.rows
        assert stored is not None
        return torch.from_numpy(np.asarray(stored[:, :])).T[: posterior.n_averaged]


Train = Callable[[nn.Module, Callable[[Any], object], Callable[[], object]], None]


def plain(model: nn.Module, attach: Callable[[Any], object], step: Callable[[], object]) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    attach(optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(12):
        optimizer.zero_grad()
        descend(model, generator)
        optimizer.step()
        step()


def several(model: nn.Module, attach: Callable[[Any], object], step: Callable[[], object]) -> None:
    halves = [list(part.parameters()) for part in (model[0], model[3])]  # type: ignore[index]
    optimizers = [torch.optim.Adam(halves[0], lr=0.01), torch.optim.SGD(halves[1], lr=0.1)]
    for optimizer in optimizers:
        attach(optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(12):
        for optimizer in optimizers:
            optimizer.zero_grad()
            descend(model, generator)
            optimizer.step()
        step()


def closures(model: nn.Module, attach: Callable[[Any], object], step: Callable[[], object]) -> None:
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    attach(optimizer)
    generator = torch.Generator().manual_seed(1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(model, generator)
        torch.autograd.backward(value)
        return value

    for _ in range(12):
        optimizer.step(closure)  # type: ignore[no-untyped-call]
        step()


def accumulating(
    model: nn.Module, attach: Callable[[Any], object], step: Callable[[], object]
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(optimizer)
    generator = torch.Generator().manual_seed(1)
    for number in range(36):
        descend(model, generator)
        if number % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
            step()


def not_every_step(
    model: nn.Module, attach: Callable[[Any], object], step: Callable[[], object]
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(optimizer)
    generator = torch.Generator().manual_seed(1)
    for number in range(36):
        optimizer.zero_grad()
        descend(model, generator)
        optimizer.step()
        if number % 3 == 2:
            step()


@pytest.mark.parametrize(
    ("train", "max_rank"),
    [
        (plain, None),
        (plain, 4),
        (plain, 0),
        (several, None),
        (closures, None),
        (accumulating, None),
        (not_every_step, 4),
    ],
)
def test_training_is_the_same_and_so_are_the_iterates(
    scratch: Path, train: Train, max_rank: int | None
) -> None:
    ends, moments = [], []
    seen: list[Tensor] = []
    for attached in (None, False, True):
        model = network()
        torch.manual_seed(5)  # of dropout
        if attached is None:
            train(model, lambda _: None, lambda model=model: seen.append(flat(model)))  # type: ignore[misc]
            ends.append(flat(model))
            continue
        location = f"memmap:{scratch / str(attached)}"
        with swag.SWAG(model, location, max_rank, checkpoint_every=5) as posterior:
            attach = posterior.attach if attached else lambda _: None
            train(model, attach, lambda: posterior.update_parameters(model))  # noqa: B023
            assert posterior.n_averaged == 12
            moments.append((posterior.mean(), posterior.variance()))
        ends.append(flat(model))
        if max_rank is None:
            assert torch.equal(columns(location), torch.stack(seen))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])
    for one, other in zip(*moments, strict=True):
        for name, value in one.items():
            assert torch.equal(value, other[name])


@pytest.mark.parametrize(
    ("weights", "collected", "max_rank", "autocasts"),
    [
        (torch.bfloat16, None, None, False),
        (torch.bfloat16, None, 4, False),
        (torch.float32, torch.bfloat16, 4, False),
        (torch.float32, None, 4, True),
    ],
    ids=["bfloat16", "bfloat16, a ring", "narrowed", "mixed precision"],
)
def test_training_in_few_bits_is_the_same(
    scratch: Path,
    weights: torch.dtype,
    collected: torch.dtype | None,
    max_rank: int | None,
    autocasts: bool,
) -> None:
    ends = []
    for attached in (None, False, True):
        model = network().to(weights)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=autocasts)
        generator = torch.Generator().manual_seed(1)
        torch.manual_seed(5)  # of dropout
        posterior = None
        if attached is not None:
            location = f"memmap:{scratch / str(attached)}"
            posterior = swag.SWAG(model, location, max_rank, checkpoint_every=5, dtype=collected)
            if attached:
                posterior.attach(optimizer)
        for number in range(12):
            optimizer.zero_grad()
            x = torch.randn(8, 6, generator=generator).to(weights)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocasts):
                value = (model(x) - 1).square().mean()
            torch.autograd.backward(scaler.scale(value))
            scaler.step(optimizer)
            scaler.update()
            if posterior is not None:
                posterior.update_parameters(model)
                assert (posterior._behind is not None) == (attached and number not in (0, 4, 9))
        ends.append(flat(model))
        if posterior is not None:
            assert posterior.n_averaged == 12
            last = torch.cat([w.reshape(-1) for w in posterior.iterate(-1).values()])
            assert torch.equal(last.to(weights), ends[-1].to(collected or weights).to(weights))
            posterior.close()
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_the_step_waits_and_nothing_else_does(scratch: Path, slow: threading.Event) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    with swag.SWAG(model, f"memmap:{scratch}") as posterior:
        posterior.attach(optimizer)
        for _ in range(2):
            optimizer.zero_grad()
            descend(model, generator)
            optimizer.step()
            posterior.update_parameters(model)
        behind = posterior._behind
        assert behind is not None
        before = flat(model)
        descend(model, generator)
        states = [behind._copied]
        optimizer.step()
        assert [*states, behind._copied] == [False, True]
        assert torch.equal(
            torch.cat([w.reshape(-1) for w in posterior.iterate(-1).values()]), before
        )


def test_a_scaler_that_skips_steps(scratch: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    generator = torch.Generator().manual_seed(1)
    seen: list[Tensor] = []
    with swag.SWAG(model, f"memmap:{scratch}") as posterior:
        posterior.attach(optimizer)
        for number in range(10):
            optimizer.zero_grad()
            torch.autograd.backward(scaler.scale(loss(model, generator)))
            gradient = model.get_parameter("0.weight").grad
            assert gradient is not None
            if number % 3 == 1:
                gradient.fill_(np.inf)
            scaler.step(optimizer)
            scaler.update()
            if number == 1:
                with pytest.warns(SwagWarning, match="those of iterate"):
                    posterior.update_parameters(model)
            else:
                posterior.update_parameters(model)
            if number % 3 != 1:
                seen.append(flat(model))
        assert posterior.n_averaged == len(seen) == 7
        assert posterior.n_repeated == 3
    assert torch.equal(columns(f"memmap:{scratch}"), torch.stack(seen))


CHANGES: dict[str, Callable[[nn.Parameter], object]] = {
    "in place": lambda p: p.detach().mul_(0.5),
    "through .data": lambda p: p.data.mul_(0.5),
    "through NumPy": lambda p: np.multiply(p.detach().numpy(), 0.5, out=p.detach().numpy()),
}


@pytest.mark.parametrize("how", CHANGES)
def test_weights_that_change_before_the_step(
    scratch: Path, slow: threading.Event, how: str
) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    kept = []
    with swag.SWAG(model, f"memmap:{scratch}") as posterior:
        posterior.attach(optimizer)

        def step() -> None:
            optimizer.zero_grad()
            descend(model, generator)
            optimizer.step()
            posterior.update_parameters(model)

        step()
        kept.append(flat(model))  # the first is copied at once
        step()
        kept.append(flat(model))
        posterior.wait()  # as one should
        CHANGES[how](model.get_parameter("3.weight"))
        step()
        CHANGES[how](model.get_parameter("3.weight"))  # as one should not
        with pytest.warns(SwagWarning, match="call wait"):
            step()
        kept.append(flat(model))
        slow.clear()
        step()
        kept.append(flat(model))
        CHANGES[how](model.get_parameter("3.weight"))  # it copies at once by now
        assert posterior.n_averaged == 4
    assert torch.equal(columns(f"memmap:{scratch}"), torch.stack(kept))


def test_other_memory_before_the_step(scratch: Path, slow: threading.Event) -> None:
    """An average that is swapped in, and out again or not, leaves the iterate's memory alone."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    others = [torch.zeros_like(p) for p in model.parameters()]
    kept = []

    def swap() -> None:
        for i, parameter in enumerate(model.parameters()):
            parameter.data, others[i] = others[i], parameter.data

    with swag.SWAG(model, f"memmap:{scratch}") as posterior:
        posterior.attach(optimizer)
        for number in range(6):
            optimizer.zero_grad()
            descend(model, generator)
            optimizer.step()
            posterior.update_parameters(model)
            kept.append(flat(model))
            swap()
            if number == 3:  # the copy begins while the average is in
                slow.set()
                while posterior.stats().behind:
                    pass
            swap() if number < 5 else None
        assert posterior.n_averaged == 6
    assert torch.equal(columns(f"memmap:{scratch}"), torch.stack(kept))


PUT: dict[str, Callable[[swag.SWAG, nn.Module], object]] = {
    "predict": lambda earlier, model: earlier.predict(
        model, torch.ones(2, 6), activation="none", samples=2
    ),
    "sampled": lambda earlier, model: earlier.sampled(model).__enter__(),
    "install_mean": lambda earlier, model: earlier.install_mean(model),
}


@pytest.mark.parametrize("what", PUT)
def test_another_posterior_puts_weights_in(scratch: Path, slow: threading.Event, what: str) -> None:
    """What the package does to the weights of a model is announced by the package."""
    model, other = network(), network(1)
    earlier = swag.SWAG(other)
    earlier.update_parameters(other)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    kept = []
    with swag.SWAG(model, f"memmap:{scratch}") as posterior:
        posterior.attach(optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            descend(model, generator)
            optimizer.step()
            posterior.update_parameters(model)
            kept.append(flat(model))
        behind = posterior._behind
        assert behind is not None
        assert not behind.reads(list(other.parameters()))  # another model's are not waited for
        PUT[what](earlier, model)
        assert behind._copied
        assert posterior.n_averaged == 3
    assert torch.equal(columns(f"memmap:{scratch}"), torch.stack(kept))


def test_a_parameter_that_is_replaced(scratch: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    kept = []
    with swag.SWAG(model, f"memmap:{scratch}") as posterior:
        posterior.attach(optimizer)
        for number in range(6):
            optimizer.zero_grad()
            descend(model, generator)
            optimizer.step()
            posterior.update_parameters(model)
            kept.append(flat(model))
            if number == 3:
                model[3].weight = nn.Parameter(torch.ones(2, 50))
            behind = posterior._behind is not None
            assert behind == (number in (1, 2, 3))  # nobody steps the new one
    assert torch.equal(columns(f"memmap:{scratch}"), torch.stack(kept))


def test_exceptions_in_between(scratch: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    kept = []
    with swag.SWAG(model, f"memmap:{scratch}") as posterior:
        posterior.attach(optimizer)

        def fails() -> float:
            raise KeyboardInterrupt

        for number in range(8):
            optimizer.zero_grad()
            descend(model, generator)
            if number % 2:
                with pytest.raises(KeyboardInterrupt):
                    optimizer.step(fails)
            optimizer.step()
            posterior.update_parameters(model)
            kept.append(flat(model))
            with pytest.raises(RuntimeError):
                model(torch.zeros(3, 7))
    assert torch.equal(columns(f"memmap:{scratch}"), torch.stack(kept))


def test_nothing_is_copied_behind_that_a_forward_pass_may_change(scratch: Path) -> None:
    model = nn.Embedding(10, 4, max_norm=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with swag.SWAG(model, f"memmap:{scratch}") as posterior:
        posterior.attach(optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.arange(10)).sum().backward()
            optimizer.step()
            posterior.update_parameters(model)
            assert posterior._behind is None


def test_nor_in_a_group_that_others_write_to(scratch: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    with pmarray.open_group(f"memmap:{scratch}") as group, swag.SWAG(model, group) as posterior:
        posterior.attach(optimizer)
        for _ in range(3):
            descend(model, generator)
            optimizer.step()
            posterior.update_parameters(model)
            assert posterior._behind is None


def test_what_goes_wrong_behind_is_told_at_the_next_call(scratch: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    with swag.SWAG(model, f"memmap:{scratch}", on_nonfinite="raise") as posterior:
        posterior.attach(optimizer)
        for number in range(3):
            optimizer.zero_grad()
            descend(model, generator)
            if number == 2:
                gradient = model.get_parameter("0.bias").grad
                assert gradient is not None
                gradient.fill_(np.nan)
            optimizer.step()
            posterior.update_parameters(model)
        with pytest.raises(NonFiniteError, match=r"0\.bias"):
            posterior.update_parameters(model)
        assert posterior.n_averaged == 2


def test_an_optimizer_does_not_keep_the_posterior(scratch: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    posterior = swag.SWAG(model, f"memmap:{scratch}")
    posterior.attach(optimizer)
    copy.deepcopy(optimizer).step()
    posterior.close()
    gone = weakref.ref(posterior)
    del posterior
    gc.collect()
    assert gone() is None
    optimizer.step()

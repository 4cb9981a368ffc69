"""What a program has set around a call changes nothing: devices, dtypes, autocast, modes."""

from __future__ import annotations

import ast
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swag

CREATORS = {
    "arange", "asarray", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "ones",
    "rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "zeros",
}  # fmt: skip
FLOATS = {
    "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randn", "scalar_tensor",
    "tensor", "zeros",
}  # fmt: skip


@pytest.mark.parametrize("file", sorted(Path(swag.__file__).parent.rglob("*.py")), ids=str)
def test_tensors_are_made_for_a_device_and_of_a_dtype(file: Path) -> None:
    """``torch.set_default_device("cuda")`` would have them there, beside what is in host memory."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr=made)):
                named = {keyword.arg for keyword in node.keywords}
                assert made not in CREATORS or "device" in named, node.lineno
                assert made not in FLOATS or "dtype" in named, node.lineno


def network() -> nn.Module:
    host: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
    return nn.Sequential(nn.Linear(4, 16, **host), nn.Tanh(), nn.Linear(16, 3, **host))


def inputs() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(20, 4, generator=generator, device="cpu", dtype=torch.float32)


def collected(
    max_rank: int | None, attached: bool, around: AbstractContextManager[Any]
) -> swag.SWAG:
    generator = torch.Generator().manual_seed(1)
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    labels = torch.arange(20, device="cpu") % 3
    posterior = swag.SWAG(model, store=f"dram:{uuid.uuid4()}", max_rank=max_rank)
    if attached:
        posterior.attach(optimizer)
    for _ in range(9):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(inputs()), labels))
        optimizer.step()
        with around:
            posterior.update_parameters(model)
    return posterior


@contextmanager
def default_dtype() -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "another device": lambda: torch.device("meta"),  # where no number would come from
    "float64": default_dtype,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
}


class Again:
    """A context manager that can be entered more than once."""

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make = make

    def __enter__(self) -> None:
        self._now = self._make()
        self._now.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._now.__exit__(*error)


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("max_rank", [None, 4, 0])
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_what_is_set_around_changes_nothing(
    name: str, max_rank: int | None, attached: bool
) -> None:
    def seen(around: AbstractContextManager[Any]) -> dict[str, Any]:
        posterior, model = collected(max_rank, attached, around), network()
        with around:
            found: dict[str, Any] = {
                "mean": posterior.mean(),
                "variance": posterior.variance(),
                "draws": posterior.sample(3, generator=0),
                "pairs": posterior.sample(4, generator=0, antithetic=True),
                "one by one": list(posterior.iter_samples(2, generator=0)),
                "density": posterior.log_prob(posterior.mean()),
                "covariance": posterior.covariance
                @ torch.ones(posterior.covariance.shape[0], device="cpu", dtype=torch.float32),
            }
            if max_rank != 0:
                found["window"] = posterior.window(rank=2).sample(2, generator=0)
                found["subspace"] = posterior.subspace(2).basis
            if name != "autocast":
                found["predictions"] = posterior.predict_each(
                    model, inputs(), samples=3, generator=0
                )
        return found

    torch.testing.assert_close(
        seen(Again(SURROUNDINGS[name])), seen(Again(torch.enable_grad)), rtol=0, atol=0
    )


def test_under_autocast_every_draw_has_its_own_weights_and_the_model_its_own_again() -> None:
    posterior, model = collected(None, False, torch.enable_grad()), network()
    draws = posterior.sample(3, generator=0)
    expected = []
    for i in range(3):
        other = network()
        other.load_state_dict({key: value[i] for key, value in draws.items()})
        with torch.autocast("cpu", torch.bfloat16):
            expected.append(other(inputs()).detach())
    with torch.autocast("cpu", torch.bfloat16):
        own = model(inputs())
        found = posterior.predict_each(model, inputs(), samples=3, generator=0)
        assert torch.equal(model(inputs()), own)
        posterior.install_mean(model)
        assert not torch.equal(model(inputs()), own)
    torch.testing.assert_close(found, torch.stack(expected).to(found.dtype), rtol=0, atol=0)

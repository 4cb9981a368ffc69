"""A posterior of some of the parameters is that of all, cut down to them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import swag
from swag.errors import ModelError, StoreError, SwagWarning
from tests.sampling import examples
from tests.swag.test_collect import wandering


class Tall(nn.Module):
    """A body and a head, of the same names inside."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.head(self.body(x)) * self.scale
        return output


def collected(models: list[Any], **options: Any) -> swag.SWAG:
    posterior = swag.SWAG(models[0], **options)
    for model in models:
        posterior.update_parameters(model)
    return posterior


NAMES = [name for name, _ in Tall().named_parameters()]
PATTERNS = ["*", "head.*", "*.bias", "body.?.weight", "scale", "body.[02].*"]


@examples(4)
@given(
    patterns=st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3, unique=True),
    rank=st.sampled_from([None, 0, 2]),
    seed=st.integers(0, 1000),
)
def test_some_of_the_parameters_have_the_moments_that_they_have_among_all(
    patterns: list[str], rank: int | None, seed: int
) -> None:
    models = wandering(Tall(), 4, seed=seed)
    whole, part = collected(models), collected(models, parameters=patterns, max_rank=rank)
    wanted = {name for name in NAMES if any(fnmatchcase(name, each) for each in patterns)}
    for of_whole, of_part in (
        (whole.mean(), part.mean()),
        (whole.variance(), part.variance()),
    ):
        assert set(of_part) == wanted
        for name, value in of_part.items():
            assert torch.equal(value, of_whole[name])


@pytest.mark.parametrize(
    "choose",
    [
        lambda model: "head.*",
        lambda model: ["head.weight", "head.bias"],
        lambda model: lambda name, parameter: name.startswith("head"),
        lambda model: lambda name, parameter: parameter.shape[:1] == (2,),
        lambda model: model.head,
    ],
    ids=["pattern", "names", "predicate of names", "predicate of parameters", "module"],
)
def test_whatever_names_them(choose: Callable[[Tall], Any]) -> None:
    models: list[Any] = list(wandering(Tall(), 3))
    posterior = collected(models, parameters=choose(models[0]))
    assert sorted(posterior.mean()) == ["head.bias", "head.weight"]
    other = models[-1].body[0].weight.clone()
    with posterior.sampled(models[-1], generator=0):
        assert torch.equal(models[-1].body[0].weight, other)
        assert torch.equal(models[-1].head.bias, posterior.sample(1, generator=0)["head.bias"][0])
    assert posterior.predict(
        models[-1], torch.ones(5, 3), activation="softmax", samples=2
    ).shape == (5, 2)


@pytest.mark.parametrize(
    "choose",
    [
        lambda model: "head.*",
        lambda model: ["head.bias", "*.weight"],
        lambda model: lambda name, parameter: name.startswith("head"),
        lambda model: model.head,
    ],
    ids=["pattern", "patterns", "predicate", "module"],
)
def test_a_shared_parameter_has_all_its_names(choose: Callable[[Any], Any]) -> None:
    model: Any = nn.ModuleDict({"embedding": nn.Embedding(10, 4), "head": nn.Linear(4, 10)})
    model.head.weight = model.embedding.weight
    posterior = swag.SWAG(model, parameters=choose(model))
    assert sorted(posterior.slices) == ["embedding.weight", "head.bias"]
    posterior.update_parameters(model)
    assert list(swag.SWAG(model, parameters="head.weight").slices) == ["embedding.weight"]


def test_what_names_nothing_is_refused() -> None:
    model = Tall()
    with pytest.raises(
        ModelError, match=r"'haed.\*' names no parameter; the model has scale, body"
    ):
        swag.SWAG(model, parameters=["head.*", "haed.*"])
    with pytest.raises(ModelError, match="whose parameters are not the model's"):
        swag.SWAG(model, parameters=nn.Linear(4, 2))
    with pytest.raises(TypeError, match="not int"):
        swag.SWAG(model, parameters=[3])  # type: ignore[list-item]
    with pytest.raises(ModelError, match="among those of parameters="):
        swag.SWAG(model, parameters=lambda name, parameter: False)
    model.head.requires_grad_(False)
    with pytest.raises(ModelError, match="among those of parameters="):
        swag.SWAG(model, parameters=model.head)


def test_a_store_is_of_what_was_chosen_first(location: str) -> None:
    first, second = wandering(Tall(), 2)
    with swag.SWAG(first, store=location, parameters="head.*") as posterior:
        posterior.update_parameters(first)
    with pytest.raises(StoreError, match=r"body\.0\.weight is new"):
        swag.SWAG(first, store=location, mode="a")
    with swag.SWAG(second, store=location, mode="a", parameters=second.head) as posterior:
        posterior.update_parameters(second)
        assert posterior.n_averaged == 2


def test_what_is_frozen_later_is_told_once_and_what_is_unfrozen_is_refused() -> None:
    models = wandering(Tall(), 5)
    posterior = swag.SWAG(models[0])
    posterior.update_parameters(models[0])
    for model in models:
        model.body.requires_grad_(False)
    with pytest.warns(SwagWarning, match="body.0.weight, body.0.bias"):
        posterior.update_parameters(models[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posterior.update_parameters(models[2])
    head = swag.SWAG(models[0])
    head.update_parameters(models[0])
    models[3].body[0].requires_grad_(True)
    with pytest.raises(ModelError, match="trained now, and not when collection began"):
        head.update_parameters(models[3])
    assert head.n_averaged == 1
    chosen = collected(models[:3], parameters="head.*")
    chosen.update_parameters(models[3])  # what thaws is none of its parameters
    assert chosen.n_averaged == 4


class Odd(nn.Module):
    """Tied, without an axis, empty, and parametrised."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.scalar = nn.Parameter(torch.tensor(0.5))
        self.empty = nn.Parameter(torch.empty(0, 4))
        self.normed = weight_norm(nn.Linear(3, 3))
        self.spectral = spectral_norm(nn.Linear(3, 3))


def test_parameters_of_every_kind() -> None:
    models = wandering(Odd(), 4)
    posterior = collected(models)
    names = [name for name, _ in models[0].named_parameters()]
    assert list(posterior.mean()) == names
    assert "b.weight" not in names
    assert "normed.parametrizations.weight.original0" in names
    for name, mean in posterior.mean().items():
        values = [dict(model.named_parameters())[name].detach().double() for model in models]
        assert mean.shape == values[0].shape
        np.testing.assert_allclose(mean, torch.stack(values).mean(dim=0), rtol=1e-5, atol=1e-6)
    target = Odd()
    with posterior.sampled(target, generator=1):
        assert target.b.weight is target.a.weight
        assert torch.equal(target.scalar, posterior.sample(1, generator=1)["scalar"][0])


def test_a_complex_parameter_is_refused_by_name_unless_left_out() -> None:
    model = nn.Module()
    model.real = nn.Parameter(torch.ones(2))
    model.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ModelError, match=r"phase is torch\.complex64"):
        swag.SWAG(model)
    posterior = swag.SWAG(model, parameters="real")
    posterior.update_parameters(model)
    assert list(posterior.mean()) == ["real"]


def test_a_buffer_that_cannot_be_stored_is_refused_by_name_at_once() -> None:
    for buffer, message in (
        (torch.eye(3).to_sparse(), "the buffer graph has the layout torch.sparse_coo"),
        (torch.zeros(3, dtype=torch.float8_e4m3fn), "the buffer graph is of torch.float8_e4m3fn"),
    ):
        model = nn.Linear(2, 2)
        model.register_buffer("graph", buffer)
        with pytest.raises(ModelError, match=message):
            swag.SWAG(model)
        del model.graph
        model.register_buffer("graph", buffer, persistent=False)
        swag.SWAG(model).update_parameters(model)


def test_a_lazy_module_is_collected_once_it_has_run() -> None:
    model = nn.Sequential(nn.LazyLinear(2))
    with pytest.raises(ModelError, match=r"0\.weight has no shape yet: run the model once"):
        swag.SWAG(model)
    model(torch.ones(1, 3))
    assert swag.SWAG(model).n_averaged == 0


def test_thousands_of_small_tensors() -> None:
    model = nn.ParameterList(nn.Parameter(torch.full((2,), float(i))) for i in range(3000))
    posterior = collected(wandering(model, 3))
    means = [float(mean[0]) for mean in posterior.mean().values()]
    assert len(means) == 3000
    assert all(b > a for a, b in pairwise(means))  # each in its place

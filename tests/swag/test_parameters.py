"""Parameters are paired by name, whatever the order, dtype or sharing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from swag._parameters import Difference, ParameterTable
from swag.errors import ModelError, StoreError, SwagError


class Mixed(nn.Module):
    """Owns parameters beside children; two attributes hold the same one, and one is frozen."""

    def __init__(self, order: str = "forwards") -> None:
        super().__init__()
        weight = nn.Parameter(torch.randn(3, 4))
        parts: dict[str, nn.Module | nn.Parameter] = {
            "gain": nn.Parameter(torch.randn(4)),
            "inner": nn.Linear(4, 3),
            "scalar": nn.Parameter(torch.randn(())),
            "frozen": nn.Parameter(torch.randn(4), requires_grad=False),
            "other": nn.Linear(4, 3),
        }
        for name in parts if order == "forwards" else reversed(parts):
            part = parts[name]
            if isinstance(part, nn.Linear):
                part.weight = weight
            setattr(self, name, part)


def test_names_not_positions() -> None:
    one, other = Mixed(), Mixed("backwards")
    assert next(n for n, _ in one.named_parameters()) == "gain"
    assert next(n for n, _ in other.named_parameters()) == "frozen"
    assert "inner.weight" not in dict(other.named_parameters())
    table = ParameterTable.of(one)
    vector = table.gather(table.find_all(one))
    table.scatter(vector, table.find_all(other))
    state = other.state_dict()
    for name, value in one.state_dict().items():
        assert torch.equal(value, state[name]) == (name != "frozen"), name


def test_a_shared_parameter_has_one_place_and_a_frozen_one_none() -> None:
    names = [entry.name for entry in ParameterTable.of(Mixed()).entries]
    assert sorted(names) == ["gain", "inner.bias", "inner.weight", "other.bias", "scalar"]


def test_the_vector_is_packed_and_survives_json() -> None:
    table = ParameterTable.of(Mixed())
    assert table.size == 4 + 1 + 12 + 3 + 3
    assert [e.stop for e in table.entries[:-1]] == [e.start for e in table.entries[1:]]
    assert ParameterTable.from_json(json.loads(json.dumps(table.to_json()))) == table


@pytest.mark.parametrize("damage", [{"dtype": "int64"}, {"start": 7}, {"shape": 3}, {"name": None}])
def test_a_damaged_table_is_refused(damage: dict[str, object]) -> None:
    entries = ParameterTable.of(nn.Linear(3, 2)).to_json()
    entries[1].update(damage)
    if damage == {"name": None}:
        del entries[1]["name"]
    with pytest.raises(StoreError, match="damaged"):
        ParameterTable.from_json(entries)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@given(seed=st.integers(0, 2**32 - 1))
def test_the_difference_is_rounded_once(dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(5, 3).to(dtype)
    table = ParameterTable.of(model)
    for parameter in model.parameters():
        parameter.data.normal_(generator=generator)
    anchor = table.gather(table.find(model))
    difference = Difference(table, anchor.clone())
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator).to(dtype)
    parameters = table.find(model)
    out = torch.full((table.size,), torch.nan)
    difference.write(parameters, out)
    weights = torch.cat([p.detach().double().flatten() for p in parameters])
    expected = (weights - anchor.double()).float()
    assert torch.equal(out, expected)
    # The way of parameters on an accelerator ends in the same bits.
    staged = difference._staged(parameters, 0, len(parameters) - 1)
    assert torch.equal(staged.float(), expected)


def test_parameters_of_any_memory_format() -> None:
    model = nn.Conv2d(3, 4, 2)
    model.weight.data = model.weight.data.contiguous(memory_format=torch.channels_last)
    assert not model.weight.is_contiguous()
    table = ParameterTable.of(model)
    anchor = table.gather(table.find(model))
    assert torch.equal(table.by_name(anchor)["weight"], model.weight)
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.mul_(2)
    out = torch.empty(table.size)
    Difference(table, anchor).write(table.find(model), out)
    assert torch.equal(table.by_name(out)["weight"], before)
    table.scatter(anchor, table.find(model))
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 5)), "1.weight has shape (5, 2), not (1, 2)"),
        (nn.Sequential(nn.Linear(3, 2), nn.Tanh()), "1.weight is missing; 1.bias is missing"),
        (nn.Sequential(*(nn.Linear(3, 2), nn.Linear(2, 1), nn.Linear(1, 1))), "2.weight is new"),
    ],
)
def test_the_differences_of_another_model_are_named(other: nn.Module, message: str) -> None:
    table = ParameterTable.of(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)))
    with pytest.raises(ModelError) as caught:
        table.find_all(other)
    assert message in str(caught.value)


@pytest.mark.parametrize("model", [nn.Tanh(), nn.Linear(2, 2).requires_grad_(False)])
def test_a_model_that_trains_nothing_is_refused(model: nn.Module) -> None:
    with pytest.raises(ModelError, match="requires a gradient"):
        ParameterTable.of(model)


def test_parameters_that_are_no_real_numbers_are_refused() -> None:
    model = nn.ParameterDict({"w": nn.Parameter(torch.zeros(2, dtype=torch.complex64))})
    with pytest.raises(ModelError, match=r"w is torch\.complex64"):
        ParameterTable.of(model)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_a_lazy_parameter_is_refused() -> None:
    with pytest.raises(ModelError, match="run the model once"):
        ParameterTable.of(nn.LazyLinear(2))


def test_parameters_that_are_elsewhere_are_refused() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    whole = model[0].weight.data
    model[0].weight.data = torch.empty(0)  # as ZeRO-3 leaves it
    with pytest.raises(ModelError, match=r"0\.weight is empty here, as ZeRO-3"):
        ParameterTable.of(model)
    model[0].weight.data = whole[:1]
    model[0].weight.ds_shape = whole.shape
    with pytest.raises(ModelError, match="ZeRO-3"):
        ParameterTable.of(model)
    model[0].weight.data = whole
    assert ParameterTable.of(model).size == 11
    with torch.device("meta"), pytest.raises(ModelError, match="meta device"):
        ParameterTable.of(nn.Linear(3, 2))


def test_the_errors_are_one_tree() -> None:
    assert issubclass(ModelError, SwagError)
    assert issubclass(ModelError, ValueError)

"""Parameters are paired by name, whatever the order, dtype or sharing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from swag._parameters import ParameterTable
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
    vector = torch.empty(table.size)
    table.collect(table.find_all(one), vector)
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
def test_weights_are_collected_to_the_bit(dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(5, 3).to(dtype)
    table = ParameterTable.of(model)
    for parameter in model.parameters():
        parameter.data.normal_(generator=generator)
    parameters = table.find(model)
    out = torch.full((table.size,), torch.nan, dtype=table.common_dtype)
    sums = table.collect(parameters, out)
    expected = torch.cat([p.detach().flatten() for p in parameters])
    assert out.dtype == dtype
    assert torch.equal(out.view(torch.uint8), expected.view(torch.uint8))
    wide = torch.stack([p.detach().float().sum() for p in parameters])
    torch.testing.assert_close(sums, wide[None].double(), rtol=1e-5, atol=1e-5)


def test_weights_of_several_dtypes_are_held_by_the_widest_that_is_needed() -> None:
    halves = nn.Sequential(nn.Linear(5, 3).half(), nn.Linear(5, 3).bfloat16())
    assert ParameterTable.of(halves).common_dtype == torch.float32
    assert ParameterTable.of(halves[1]).common_dtype == torch.bfloat16
    table = ParameterTable.of(halves)
    out = torch.empty(table.size)
    table.collect(table.find(halves), out)
    torch.testing.assert_close(
        out, torch.cat([p.detach().float().flatten() for p in halves.parameters()]), rtol=0, atol=0
    )


def test_small_parameters_are_copied_together_as_they_are_alone() -> None:
    torch.manual_seed(0)
    sizes = [(3,), (0, 4), (2, 2), (20_000,), (0, 5), (1,), (9_000,), (9_000,), ()]
    model = nn.ParameterList(nn.Parameter(torch.randn(size)) for size in sizes)
    model[5].data.fill_(torch.inf)
    model[2].data = model[2].data.t()
    table = ParameterTable.of(model)
    parameters = table.find(model)
    out, alone = torch.empty(table.size), torch.empty(table.size)
    sums = table.collect(parameters, out)
    one_by_one = torch.empty_like(sums)
    table._collect_each(parameters, 0, len(sizes) - 1, alone, one_by_one)
    assert torch.equal(out, alone)
    assert torch.equal(out, torch.cat([p.detach().flatten() for p in parameters]))
    torch.testing.assert_close(sums, one_by_one, rtol=1e-6, atol=1e-5)
    assert table.nonfinite(out, sums) == ["5"]


def test_narrower_vectors_are_rounded_once_and_told_apart_by_the_sums() -> None:
    torch.manual_seed(0)  # whatever is near the middle of two may be rounded up by the rest
    model = nn.Linear(5, 3)
    table = ParameterTable.of(model)
    out = torch.empty(table.size, dtype=torch.bfloat16)
    before = table.collect(table.find(model), out).clone()
    assert torch.equal(
        out, torch.cat([p.detach().bfloat16().flatten() for p in model.parameters()])
    )
    with torch.no_grad():
        model.bias.mul_(1 + 2**-12)  # too little to be seen in bfloat16
    after = table.collect(table.find(model), out)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_parameters_of_any_memory_format() -> None:
    model = nn.Conv2d(3, 4, 2)
    model.weight.data = model.weight.data.contiguous(memory_format=torch.channels_last)
    assert not model.weight.is_contiguous()
    table = ParameterTable.of(model)
    vector = torch.empty(table.size)
    table.collect(table.find(model), vector)
    before = model.weight.detach().clone()
    assert torch.equal(table.by_name(vector)["weight"], before)
    with torch.no_grad():
        model.weight.mul_(2)
    table.scatter(vector, table.find(model))
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

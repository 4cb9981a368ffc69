"""What is given away is read back by its own readers, and computes what a draw computes."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import swag
from swag.errors import ModelError
from swag.export import save_pretrained, save_safetensors, state_dict, to_numpy
from tests.swag.test_collect import wandering
from tests.swag.trainers import language_model, texts

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft
    import transformers

pytestmark = pytest.mark.filterwarnings("ignore:::(transformers|peft)")


class Tied(nn.Module):
    """Two names of a weight, batch normalisation, and a parameter that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.norm = nn.BatchNorm1d(3)
        self.b.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.b(self.norm(self.a(x)))
        return output


def collected(models: list[Any], **options: Any) -> swag.SWAG:
    posterior = swag.SWAG(models[0], **options)
    for model in models:
        posterior.update_parameters(model)
    return posterior


def one_of(draws: dict[str, torch.Tensor], which: int) -> dict[str, torch.Tensor]:
    return {name: draws[name][which] for name in draws}


def unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_state_dict_computes_what_the_draw_does() -> None:
    torch.manual_seed(0)
    models = wandering(Tied(), 4)
    posterior, model = collected(models), models[-1]
    before, data = copy.deepcopy(model.state_dict()), [torch.randn(16, 3) for _ in range(3)]
    given = state_dict(posterior, model, one_of(posterior.sample(3, generator=1), 0), loader=data)
    assert unchanged(model, before)
    fresh = Tied()
    fresh.load_state_dict(given, strict=True)
    assert given["a.weight"] is given["b.weight"]
    with posterior.sampled(model, generator=1, loader=data):
        expected = model.eval()(data[0])
    assert torch.equal(fresh.eval()(data[0]), expected)
    mean = state_dict(posterior, model, loader=data)
    assert torch.equal(mean["a.weight"], posterior.mean()["a.weight"])
    assert torch.equal(mean["b.bias"], before["b.bias"])
    with pytest.raises(ValueError, match=r"one draw, and these are of the shape \(3,\)"):
        state_dict(posterior, model, posterior.sample(3), loader=data)
    with pytest.raises(ModelError, match=r"norm\.bias is missing"):
        state_dict(posterior, model, {"a.weight": given["a.weight"]}, loader=data)


def test_safetensors_in_shards_and_whole(scratch: Path) -> None:
    models = wandering(nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 20)), 3)
    posterior, place = collected(models), scratch / "out"
    draw = one_of(posterior.sample(2, generator=4), 1)
    save_safetensors(posterior, models[0], place)
    whole = load_file(place / "model.safetensors")
    assert all(torch.equal(value, whole[name]) for name, value in posterior.mean().items())
    save_safetensors(posterior, models[0], place, draw, max_shard_size=3000)
    index = json.loads((place / "model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 1
    assert {path.name for path in place.iterdir()} == shards | {"model.safetensors.index.json"}
    for name, shard in index["weight_map"].items():
        assert torch.equal(load_file(place / shard)[name], draw[name])
    save_safetensors(posterior, models[0], place)  # a reader must not find the old shards
    assert [path.name for path in place.iterdir()] == ["model.safetensors"]


def test_a_model_of_transformers_reads_itself_back(scratch: Path) -> None:
    models: list[Any] = list(wandering(language_model(), 3))
    posterior, ids = collected(models), texts(labels=False)[0]["input_ids"][None]
    draw = one_of(posterior.sample(1, generator=2), 0)
    save_pretrained(posterior, models[0], scratch / "own", draw, max_shard_size="2KB")
    save_safetensors(posterior, models[0], scratch / "ours", draw, max_shard_size="2KB")
    models[0].config.save_pretrained(scratch / "ours")
    with posterior.sampled(models[0], generator=2), torch.no_grad():
        expected = models[0].eval()(ids).logits
    for place in ("own", "ours"):
        assert len(list((scratch / place).glob("*.safetensors"))) > 1
        read: Any = transformers.AutoModelForCausalLM.from_pretrained(scratch / place)
        with torch.no_grad():
            assert torch.equal(read.eval()(ids).logits, expected)


def test_an_adapter_goes_onto_the_base_model(scratch: Path) -> None:
    torch.manual_seed(0)
    base = language_model()
    adapted: Any = peft.get_peft_model(
        copy.deepcopy(base),
        peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True),
    )
    models = wandering(adapted, 3)
    posterior, ids = collected(models), texts(labels=False)[0]["input_ids"][None]
    save_pretrained(posterior, models[0], scratch, one_of(posterior.sample(1, generator=2), 0))
    names = {path.name for path in scratch.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert not any(name.startswith("model") for name in names)  # the base is not written
    read: Any = peft.PeftModel.from_pretrained(base, scratch)
    with posterior.sampled(models[0], generator=2), torch.no_grad():
        expected = models[0].eval()(ids).logits
    with torch.no_grad():
        assert torch.equal(read.eval()(ids).logits, expected)


def test_numpy_takes_every_dtype() -> None:
    model = nn.Linear(2, 2)
    posterior = collected(wandering(model, 2))
    arrays = to_numpy(posterior)
    assert arrays["weight"].dtype == np.float32
    np.testing.assert_array_equal(arrays["weight"], posterior.mean()["weight"])
    narrow = to_numpy(posterior, {"weight": torch.ones(2, dtype=torch.bfloat16)})
    assert narrow["weight"].tolist() == [1.0, 1.0]

"""The paper's four networks have the paper's sizes."""

from __future__ import annotations

import pytest
import torch

from swag.models import MODELS, build, fully_connected

SIZES = {"2conv2fc": 21_840, "2fc": 795_010, "3fc": 1_290_510, "4fc": 2_797_010}


def test_the_models_are_the_four_of_the_paper() -> None:
    assert set(MODELS) == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_the_number_of_parameters_is_the_papers(name: str) -> None:
    assert sum(p.numel() for p in build(name).parameters()) == SIZES[name]


@pytest.mark.parametrize("name", SIZES)
def test_an_image_gives_ten_logits_that_depend_on_every_parameter(name: str) -> None:
    model = build(name)
    images = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    logits = model(images)
    assert logits.shape == (64, 10)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    assert (logits < 0).any()  # no ReLU after the last layer


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (build("2conv2fc", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(one[name].equal(same[name]) for name in one)
    assert not one["0.weight"].equal(other["0.weight"])
    assert torch.get_rng_state().equal(before)


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"5fc.*2conv2fc, 2fc, 3fc, 4fc"):
        build("5fc")


def test_one_width_is_no_network() -> None:
    with pytest.raises(ValueError, match="output width"):
        fully_connected(784)

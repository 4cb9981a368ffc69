"""Temperature scaling against a search, and against labels whose temperature is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swag.calibration import fit_temperature, tempered
from swag.metrics import accuracy, nll


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.floats(0.2, 5))
def test_no_other_temperature_is_better(seed: int, classes: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = (spread * torch.randn(50, classes, generator=generator)).softmax(dim=1)
    labels = torch.multinomial(rows, 1, generator=generator).squeeze(1)
    best = fit_temperature(rows, labels)
    found = nll(tempered(rows.double(), best), labels)
    for other in torch.logspace(-2, 2, 17).tolist():
        assert found <= nll(tempered(rows.double(), other), labels) + 1e-9


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_put_in_is_found(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)
    found = fit_temperature((factor * logits).softmax(dim=1), labels)
    assert found == pytest.approx(factor, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_zero_is_no_probability_in_any_dtype(dtype: torch.dtype) -> None:
    sure = torch.tensor([[1.0, 0.0, 0.0], [0.75, 0.0, 0.25]], dtype=dtype)
    for temperature in (1e-300, 0.1, 1.0, 100.0, math.inf):
        found = tempered(sure, temperature)
        assert not found[sure == 0].any()
        assert torch.equal(found[0], sure[0])
    torch.testing.assert_close(tempered(sure, 1.0), sure)
    # Labels that are impossible say nothing; of the others, three in four are right.
    rows = torch.tensor([[0.75, 0.25, 0.0]] * 8 + [[1.0, 0.0, 0.0]] * 4, dtype=dtype)
    labels = torch.tensor([0, 0, 1, 0, 0, 0, 1, 0, 1, 2, 0, 1])
    assert fit_temperature(rows, labels) == pytest.approx(1, abs=1e-9)
    with pytest.raises(ValueError, match="every label has the probability zero"):
        fit_temperature(rows[8:], labels[[8, 9, 9, 11]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_number_below_the_normal_ones_is_a_probability(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    for least in (limits.tiny / 4, limits.tiny * limits.eps):
        rows, labels = torch.tensor([[1.0, least]], dtype=dtype), torch.tensor([1])
        assert nll(rows, labels) == pytest.approx(-math.log(least))
        assert tempered(rows, 1.0)[0, 1].item() == pytest.approx(least)
    none = torch.tensor([[1.0, 0.0]], dtype=dtype)
    assert nll(none, labels) == nll(rows, labels)


def test_it_changes_no_choice_and_takes_what_is_certain() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.3, 0.7], [0.3, 0.7]])
    labels = torch.tensor([0, 1, 1, 0])
    temperature = fit_temperature(rows, labels)
    assert temperature > 1
    assert accuracy(tempered(rows, temperature), labels) == accuracy(rows, labels)
    with pytest.raises(ValueError, match="positive"):
        tempered(rows, 0.0)
    with pytest.raises(ValueError, match="labels"):
        fit_temperature(rows, torch.tensor([0, 0, 2]))

"""Temperature scaling against a search, and against labels whose temperature is known."""

from __future__ import annotations

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


def test_it_changes_no_choice_and_takes_what_is_certain() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.3, 0.7]])
    labels = torch.tensor([0, 0, 1])
    temperature = fit_temperature(rows, labels)
    assert temperature > 1
    assert accuracy(tempered(rows, temperature), labels) == accuracy(rows, labels)
    with pytest.raises(ValueError, match="positive"):
        tempered(rows, 0.0)
    with pytest.raises(ValueError, match="labels"):
        fit_temperature(rows, torch.tensor([0, 0, 2]))

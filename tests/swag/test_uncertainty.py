"""Metrics against their formulas written out, and what they must give at their ends."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from swag.calibration import fit_temperature, tempered
from swag.metrics import adaptive_ece, classwise_ece
from swag.regression import GaussianPrediction
from swag.uncertainty import (
    auroc,
    disagreement,
    fpr95,
    mutual_information,
    predictive_entropy,
    risk_coverage,
)
from tests.sampling import examples

seeds = st.integers(0, 2**32 - 1)


def predictions(seed: int, n: int, classes: int, draws: int | None = None) -> Tensor:
    """Probabilities of all kinds, sure ones among them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n, classes) if draws is None else (draws, n, classes)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (logits * torch.rand(n, 1, generator=generator) * 20).softmax(dim=-1)


def labels_of(seed: int, n: int, classes: int) -> Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed + 1))


@given(seeds, st.integers(1, 60), st.integers(2, 5), st.integers(1, 20))
def test_adaptive_ece(seed: int, n: int, classes: int, bins: int) -> None:
    rows, labels = predictions(seed, n, classes), labels_of(seed, n, classes)
    ranked = sorted(
        (max(r), r.index(max(r)) == y) for r, y in zip(rows.tolist(), labels.tolist(), strict=True)
    )
    total, first = 0.0, 0
    for b in range(bins):  # as many in each, one more in the first ones
        part = ranked[first : first + n // bins + (b < n % bins)]
        first += len(part)
        if part:
            confidence = sum(c for c, _ in part) / len(part)
            right = sum(hit for _, hit in part) / len(part)
            total += len(part) / n * abs(confidence - right)
    assert first == n
    assert adaptive_ece(rows, labels, bins=bins) == pytest.approx(total, abs=1e-9)


@given(seeds, st.integers(1, 60), st.integers(2, 5), st.integers(1, 20))
def test_classwise_ece(seed: int, n: int, classes: int, bins: int) -> None:
    rows, labels = predictions(seed, n, classes).float(), labels_of(seed, n, classes)
    edges = torch.linspace(0, 1, bins + 1)
    total = 0.0
    for k in range(classes):
        for low, high in itertools.pairwise(edges):
            p = rows[:, k]
            inside = (p >= low) & ((p < high) | (high == 1))
            if inside.any():
                gap = p[inside].mean() - (labels[inside] == k).float().mean()
                total += float(inside.float().mean() * gap.abs()) / classes
    assert classwise_ece(rows, labels, bins=bins) == pytest.approx(total, abs=1e-5)


@given(seeds, st.integers(1, 20), st.integers(1, 20), st.sampled_from([1.0, 1e6, 0.1]))
def test_auroc_counts_pairs(seed: int, n: int, m: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    inside, outside = (
        (3 * torch.randn(k, generator=generator)).round() * spread for k in (n, m)
    )  # ties among them
    pairs = [
        1.0 if b > a else 0.5 if a == b else 0.0
        for a, b in itertools.product(inside.tolist(), outside.tolist())
    ]
    assert auroc(inside, outside) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert auroc(outside, inside) == pytest.approx(1 - auroc(inside, outside), abs=1e-6)


@given(seeds, st.integers(1, 200), st.integers(1, 30))
def test_fpr95_is_the_least_over_thresholds(seed: int, n: int, m: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    inside, outside = torch.randn(n, generator=generator), torch.randn(m, generator=generator) + 1
    accepting = [t for t in inside if (inside <= t).sum() * 100 >= 95 * n]
    least = min(float((outside <= t).double().mean()) for t in accepting)
    assert fpr95(inside, outside) == least


@given(seeds, st.integers(1, 6), st.integers(1, 8), st.integers(2, 5))
def test_what_draws_disagree_about(seed: int, draws: int, n: int, classes: int) -> None:
    rows = predictions(seed, n, classes, draws)

    def entropy(p: list[float]) -> float:
        return -sum(x * math.log(x) for x in p if x > 0)

    for i in range(n):
        parts = [rows[d, i].tolist() for d in range(draws)]
        mean = [sum(column) / draws for column in zip(*parts, strict=True)]
        divergences = [
            sum(x * math.log(x / y) for x, y in zip(part, mean, strict=True) if x > 0)
            for part in parts
        ]
        # The mean divergence of each draw from the mean: the same in another form.
        information = mutual_information(rows)[i].item()
        assert information == pytest.approx(sum(divergences) / draws, abs=1e-9)
        assert predictive_entropy(rows.mean(dim=0))[i].item() == pytest.approx(entropy(mean))
        others = sum(part.index(max(part)) != mean.index(max(mean)) for part in parts)
        assert disagreement(rows)[i].item() == pytest.approx(others / draws)


def test_what_narrow_numbers_say_is_checked_once() -> None:
    """Three of a third sum to 1.0020 in bfloat16, and so does their mean, which is wider."""
    alike = torch.full((2, 1, 3), 1 / 3).bfloat16()
    assert mutual_information(alike).item() == 0
    apart = torch.tensor([[[0.7, 0.2, 0.1]], [[0.1, 0.2, 0.7]]])
    found = mutual_information(apart.bfloat16())
    torch.testing.assert_close(found, mutual_information(apart), rtol=0.01, atol=0)


@given(seeds, st.integers(1, 40), st.integers(2, 4))
def test_risk_and_coverage(seed: int, n: int, classes: int) -> None:
    rows, labels = predictions(seed, n, classes), labels_of(seed, n, classes)
    curve = risk_coverage(rows, labels)
    ranked = sorted(
        (
            (-max(r), i, r.index(max(r)) != y)
            for i, (r, y) in enumerate(zip(rows.tolist(), labels, strict=True))
        ),
    )
    wrong = [bool(w) for *_, w in ranked]
    expected = [sum(wrong[: k + 1]) / (k + 1) for k in range(n)]
    assert curve.risk.tolist() == pytest.approx(expected)
    assert curve.area == pytest.approx(sum(expected) / n)
    assert curve.risk_at(1.0) == pytest.approx(sum(wrong) / n)
    assert curve.risk_at(1 / n) == float(wrong[0])


def test_what_is_no_score_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        auroc(torch.tensor([math.nan]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match=r"not \(0,\)"):
        fpr95(torch.tensor([]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match=r"\(draws, n, classes\)"):
        mutual_information(torch.ones(3, 2) / 2)
    with pytest.raises(ValueError, match="labels must be integers of shape"):
        risk_coverage(torch.ones(3, 2) / 2, torch.zeros(2, dtype=torch.long))


def test_what_is_no_tensor_is_told_so() -> None:
    rows, score = torch.ones(1, 3, 2) / 2, torch.ones(2)
    prediction = GaussianPrediction(score, score, score)
    lists: Any = rows.tolist(), score.tolist()
    for function in (
        lambda: auroc(lists[1], score),
        lambda: auroc(score, lists[1]),
        lambda: fpr95(lists[1], lists[1]),
        lambda: mutual_information(lists[0]),
        lambda: disagreement(lists[0]),
        lambda: predictive_entropy(lists[0]),
        lambda: tempered(lists[0], 1.0),
        lambda: prediction.log_prob(lists[1]),
        lambda: prediction.fitted_noise(score.numpy()),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match=r"torch\.as_tensor makes one"):
            function()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([[2.0, -3.0], [1.0, 4.0]], 'activation="softmax"'),
        ([[math.nan, math.nan], [0.5, 0.5]], "1 of 2 rows of probabilities are not finite"),
        ([[1.2, -0.2], [0.5, 0.5]], "non-negative and sum to one"),
    ],
)
def test_what_are_no_probabilities_is_refused(rows: list[list[float]], says: str) -> None:
    """Logits are one forgotten argument away; and a diverged network is not the surest of all."""
    p, y = torch.tensor(rows), torch.tensor([0, 1])
    for function in (
        lambda: risk_coverage(p, y),
        lambda: predictive_entropy(p),
        lambda: mutual_information(p[:, None]),
        lambda: disagreement(p[:, None]),
        lambda: tempered(p, 2.0),
        lambda: fit_temperature(p, y),
    ):
        with pytest.raises(ValueError, match=says):
            function()
    with pytest.raises(ValueError, match="labels must be from 0 to 1"):
        risk_coverage(torch.full((2, 2), 0.5), torch.tensor([0, 5]))


def test_no_risk_at_an_impossible_coverage() -> None:
    found = risk_coverage(torch.full((2, 2), 0.5), torch.tensor([0, 1]))
    assert found.risk_at(1) == 0.5
    for coverage in (0, -1, 2, math.nan):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            found.risk_at(coverage)


@examples(0.2)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32))
def test_auroc_of_torchmetrics(n: int, m: int, seed: int) -> None:
    from torchmetrics.functional.classification import binary_auroc

    scores = torch.randint(0, 9, (n + m,), generator=torch.Generator().manual_seed(seed)) / 9
    found = binary_auroc(scores, (torch.arange(n + m) >= n).long())
    assert auroc(scores[:n], scores[n:]) == pytest.approx(float(found), abs=1e-6)

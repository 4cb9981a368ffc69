"""The metrics against their definitions, worked out again in plain NumPy float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from swag.calibration import fit_temperature
from swag.metrics import (
    accuracy,
    adaptive_ece,
    brier,
    classwise_ece,
    ece,
    nll,
    reliability,
    score,
)
from tests.sampling import examples

Case: TypeAlias = tuple[Tensor, Tensor]


@st.composite
def predictions(draw: st.DrawFn) -> Case:
    """Probabilities of some sharpness, with exact zeros and ones now and then, and labels."""
    seed = draw(st.integers(0, 2**32 - 1))
    n, classes = draw(st.integers(1, 200)), draw(st.integers(2, 12))
    sharpness = draw(st.sampled_from([0.1, 1.0, 10.0, 1000.0]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(n, classes, generator=generator, dtype=dtype)
    labels = torch.randint(classes, (n,), generator=generator)
    return logits.softmax(dim=1), labels


def ece_by_definition(p: NDArray[Any], labels: NDArray[Any], bins: int) -> float:
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1, dtype=np.float32)
    index = np.minimum(np.digitize(confidence, edges) - 1, bins - 1)
    gaps = [
        np.sum(index == b) * abs(right[index == b].mean() - confidence[index == b].mean())
        for b in np.unique(index)
    ]
    return float(np.sum(gaps) / len(labels))


@given(predictions())
def test_metrics_equal_their_definitions(case: Case) -> None:
    probabilities, labels = case
    p, y = probabilities.double().numpy(), labels.numpy()
    one_hot = np.eye(p.shape[1])[y]
    assert accuracy(*case) == pytest.approx((p.argmax(axis=1) == y).mean())
    assert brier(*case) == pytest.approx(((p - one_hot) ** 2).sum(axis=1).mean(), abs=1e-12)
    limits = torch.finfo(probabilities.dtype)
    of_label = p[np.arange(len(y)), y]
    of_label[of_label == 0] = limits.tiny * limits.eps
    assert nll(*case) == pytest.approx(-np.log(of_label).mean(), abs=1e-9)


@given(predictions(), st.integers(1, 20))
def test_calibration_error_is_what_the_reliability_diagram_shows(case: Case, bins: int) -> None:
    diagram = reliability(*case, bins=bins)
    assert int(diagram.count.sum()) == len(case[1])
    held = diagram.count > 0
    gap = (diagram.accuracy - diagram.confidence).abs()[held]
    by_diagram = float((gap * diagram.count[held]).sum() / len(case[1]))
    assert ece(*case, bins=bins) == pytest.approx(by_diagram, abs=1e-12)
    inside = diagram.confidence[held]
    assert (inside >= diagram.edges[:-1][held] - 1e-6).all()
    assert (inside <= diagram.edges[1:][held] + 1e-6).all()


@given(predictions())
def test_calibration_error_equals_its_definition(case: Case) -> None:
    probabilities, labels = case
    expected = ece_by_definition(probabilities.float().numpy(), labels.numpy(), 15)
    assert ece(probabilities, labels) == pytest.approx(expected, abs=1e-5)


@examples(0.2)
@given(predictions())
def test_torchmetrics_finds_the_same(case: Case) -> None:
    """To the rounding of its float32."""
    from torchmetrics.functional import classification as theirs

    probabilities, labels = case
    k = probabilities.shape[1]
    # A confidence of exactly 1 has a bin of its own there, beyond the last.
    p = probabilities.float().clamp(max=1 - torch.finfo(torch.float32).eps)
    found = theirs.multiclass_calibration_error(p, labels, num_classes=k, n_bins=15, norm="l1")
    assert ece(*case) == pytest.approx(float(found), abs=1e-5)
    accuracy_there = theirs.multiclass_accuracy(p, labels, num_classes=k, average="micro")
    assert accuracy(*case) == pytest.approx(float(accuracy_there), abs=1e-6)
    of_classes = [
        theirs.binary_calibration_error(p[:, i].contiguous(), (labels == i).long(), n_bins=15)
        for i in range(k)
    ]
    assert classwise_ece(*case) == pytest.approx(float(np.mean(of_classes)), abs=1e-5)


def test_a_million_predictions() -> None:
    """The pixels of four masks, which sums in float32 make 41 times less calibrated."""
    generator = torch.Generator().manual_seed(0)
    n = 1_000_000
    sure = 0.7 + 0.001 * torch.rand(n, generator=generator)
    probabilities = torch.stack([sure, 1 - sure], dim=1)
    labels = (torch.rand(n, generator=generator) > 0.7005).long()
    right = (probabilities.argmax(dim=1) == labels).double()
    expected = abs(float(sure.double().mean() - right.mean()))
    assert expected < 1e-3
    for found in (
        ece(probabilities, labels),
        classwise_ece(probabilities, labels),
        adaptive_ece(probabilities, labels, bins=1),
        score(probabilities, labels).ece,
    ):
        assert found == pytest.approx(expected, abs=1e-7)
    assert accuracy(probabilities, labels) == float(right.mean())


@given(st.integers(0, 2**32), st.integers(1, 20))
def test_the_order_of_rows_makes_no_difference(seed: int, bins: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n = 100
    labels = torch.arange(n) // (n // 2)  # sorted, as many data sets are
    probabilities = torch.full((n, 2), 0.5)
    probabilities[: n // 3, 0], probabilities[: n // 3, 1] = 0.25, 0.75
    order = torch.randperm(n, generator=generator)
    for metric in (ece, adaptive_ece, classwise_ece):
        found = metric(probabilities[order], labels[order], bins=bins)
        assert found == pytest.approx(metric(probabilities, labels, bins=bins), abs=1e-12)
    assert adaptive_ece(torch.full((n, 2), 0.5), labels, bins=bins) == pytest.approx(0)


@pytest.mark.parametrize("bins", [0, -1, 1.5, "15"])
def test_bins_are_counted(bins: Any) -> None:
    p, y = torch.tensor([[0.5, 0.5]]), torch.tensor([0])
    for metric in (ece, adaptive_ece, classwise_ece, reliability, score):
        with pytest.raises(ValueError, match="bins must be a whole number, 1 or more"):
            metric(p, y, bins=bins)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_confidence_of_exactly_one_shares_the_last_bin(dtype: torch.dtype) -> None:
    # One quite sure and right, one certain and wrong: in one bin their errors partly cancel
    # (0.975 - 0.5); apart they would add up to (0.05 + 1) / 2.
    probabilities = torch.tensor([[0.95, 0.05], [1.0, 0.0]], dtype=dtype)
    assert ece(probabilities, torch.tensor([0, 1]), bins=10) == pytest.approx(0.475, abs=1e-6)


def test_a_probability_one_rounding_above_one_is_not_taken_for_a_logit() -> None:
    above = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)).item()
    probabilities = torch.tensor([[above, 0.0], [0.75, 0.25]])
    assert ece(probabilities, torch.tensor([0, 0]), bins=2) == pytest.approx(0.125)


def test_a_label_held_impossible_costs_much_but_not_everything() -> None:
    cost = nll(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert 100 < cost < 110


def test_perfect_predictions_score_perfectly() -> None:
    scores = score(torch.eye(4), torch.arange(4))
    assert (scores.accuracy, scores.nll, scores.brier) == (1.0, 0.0, 0.0)
    assert scores.ece == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.bool])
def test_labels_are_integers_of_any_kind(dtype: torch.dtype) -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]])
    labels = torch.tensor([0, 1, 1])
    assert score(probabilities, labels.to(dtype)) == score(probabilities, labels)
    for metric in (accuracy, nll, ece, brier, adaptive_ece, fit_temperature):
        assert metric(probabilities, labels.to(dtype)) == metric(probabilities, labels)


def test_many_classes_in_float32_are_probabilities_in_float64_too() -> None:
    logits = 3 * torch.randn(4, 50_000, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3])
    found = logits.softmax(dim=1)
    assert nll(found.double(), labels) == pytest.approx(nll(found, labels))


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (torch.tensor([[2.0, -1.0]]), torch.tensor([0]), "sum to one"),
        (torch.tensor([[3.0, 4.0]]), torch.tensor([0]), "sum to one"),
        (torch.tensor([[float("nan"), 0.5]]), torch.tensor([0]), "1 of 1 rows .* not finite"),
        (torch.tensor([[0.5, 0.5]]), torch.tensor([2]), "from 0 to 1"),
        (torch.tensor([[0.5, 0.5]]), torch.tensor([-1]), "from 0 to 1"),
        (torch.tensor([[0.5, 0.5]]), torch.tensor([0, 1]), r"shape \(1,\)"),
        (torch.tensor([0.5, 0.5]), torch.tensor([0, 1]), r"\(n, classes\)"),
        (torch.tensor([[1, 0]]), torch.tensor([0]), "float"),
        (torch.empty(0, 2), torch.empty(0, dtype=torch.int64), "no predictions"),
    ],
)
@pytest.mark.parametrize("metric", [accuracy, nll, ece, brier, reliability, score])
def test_what_are_not_probabilities_is_refused(
    metric: Callable[..., object], probabilities: Tensor, labels: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        metric(probabilities, labels)

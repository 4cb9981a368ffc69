"""How good predicted class probabilities are: accuracy, NLL, calibration error, Brier score.

Every function takes ``probabilities`` of shape (n, classes), float, each row summing to one, and
``labels`` of shape (n,), integers from 0 to classes - 1. A sum may be off, and a number be below
zero, by 0.001, and in dtypes of 16 bits by 0.01: such a number counts as zero, and one above 1 as
1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from swag._counts import count
from swag._probabilities import checked_pair

__all__ = [
    "Reliability",
    "Scores",
    "accuracy",
    "adaptive_ece",
    "brier",
    "classwise_ece",
    "ece",
    "nll",
    "reliability",
    "score",
]

DEFAULT_BINS = 15
"""Bins of confidence in calibration error and reliability diagrams, as Guo et al. 2017 use."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The four figures of one row of the table; all but accuracy are better when smaller."""

    accuracy: float
    """Fraction of labels predicted, 0 to 1."""
    nll: float
    """Mean negative log-likelihood of the labels, in nats."""
    ece: float
    """Expected calibration error, 0 to 1."""
    brier: float
    """Mean Brier score, 0 to 2."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """Predictions grouped by confidence; an empty bin has NaN for confidence and accuracy."""

    edges: Tensor
    """Bounds of the bins, shape (bins + 1,), from 0 to 1, float64."""
    count: Tensor
    """Predictions in each bin, shape (bins,), int64."""
    confidence: Tensor
    """Mean confidence in each bin, shape (bins,), float64."""
    accuracy: Tensor
    """Fraction predicted correctly in each bin, shape (bins,), float64."""


def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """Fraction of the labels that have the largest probability.

    Parameters
    ----------
    probabilities, labels
        As the module says.

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    ValueError
        Shapes, probabilities or labels are not as the module says.

    Examples
    --------
    >>> import torch
    >>> accuracy(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1]))
    0.5
    """
    probabilities, labels = checked_pair(probabilities, labels)
    return float((probabilities.argmax(dim=1) == labels).double().mean())


def nll(probabilities: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood of the labels, in nats.

    A probability of zero counts as the smallest positive number of its dtype, a subnormal one, so
    that one label held impossible does not make the whole infinite.

    Parameters
    ----------
    probabilities, labels
        As the module says.

    Returns
    -------
    float
        Zero or more, in nats a label.

    Raises
    ------
    ValueError
        Shapes, probabilities or labels are not as the module says.

    Examples
    --------
    >>> import torch
    >>> round(nll(torch.tensor([[0.5, 0.5]]), torch.tensor([0])), 4)
    0.6931
    """
    probabilities, labels = checked_pair(probabilities, labels)
    of_label = probabilities.gather(1, labels[:, None]).squeeze(1)
    limits = torch.finfo(of_label.dtype)
    # In float64, in which the subnormal numbers of narrower dtypes are normal ones.
    of_label = of_label.double()
    return float(-of_label.masked_fill(of_label == 0, limits.tiny * limits.eps).log().mean())


def ece(probabilities: Tensor, labels: Tensor, *, bins: int = DEFAULT_BINS) -> float:
    """Expected calibration error: by how much confidence and accuracy differ, on average.

    Predictions are put into bins of equal width by their confidence, the largest probability; the
    absolute differences of mean confidence and accuracy are averaged, weighted by the number in
    each bin (Guo et al. 2017, equation 3).

    Parameters
    ----------
    probabilities, labels
        As the module says.
    bins
        Number of bins over 0 to 1.

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    ValueError
        Shapes, probabilities or labels are not as the module says.

    Examples
    --------
    >>> import torch
    >>> sure = torch.tensor([[0.75, 0.25], [0.75, 0.25]])
    >>> ece(sure, torch.tensor([0, 1]))  # three quarters sure, right half the time
    0.25
    """
    probabilities, labels = checked_pair(probabilities, labels)
    confidence, guess = probabilities.max(dim=1)
    return _off(confidence, guess == labels, bins)


def adaptive_ece(probabilities: Tensor, labels: Tensor, *, bins: int = DEFAULT_BINS) -> float:
    """Expected calibration error in bins that hold equally many predictions.

    Where nearly all predictions are sure, as on MNIST, bins of equal width put them all into one;
    these do not (Nguyen & O'Connor 2015; Nixon et al. 2019 with the largest probability alone).

    Parameters
    ----------
    probabilities, labels
        As the module says.
    bins
        Number of bins; those of fewer predictions hold one each.

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    ValueError
        Shapes, probabilities or labels are not as the module says.

    Notes
    -----
    Predictions that are equally sure cannot be told apart. Where they fall into two bins, each
    counts with the accuracy of all of them, so that the order of the rows makes no difference.

    Examples
    --------
    >>> import torch
    >>> rows = torch.tensor([[0.75, 0.25], [1.0, 0.0]])
    >>> adaptive_ece(rows, torch.tensor([1, 0]), bins=2)  # off by 0.75 and by nothing
    0.375
    """
    probabilities, labels = checked_pair(probabilities, labels)
    count("bins", bins, least=1)
    confidence, guess = probabilities.max(dim=1)
    # What is equally sure cannot be told apart: all have the accuracy of all, in any order.
    _, which, sizes = torch.unique(confidence, return_inverse=True, return_counts=True)
    off = (guess == labels).double() - confidence.double()
    off = (torch.bincount(which, weights=off) / sizes)[which.sort().values]
    total = sum(abs(float(part.sum())) for part in torch.tensor_split(off, bins))
    return total / len(off)


def classwise_ece(probabilities: Tensor, labels: Tensor, *, bins: int = DEFAULT_BINS) -> float:
    """Expected calibration error of every class's probability, averaged over the classes.

    `ece` looks at the largest probability alone; this at all (Kull et al. 2019, equation 3).

    Parameters
    ----------
    probabilities, labels
        As the module says.
    bins
        Number of bins over 0 to 1.

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    ValueError
        Shapes, probabilities or labels are not as the module says.

    Examples
    --------
    >>> import torch
    >>> rows = torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]])
    >>> round(classwise_ece(rows, torch.tensor([0, 1])), 4)  # (0.2 + 0.3 + 0.1) / 3
    0.2
    """
    probabilities, labels = checked_pair(probabilities, labels)
    found = [
        _off(of_class, labels == k, bins) for k, of_class in enumerate(probabilities.T.contiguous())
    ]
    return math.fsum(found) / len(found)


def brier(probabilities: Tensor, labels: Tensor) -> float:
    """Mean squared distance of the probabilities from the one-hot label, summed over classes.

    Parameters
    ----------
    probabilities, labels
        As the module says.

    Returns
    -------
    float
        0 to 2 (Brier 1950, equation 2).

    Raises
    ------
    ValueError
        Shapes, probabilities or labels are not as the module says.

    Examples
    --------
    >>> import torch
    >>> brier(torch.tensor([[0.75, 0.25]]), torch.tensor([0]))
    0.125
    """
    probabilities, labels = checked_pair(probabilities, labels)
    probabilities = probabilities.double()
    target = torch.nn.functional.one_hot(labels, probabilities.shape[1])
    return float((probabilities - target).square().sum(dim=1).mean())


def reliability(probabilities: Tensor, labels: Tensor, *, bins: int = DEFAULT_BINS) -> Reliability:
    """Group predictions by confidence, with the same bins as :func:`ece`.

    Parameters
    ----------
    probabilities, labels
        As the module says.
    bins
        Number of bins over 0 to 1.

    Returns
    -------
    Reliability
        Count, mean confidence and accuracy of each bin.

    Raises
    ------
    ValueError
        Shapes, probabilities or labels are not as the module says.

    Examples
    --------
    >>> import torch
    >>> sure = torch.tensor([[0.75, 0.25], [0.75, 0.25]])
    >>> diagram = reliability(sure, torch.tensor([0, 1]), bins=2)
    >>> diagram.count.tolist(), diagram.accuracy.tolist()
    ([0, 2], [nan, 0.5])
    """
    probabilities, labels = checked_pair(probabilities, labels)
    confidence, guess = probabilities.max(dim=1)
    edges, sizes, said, right = _binned(confidence, guess == labels, bins)
    return Reliability(edges, sizes, confidence=said / sizes, accuracy=right / sizes)


def score(probabilities: Tensor, labels: Tensor, *, bins: int = DEFAULT_BINS) -> Scores:
    """Accuracy, NLL, ECE and Brier score of one set of predictions.

    Parameters
    ----------
    probabilities, labels
        As the module says.
    bins
        Number of bins of the calibration error.

    Returns
    -------
    Scores
        The four figures.

    Raises
    ------
    ValueError
        Shapes, probabilities or labels are not as the module says.

    Examples
    --------
    >>> import torch
    >>> score(torch.tensor([[0.75, 0.25]]), torch.tensor([0]))
    Scores(accuracy=1.0, nll=0.2876820724517809, ece=0.25, brier=0.125)
    """
    return Scores(
        accuracy=accuracy(probabilities, labels),
        nll=nll(probabilities, labels),
        ece=ece(probabilities, labels, bins=bins),
        brier=brier(probabilities, labels),
    )


def _binned(values: Tensor, right: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Edges of bins, and of each bin the count and the sums of values and of what is right.

    Bins are closed on the left, and the last one on both sides. The sums are of float64: in
    float32, those of a million predictions are off by more than the error that is looked for.
    """
    count("bins", bins, least=1)
    edges = torch.linspace(0, 1, bins + 1, device=values.device, dtype=torch.float32)
    index = (torch.bucketize(values.float(), edges, right=True) - 1).clamp(max=bins - 1)
    return (
        edges.double(),
        torch.bincount(index, minlength=bins),
        torch.bincount(index, weights=values.double(), minlength=bins),
        torch.bincount(index, weights=right.double(), minlength=bins),
    )


def _off(values: Tensor, right: Tensor, bins: int) -> float:
    """The calibration error of one probability of each prediction."""
    _, _, said, found = _binned(values, right, bins)
    return float((said - found).abs().sum()) / len(values)

"""How good predicted class probabilities are: accuracy, NLL, calibration error, Brier score.

Every function takes ``probabilities`` of shape (n, classes), float, each row summing to one, and
``labels`` of shape (n,), integers from 0 to classes - 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
    from torchmetrics.functional.classification import multiclass_accuracy

    probabilities, labels = _checked(probabilities, labels)
    found = multiclass_accuracy(
        probabilities, labels, num_classes=probabilities.shape[1], average="micro"
    )
    return float(found)


def nll(probabilities: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood of the labels, in nats.

    A probability of zero counts as the smallest positive normal number of its dtype, so that one
    label held impossible does not make the whole infinite.

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
    probabilities, labels = _checked(probabilities, labels)
    of_label = probabilities.gather(1, labels[:, None]).squeeze(1)
    tiny = torch.finfo(of_label.dtype).tiny
    return float(-of_label.clamp(min=tiny).double().log().mean())


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
    from torchmetrics.functional.classification import multiclass_calibration_error

    # torchmetrics counts in float32, and gives a confidence of exactly 1 a bin of its own, beyond
    # the last. A network sure of itself reaches 1 there on most images, so they are moved by one
    # rounding into the last bin.
    probabilities, labels = _checked(probabilities, labels)
    probabilities = probabilities.float()
    below_one = probabilities.clamp(max=1 - torch.finfo(torch.float32).eps)
    found = multiclass_calibration_error(
        below_one, labels, num_classes=probabilities.shape[1], n_bins=bins, norm="l1"
    )
    return float(found)


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

    Examples
    --------
    >>> import torch
    >>> rows = torch.tensor([[0.75, 0.25], [1.0, 0.0]])
    >>> adaptive_ece(rows, torch.tensor([1, 0]), bins=2)  # off by 0.75 and by nothing
    0.375
    """
    probabilities, labels = _checked(probabilities, labels)
    confidence, guess = probabilities.max(dim=1)
    order = confidence.argsort(stable=True)
    off = ((guess == labels).double() - confidence.double())[order]
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
    from torchmetrics.functional.classification import binary_calibration_error

    probabilities, labels = _checked(probabilities, labels)
    probabilities = probabilities.float()
    below_one = probabilities.clamp(max=1 - torch.finfo(torch.float32).eps)
    found = [
        binary_calibration_error(of_class, (labels == k).long(), n_bins=bins, norm="l1")
        for k, of_class in enumerate(below_one.T.contiguous())
    ]
    return float(torch.stack(found).mean())


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
    probabilities, labels = _checked(probabilities, labels)
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
    probabilities, labels = _checked(probabilities, labels)
    confidence, guess = probabilities.max(dim=1)
    # The edges in float32 and bins closed on the left, as torchmetrics has them.
    edges = torch.linspace(0, 1, bins + 1, device=confidence.device, dtype=torch.float32)
    index = (torch.bucketize(confidence.float(), edges, right=True) - 1).clamp(max=bins - 1)
    count = torch.bincount(index, minlength=bins)
    right = (guess == labels).double()
    return Reliability(
        edges=edges.double(),
        count=count,
        confidence=torch.bincount(index, weights=confidence.double(), minlength=bins) / count,
        accuracy=torch.bincount(index, weights=right, minlength=bins) / count,
    )


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


def _checked(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Refuse what are not probabilities and labels; return them within 0 to 1 exactly, and int64.

    torchmetrics takes any number above 1, were it by one rounding, as a sign that it was given
    logits, and puts the whole tensor through a softmax without a word.
    """
    for name, value in (("probabilities", probabilities), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} are a torch.Tensor, and this is {type(value).__name__}: torch.as_tensor "
                "makes one of it"
            )
    if probabilities.ndim != 2 or not probabilities.is_floating_point():
        raise ValueError(
            "probabilities must be a float tensor of shape (n, classes),"
            f" not {probabilities.dtype} of shape {tuple(probabilities.shape)}"
        )
    if labels.shape != probabilities.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"labels must be integers of shape ({probabilities.shape[0]},),"
            f" not {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if not len(labels):
        raise ValueError("there are no predictions to score")
    if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        raise ValueError(f"labels must be from 0 to {probabilities.shape[1] - 1}")
    # Those in float64 may have come from a softmax in float32.
    tolerance = 1e-3 if probabilities.dtype.itemsize >= 4 else 1e-2
    if diverged := int((~probabilities.isfinite()).any(dim=1).sum()):
        raise ValueError(
            f"{diverged} of {len(labels)} rows of probabilities are not finite: a network that was "
            "averaged has diverged; predict_each(...) gives the outputs of each"
        )
    total = probabilities.sum(dim=1)
    if not bool(((total - 1).abs() <= tolerance).all() and (probabilities >= -tolerance).all()):
        raise ValueError("each row of probabilities must be non-negative and sum to one")
    return probabilities.clamp(0, 1), labels.long()

"""How far predictions can be trusted: entropy, what draws disagree about, what is left out.

Where a function takes ``probabilities`` they are float, each row summing to one: of shape
(n, classes), or (draws, n, classes) where what single networks of a posterior say is compared. A
sum may be off, and a number be below zero, by 0.001, and in dtypes of 16 bits by 0.01: such a
number counts as zero, and one above 1 as 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from swag._probabilities import checked, checked_pair, refuse_others

__all__ = [
    "RiskCoverage",
    "auroc",
    "disagreement",
    "fpr95",
    "mutual_information",
    "predictive_entropy",
    "risk_coverage",
]


def predictive_entropy(probabilities: Tensor) -> Tensor:
    """How undecided each prediction is.

    Parameters
    ----------
    probabilities
        Shape (..., classes).

    Returns
    -------
    torch.Tensor
        Shape (...), float64, in nats: 0 where one class is certain, to the log of the classes.

    Raises
    ------
    ValueError
        They are no probabilities: not finite, negative, or their sum is not one.

    Examples
    --------
    >>> predictive_entropy(torch.tensor([[0.5, 0.5], [0.0, 1.0]]))
    tensor([0.6931, 0.0000], dtype=torch.float64)
    """
    return _entropy(checked(probabilities).double())


def mutual_information(probabilities: Tensor) -> Tensor:
    """How much of the entropy comes from not knowing the weights.

    The entropy of the mean of the draws less the mean of their entropies (Houlsby et al. 2011,
    equation 2): what a label would tell about which network is the right one.

    Parameters
    ----------
    probabilities
        Shape (draws, n, classes).

    Returns
    -------
    torch.Tensor
        Shape (n,), float64, in nats; 0 where all draws say the same.

    Raises
    ------
    ValueError
        There is no axis of draws, or they are no probabilities.

    Examples
    --------
    >>> certain = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])  # two networks, each sure of itself
    >>> mutual_information(certain)
    tensor([0.6931], dtype=torch.float64)
    """
    probabilities = _of_draws(probabilities).double()
    found = _entropy(probabilities.mean(dim=0)) - _entropy(probabilities).mean(dim=0)
    return found.clamp(min=0)  # rounding


def disagreement(probabilities: Tensor) -> Tensor:
    """The fraction of the draws that would choose another class than their mean does.

    Known as the variation ratio, of the class that the mean chooses.

    Parameters
    ----------
    probabilities
        Shape (draws, n, classes).

    Returns
    -------
    torch.Tensor
        Shape (n,), float64, 0 to 1.

    Raises
    ------
    ValueError
        There is no axis of draws, or they are no probabilities.

    Examples
    --------
    >>> disagreement(torch.tensor([[[0.9, 0.1]], [[0.8, 0.2]], [[0.4, 0.6]], [[0.6, 0.4]]]))
    tensor([0.2500], dtype=torch.float64)
    """
    probabilities = _of_draws(probabilities)
    chosen = probabilities.double().mean(dim=0).argmax(dim=-1)
    return (probabilities.argmax(dim=-1) != chosen).double().mean(dim=0)


def auroc(inside: Tensor, outside: Tensor) -> float:
    """How well a score tells what lies outside the distribution from what lies inside.

    Parameters
    ----------
    inside, outside
        Scores that are larger outside, such as the entropy, shapes (n,) and (m,).

    Returns
    -------
    float
        The probability that one from outside has the larger score, ties counting half: 1 where all
        have, 1/2 where the score says nothing.

    Raises
    ------
    ValueError
        There are no scores, or one is NaN.

    Examples
    --------
    >>> auroc(torch.tensor([0.1, 0.2, 0.5]), torch.tensor([0.4, 0.9]))
    0.8333333333333334
    """
    scores = _scores(inside, outside)
    _, ranks = torch.unique(scores, return_inverse=True)
    here, there = (torch.bincount(part, minlength=len(scores)).double() for part in
                   (ranks[: len(inside)], ranks[len(inside) :]))  # fmt: skip
    below = here.cumsum(dim=0) - here / 2  # of each score; ties count half
    return float((there * below).sum() / (len(inside) * len(outside)))


def fpr95(inside: Tensor, outside: Tensor) -> float:
    """How much from outside is taken for inside where 95 % of what is inside is accepted.

    Parameters
    ----------
    inside, outside
        As for `auroc`.

    Returns
    -------
    float
        0 to 1: the fraction of `outside` whose score is not above the smallest threshold that
        accepts at least 95 % of `inside`.

    Raises
    ------
    ValueError
        There are no scores, or one is NaN.

    Examples
    --------
    >>> fpr95(torch.arange(100.0), torch.tensor([50.0, 94.0, 95.0, 200.0]))
    0.5
    """
    _scores(inside, outside)
    needed = -(-95 * len(inside) // 100)
    threshold = inside.sort().values[needed - 1]
    return float((outside <= threshold).double().mean())


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """What is gained by leaving the least certain predictions to somebody else."""

    coverage: Tensor
    """Fractions of the predictions kept, shape (n,), float64, from 1/n to 1."""
    risk: Tensor
    """Fraction of those that are wrong, shape (n,), float64."""

    @property
    def area(self) -> float:
        """The mean risk over all coverages, known as AURC."""
        return float(self.risk.mean())

    def risk_at(self, coverage: float) -> float:
        """The risk where at least this fraction is kept, above 0 and up to 1."""
        if not 0 < coverage <= 1:
            raise ValueError(f"a coverage is above 0 and at most 1, not {coverage}")
        return float(self.risk[int((self.coverage >= coverage - 1e-12).double().argmax())])


def risk_coverage(probabilities: Tensor, labels: Tensor) -> RiskCoverage:
    """Selective prediction: keep the most confident, and see how many of them are wrong.

    Of equal confidence, the first come first (El-Yaniv & Wiener 2010; the area is that of Geifman
    and El-Yaniv 2017).

    Parameters
    ----------
    probabilities
        Shape (n, classes).
    labels
        Shape (n,), integers.

    Returns
    -------
    RiskCoverage
        A point for every number kept.

    Raises
    ------
    ValueError
        They are not probabilities and labels, as `swag.metrics` has them.

    Examples
    --------
    >>> probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
    >>> curve = risk_coverage(probabilities, torch.tensor([0, 1, 1]))
    >>> curve.risk
    tensor([0.0000, 0.0000, 0.3333], dtype=torch.float64)
    >>> round(curve.area, 4), curve.risk_at(0.5)
    (0.1111, 0.0)
    """
    probabilities, labels = checked_pair(probabilities, labels)
    confidence, chosen = probabilities.max(dim=1)
    order = confidence.argsort(descending=True, stable=True)
    wrong = (chosen != labels)[order].double().cumsum(dim=0)
    kept = torch.arange(1, len(labels) + 1, dtype=torch.float64, device=wrong.device)
    return RiskCoverage(coverage=kept / len(labels), risk=wrong / kept)


def _entropy(probabilities: Tensor) -> Tensor:
    terms: Tensor = torch.special.entr(probabilities)
    return terms.sum(dim=-1)


def _of_draws(probabilities: Tensor) -> Tensor:
    refuse_others(probabilities, "probabilities")
    if probabilities.ndim != 3 or not len(probabilities):
        raise ValueError(
            "probabilities of draws have the shape (draws, n, classes), not "
            f"{tuple(probabilities.shape)}"
        )
    return checked(probabilities)


def _scores(inside: Tensor, outside: Tensor) -> Tensor:
    refuse_others(inside, "scores")
    refuse_others(outside, "scores")
    if inside.ndim != 1 or outside.ndim != 1 or not len(inside) or not len(outside):
        raise ValueError(
            f"scores have the shapes (n,) and (m,), not {tuple(inside.shape)} and "
            f"{tuple(outside.shape)}"
        )
    scores = torch.cat([inside, outside])
    if scores.isnan().any():
        raise ValueError("a score is NaN: it tells nothing from anything")
    return scores

"""Temperature scaling of predicted class probabilities (Guo et al. 2017)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from swag._probabilities import checked, checked_pair

__all__ = ["fit_temperature", "tempered"]

_RANGE = 1e3
"""Temperatures are between this and its reciprocal."""
_HALVINGS = 60


def tempered(probabilities: Tensor, temperature: float) -> Tensor:
    """Raise probabilities to the power 1 / temperature, and make each row sum to one again.

    The probabilities of a posterior are averages, and have no logits of their own: their logarithms
    take that place.

    Parameters
    ----------
    probabilities
        Shape (..., classes), float.
    temperature
        Above 1 for less confidence, below 1 for more.

    Returns
    -------
    torch.Tensor
        Shape and dtype of `probabilities`.

    Raises
    ------
    ValueError
        The temperature is not positive, or they are no probabilities.

    Examples
    --------
    >>> tempered(torch.tensor([[0.8, 0.2]]), 2.0)
    tensor([[0.6667, 0.3333]])
    """
    if not temperature > 0:
        raise ValueError(f"a temperature is positive, not {temperature}")
    probabilities = checked(probabilities)
    return (_logits(probabilities) / temperature).softmax(dim=-1).to(probabilities.dtype)


def fit_temperature(probabilities: Tensor, labels: Tensor) -> float:
    """The temperature with which labels that were held out are most likely.

    The likelihood has one maximum, which bisection of its derivative finds to rounding.

    Parameters
    ----------
    probabilities
        Shape (n, classes), float, each row summing to one; of data that nothing was fitted to.
    labels
        Shape (n,), integers.

    Returns
    -------
    float
        From 0.001 to 1000; the ends where no temperature between them is best.

    Raises
    ------
    ValueError
        They are not probabilities and labels, as `swag.metrics` has them.

    Examples
    --------
    >>> sure = torch.tensor([[0.99, 0.01]]).expand(10, 2)
    >>> labels = torch.tensor([0] * 8 + [1] * 2)  # right eight times in ten
    >>> temperature = fit_temperature(sure, labels)
    >>> tempered(sure, temperature)[0]
    tensor([0.8000, 0.2000])
    """
    probabilities, labels = checked_pair(probabilities, labels)
    logits = _logits(probabilities)
    of_label = logits.gather(1, labels[:, None]).squeeze(1)
    low, high = -math.log(_RANGE), math.log(_RANGE)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        # The derivative of the mean NLL by 1 / temperature.
        expected = ((logits * math.exp(-middle)).softmax(dim=1) * logits).sum(dim=1)
        if float((expected - of_label).mean()) > 0:  # too sure
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def _logits(probabilities: Tensor) -> Tensor:
    tiny = torch.finfo(probabilities.dtype).tiny
    return probabilities.clamp(min=tiny).double().log()

"""Temperature scaling of predicted class probabilities (Guo et al. 2017).

By how much these may be off is said in `swag.metrics`.
"""

from __future__ import annotations

import math

from torch import Tensor

from swag._probabilities import checked, checked_pair

__all__ = ["fit_temperature", "tempered"]

_RANGE = 1e3
"""Temperatures are between this and its reciprocal."""
_HALVINGS = 60


def tempered(probabilities: Tensor, temperature: float) -> Tensor:
    """Raise probabilities to the power 1 / temperature, and make each row sum to one again.

    The probabilities of a posterior are averages, and have no logits of their own: their logarithms
    take that place. Zero stays zero.

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
    >>> import torch
    >>> tempered(torch.tensor([[0.8, 0.2]]), 2.0)
    tensor([[0.6667, 0.3333]])
    """
    if not temperature > 0:
        raise ValueError(f"a temperature is positive, not {temperature}")
    probabilities = checked(probabilities)
    logits = probabilities.double().log()
    # The largest is exactly zero, and the others are below, whatever the temperature.
    cooled = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
    cooled = cooled.masked_fill(probabilities == 0, -math.inf)
    return cooled.softmax(dim=-1).to(probabilities.dtype)


def fit_temperature(probabilities: Tensor, labels: Tensor) -> float:
    """The temperature with which labels that were held out are most likely.

    The likelihood has one maximum, which bisection of its derivative finds to rounding. A label
    whose probability is zero is impossible at any temperature, and is left out.

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
        They are not probabilities and labels, as `swag.metrics` has them, or every label has the
        probability zero.

    Examples
    --------
    >>> import torch
    >>> sure = torch.tensor([[0.99, 0.01]]).expand(10, 2)
    >>> labels = torch.tensor([0] * 8 + [1] * 2)  # right eight times in ten
    >>> temperature = fit_temperature(sure, labels)
    >>> tempered(sure, temperature)[0]
    tensor([0.8000, 0.2000])
    """
    probabilities, labels = checked_pair(probabilities, labels)
    logits = probabilities.double().log()
    of_label = logits.gather(1, labels[:, None]).squeeze(1)
    possible = of_label > -math.inf
    if not possible.any():
        raise ValueError("every label has the probability zero, whatever the temperature")
    logits, of_label = logits[possible], of_label[possible]
    summands = logits.masked_fill(logits == -math.inf, 0)  # of what has no probability
    low, high = -math.log(_RANGE), math.log(_RANGE)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        # The derivative of the mean NLL by 1 / temperature.
        expected = ((logits * math.exp(-middle)).softmax(dim=1) * summands).sum(dim=1)
        if float((expected - of_label).mean()) > 0:  # too sure
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)

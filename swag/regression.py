"""Predictions of numbers: a mean, and a variance in two parts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from swag._probabilities import refuse_others

__all__ = ["GaussianPrediction", "refuse_no_variance"]

_POINTS_A_DECADE = 8
_WIDEST = 1e-30
"""Of the largest noise, the least that is tried."""
_NOTHING = 1e-8
"""Of a variance, what makes no difference to it."""
_HALVINGS = 60


def refuse_no_variance(noise: float | Tensor) -> None:
    """Raise where a number is none that a variance can be."""
    if not bool((torch.as_tensor(noise, device="cpu") >= 0).all()):
        raise ValueError("noise is a variance, and one is negative, or NaN")


@dataclass(frozen=True, slots=True)
class GaussianPrediction:
    """What networks drawn from a posterior predict of a number, as a Gaussian.

    Each network says N(f, s), s being the variance of the observations around it. Their mixture has
    the mean of the f, and, by the law of total variance, the variance of the f and the mean of the
    s (Lakshminarayanan et al. 2017, section 2.4). `Posterior.predict_regression` makes it.

    Examples
    --------
    >>> prediction = GaussianPrediction(
    ...     torch.tensor([1.0]), epistemic=torch.tensor([0.09]), noise=torch.tensor([0.16])
    ... )
    >>> prediction.variance, prediction.std
    (tensor([0.2500]), tensor([0.5000]))
    >>> low, high = prediction.interval(0.95)
    >>> round(float(high - low), 2)
    1.96
    """

    mean: Tensor
    """Shape (n, ...)."""
    epistemic: Tensor
    """Variance of the networks' outputs, divided by their number, shape (n, ...)."""
    noise: Tensor
    """Variance of the observations around an output, averaged over networks, shape (n, ...)."""

    @property
    def variance(self) -> Tensor:
        """Of an observation, shape (n, ...)."""
        return self.epistemic + self.noise

    @property
    def std(self) -> Tensor:
        """Its root."""
        return self.variance.sqrt()

    def with_noise(self, noise: float | Tensor) -> GaussianPrediction:
        """The same with other noise, a variance that broadcasts to the mean's shape.

        Raises
        ------
        ValueError
            One is negative or NaN.
        """
        refuse_no_variance(noise)
        value = torch.as_tensor(noise, dtype=self.mean.dtype, device=self.mean.device)
        return GaussianPrediction(self.mean, self.epistemic, value.expand_as(self.mean))

    def log_prob(self, targets: Tensor) -> Tensor:
        """The log of the density at observations, shape (n, ...), in nats.

        Of the Gaussian, that is, and not of the mixture whose mean and variance it has. Where its
        variance is zero, as of one network without noise, that is infinite: above zero at the mean,
        and below it elsewhere.

        Raises
        ------
        ValueError
            The targets have another shape.
        """
        self._refuse_unlike(targets)
        variance, squares = self.variance, (targets - self.mean) ** 2
        found = -0.5 * (squares / variance + (2 * math.pi * variance).log())
        # All there is of a Gaussian without a variance is at its mean.
        none = torch.where(squares == 0, math.inf, -math.inf).to(found.dtype)
        return torch.where((variance == 0) & ~squares.isnan(), none, found)

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        """The central interval that an observation is in with a probability, low end and high."""
        if not 0 < level < 1:
            raise ValueError(f"a level is between 0 and 1, not {level}")
        exact = torch.tensor(level, dtype=torch.float64, device="cpu")
        width = self.std * math.sqrt(2) * float(torch.erfinv(exact))
        return self.mean - width, self.mean + width

    def fitted_noise(self, targets: Tensor) -> Tensor:
        """The noise that makes observations most likely, one for each output.

        Parameters
        ----------
        targets
            Observations, shape (n, ...), that the networks were not trained on.

        Returns
        -------
        torch.Tensor
            Variances, of the shape of one row, for `with_noise`.

        Raises
        ------
        ValueError
            The targets have another shape, or some are not finite.

        Examples
        --------
        >>> targets = torch.tensor([1.0, -1.0, 2.0, -2.0])
        >>> zero = torch.zeros(4)
        >>> GaussianPrediction(zero, zero, zero).fitted_noise(targets)
        tensor(2.5000)
        """
        self._refuse_unlike(targets)
        squares = (targets.double() - self.mean.double()) ** 2
        if not bool(squares.isfinite().all()):
            raise ValueError("targets or predictions are not finite: nothing can be fitted to them")
        epistemic = self.epistemic.double()

        def misfit(noise: Tensor) -> Tensor:
            variance = epistemic + noise
            return (squares / variance + variance.log()).sum(dim=0)

        # None is above the largest square, and what is nothing beside each square and epistemic
        # variance is as good as none: a residual that its own variance explains may be far larger
        # than the others. A grid finds the valley, thirds of it the bottom.
        most = squares.amax(dim=0).clamp_min(1e-30)
        scales = torch.cat([squares, epistemic, most[None]])
        least = scales.masked_fill(~(scales > 0), math.inf).amin(dim=0) * _NOTHING
        decades = (most / least.maximum(most * _WIDEST)).log10()
        steps = math.ceil(float(decades.max()) * _POINTS_A_DECADE)
        width = decades / steps
        tried = torch.stack([misfit(most * 10 ** (width * i - decades)) for i in range(steps + 1)])
        best = width * tried.argmin(dim=0) - decades
        low, high = best - width, best + width
        for _ in range(_HALVINGS):
            one, other = low + (high - low) / 3, high - (high - low) / 3
            left = misfit(most * 10**one) < misfit(most * 10**other)
            low, high = torch.where(left, low, one), torch.where(left, other, high)
        return (most * 10 ** ((low + high) / 2)).to(self.mean.dtype)

    def _refuse_unlike(self, targets: Tensor) -> None:
        refuse_others(targets, "targets")
        if targets.shape != self.mean.shape:
            # Broadcasting (n,) against (n, 1) would pair every target with every prediction.
            raise ValueError(
                f"the targets have shape {tuple(targets.shape)}, and the predictions "
                f"{tuple(self.mean.shape)}: reshape one of them"
            )

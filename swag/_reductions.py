"""What is made of the outputs of many networks, batch by batch, without keeping them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Literal, Protocol, TypeVar, cast

import torch
from torch import Tensor

from swag._forward import tensor_of
from swag.regression import GaussianPrediction, refuse_no_variance

__all__ = [
    "Activation",
    "Average",
    "GaussianMixture",
    "Noise",
    "Reduction",
    "Stack",
    "activation_of",
]

R_co = TypeVar("R_co", covariant=True)

Activation = Literal["softmax", "sigmoid", "none"] | Callable[[Tensor], Tensor]
"""What makes outputs of a network into what is averaged."""

Noise = float | Tensor | Literal["learned"] | None
"""Variance of the observations around a network's output; "learned" where the network gives it."""


class Reduction(Protocol[R_co]):
    """Takes the outputs of networks; every network gives its own for a batch, then for the next."""

    def take(self, outputs: Any) -> tuple[Tensor, ...]:
        """The tensors of a model's outputs that are needed."""

    def add(self, network: int, batch: int, taken: tuple[Tensor, ...]) -> None:
        """Take in what a network, of all, made of a batch, of those at hand."""

    def over(self) -> None:
        """All networks have seen the batches at hand; those to come are others."""

    def result(self) -> R_co:
        """What came out, for all batches in their order."""


def activation_of(activation: Activation) -> Callable[[Tensor], Tensor]:
    """The function that is meant.

    Raises
    ------
    ValueError
        There is none of that name.
    """
    if callable(activation):
        return activation
    known = {"softmax": _softmax, "sigmoid": torch.sigmoid, "none": lambda outputs: outputs}
    if activation not in known:
        raise ValueError(
            f"activation={activation!r}: use {', '.join(map(repr, known))} or a function, such as "
            "torch.nn.Softmax(dim=1)"
        )
    return cast("Callable[[Tensor], Tensor]", known[activation])


def _softmax(outputs: Tensor) -> Tensor:
    if outputs.ndim > 1 and outputs.shape[1] == 1:
        raise ValueError(
            f"the network gives outputs of shape {tuple(outputs.shape)}, and the softmax of one "
            'class is 1 whatever it is: use activation="sigmoid" for the probability of one class, '
            'or "none" for regression'
        )
    if outputs.ndim in (0, 1, 3):
        raise ValueError(
            f"the network gives outputs of shape {tuple(outputs.shape)}, and which axis the "
            "classes are on has to be said: activation=torch.nn.Softmax(dim=1), for example"
        )
    return torch.softmax(outputs, dim=1)


def _factors(networks: int, shares: Sequence[float] | None) -> list[float]:
    """What each network counts, on average 1."""
    return [1.0] * networks if shares is None else [networks * share for share in shares]


def _wide(outputs: Tensor) -> Tensor:
    return outputs if outputs.dtype == torch.float64 else outputs.float()


def _summed(outputs: Tensor) -> Tensor:
    """In what sums over networks are taken: of many large numbers, float32 would stand still."""
    return outputs if outputs.device.type == "mps" else outputs.double()  # which has no float64


class Average:
    """The mean over networks of a function of their outputs.

    Parameters
    ----------
    networks
        How many there are.
    activation
        The function; of float32 or wider.
    shares
        Of each network, together 1; equal ones if None.
    """

    def __init__(
        self,
        networks: int,
        activation: Callable[[Tensor], Tensor],
        shares: Sequence[float] | None = None,
    ) -> None:
        self._factors = _factors(networks, shares)
        self._networks = networks
        self._activation = activation
        self._dtype = torch.float32
        self._sums: list[Tensor] = []
        self._results: list[Tensor] = []

    def take(self, outputs: Any) -> tuple[Tensor, ...]:
        """The predictions."""
        return (tensor_of(outputs),)

    def add(self, network: int, batch: int, taken: tuple[Tensor, ...]) -> None:
        """Add to the sum."""
        found = self._activation(_wide(taken[0]))
        self._dtype = found.dtype
        weighed = self._factors[network] * _summed(found)
        if network:
            self._sums[batch] += weighed
        else:
            self._sums.append(weighed)

    def over(self) -> None:
        """Divide the sums."""
        self._results += [(total / self._networks).to(self._dtype) for total in self._sums]
        self._sums = []

    def result(self) -> Tensor:
        """Shape (n, ...)."""
        return torch.cat(self._results)


class Stack:
    """The outputs themselves.

    Parameters
    ----------
    networks
        How many there are.
    activation
        A function of each.
    """

    def __init__(self, networks: int, activation: Callable[[Tensor], Tensor]) -> None:
        self._activation = activation
        self._outputs: list[list[Tensor]] = [[] for _ in range(networks)]

    def take(self, outputs: Any) -> tuple[Tensor, ...]:
        """The predictions."""
        return (tensor_of(outputs),)

    def add(self, network: int, batch: int, taken: tuple[Tensor, ...]) -> None:
        """Keep them."""
        self._outputs[network].append(self._activation(_wide(taken[0])).clone())

    def over(self) -> None:
        """Nothing is left to do."""

    def result(self) -> Tensor:
        """Shape (networks, n, ...)."""
        return torch.stack([torch.cat(parts) for parts in self._outputs])


class GaussianMixture:
    """Mean and variance of a mixture of Gaussians, one for each network.

    Parameters
    ----------
    networks
        How many there are.
    noise
        The variance of each, if not the network's own.
    shares
        Of each network, together 1; equal ones if None.
    """

    def __init__(self, networks: int, noise: Noise, shares: Sequence[float] | None = None) -> None:
        if isinstance(noise, str) and noise != "learned":
            raise ValueError(f'noise={noise!r}: use a variance, "learned" or None')
        if isinstance(noise, float | int | Tensor):
            refuse_no_variance(noise)
        self._factors = _factors(networks, shares)
        self._so_far = list(accumulate(self._factors))
        self._networks = networks
        self._noise = noise
        self._dtype = torch.float32
        self._now: list[list[Tensor]] = []
        self._results: list[list[Tensor]] = []

    def take(self, outputs: Any) -> tuple[Tensor, ...]:
        """The mean, and the variance where the network gives it."""
        if not isinstance(self._noise, str):
            return (tensor_of(outputs),)
        pair = tuple(outputs) if isinstance(outputs, tuple | list) else ()
        if len(pair) != 2 or not all(isinstance(item, Tensor) for item in pair):
            raise TypeError(
                'with noise="learned" a network gives two tensors, mean and variance, as '
                f"torch.nn.GaussianNLLLoss takes them, not a {type(outputs).__name__}: give "
                "forward= to make them of what it gives"
            )
        return pair

    def add(self, network: int, batch: int, taken: tuple[Tensor, ...]) -> None:
        """Take a network into mean and squared deviations (West 1979), and its noise."""
        self._dtype = _wide(taken[0]).dtype
        mean = _summed(_wide(taken[0]))
        noise = _summed(_wide(taken[1])) if len(taken) > 1 else torch.zeros_like(mean)
        factor = self._factors[network]
        if len(taken) > 1 and not bool((noise >= 0).all()):
            raise ValueError(
                "the network's second output is a variance, and some are negative: where it is a "
                "logarithm, give forward= that takes exp() of it"
            )
        if not network:
            first = factor * noise.expand_as(mean)
            self._now.append([mean.clone(), torch.zeros_like(mean), first])
            return
        middle, squares, noises = self._now[batch]
        before = mean - middle
        if factor:
            middle += before * (factor / self._so_far[network])
            squares += factor * before * (mean - middle)
            noises += factor * noise

    def over(self) -> None:
        """Divide the sums."""
        n = self._networks
        self._results += [
            [part.to(self._dtype) for part in (middle, squares / n, noises / n)]
            for middle, squares, noises in self._now
        ]
        self._now = []

    def result(self) -> GaussianPrediction:
        """Mean, and both parts of the variance."""
        mean, epistemic, noise = (torch.cat(parts) for parts in zip(*self._results, strict=True))
        found = GaussianPrediction(mean, epistemic, noise)
        if self._noise is None or isinstance(self._noise, str):
            return found
        return found.with_noise(self._noise)

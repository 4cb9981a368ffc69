"""Several posteriors as one: a mixture of Gaussians, one for each independent training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from swag._counts import count
from swag._distribution import MEMORY_BYTES
from swag._forward import Forward
from swag._predictor import Predictor
from swag._target import Target
from swag.errors import ModelError
from swag.posterior import Posterior
from swag.sampling import Gaussian, Generator, Part, refuse_draws, source_of

__all__ = ["MultiSWAG"]


class MultiSWAG(Predictor):
    """A mixture of posteriors of one network, known as MultiSWAG (Wilson & Izmailov 2020).

    One Gaussian describes the surroundings of one solution; trainings from other seeds find others.
    Windows of one training do, too: ``[posterior.window(a, stop=b), posterior.window(b)]``.

    Parameters
    ----------
    posteriors
        At least one, each of the same parameters: `swag.SWAG`, or from `swag.load` or `window`.
    weights
        Of each in the mixture, zero or more, in any unit; equal ones if None. One of weight zero is
        left out, whatever is asked for.

    Raises
    ------
    ValueError
        There are none, or the weights are not as many, or none is positive.
    ModelError
        They are of different parameters.
    TypeError
        One is no posterior.

    Examples
    --------
    >>> import torch, swag
    >>> posteriors = []
    >>> for seed in range(3):
    ...     model = torch.nn.Linear(4, 2)
    ...     posteriors.append(swag.SWAG(model))
    ...     posteriors[-1].update_parameters(model)
    >>> mixture = swag.MultiSWAG(posteriors)
    >>> mixture.predict(model, torch.zeros(5, 4), activation="softmax", samples=2).shape
    torch.Size([5, 2])
    """

    def __init__(
        self, posteriors: Sequence[Posterior], weights: Sequence[float] | None = None
    ) -> None:
        if not posteriors:
            raise ValueError("a mixture needs at least one posterior")
        self.posteriors = tuple(posteriors)
        for one in self.posteriors:
            if not isinstance(one, Posterior):
                raise TypeError(
                    f"a mixture is of posteriors, and this is {type(one).__name__}: give "
                    "swag.SWAG, or what swag.load or window returns"
                )
        self.weights = _normalised(len(self.posteriors), weights)
        first, *others = (
            {e.name: (e.shape, e.dtype) for e in posterior._table.entries}
            for posterior in self.posteriors
        )
        for number, other in enumerate(others, 1):
            apart = sorted(n for n in first | other if first.get(n) != other.get(n))
            if apart:
                name = apart[0]
                raise ModelError(
                    f"posterior {number} is of other parameters than posterior 0: {len(apart)} "
                    f"differ, among them {name}, {_described(other.get(name))} and "
                    f"{_described(first.get(name))}"
                )
        counting = [i for i, weight in enumerate(self.weights) if weight]
        self._parts = tuple(self.posteriors[i] for i in counting)
        self._part_weights = tuple(self.weights[i] for i in counting)

    def sample(
        self,
        n: int = 1,
        *,
        scale: float | None = None,
        part: Part = "both",
        antithetic: bool = False,
        generator: Generator = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> dict[str, Tensor]:
        """Draw weights, each from a posterior drawn at random; see `Posterior.sample`.

        Antithetic draws are mirrored in the mean of the posterior that both of a pair are from. All
        draws of a call are shared out first: n draws and then m more are others than n + m.

        Raises
        ------
        ValueError
            `n` or `scale` is negative, or `n` is odd and the draws antithetic.
        WindowError
            Of a posterior that was drawn, nothing is collected, or it has no low-rank part.
        pmarray.errors.BudgetError
            The draws do not fit into memory.
        """
        n = count("n", n)
        if antithetic and n % 2:
            raise ValueError(f"n={n}: a number of draws that come in pairs is even")
        refuse_draws(n, self._parts[0]._table)
        source = source_of(generator)  # one for all, so that no two use the same numbers
        together = 2 if antithetic else 1
        parts = [i for i in self._chosen(n // together, source) for _ in range(together)]
        result: dict[str, Tensor] = {}
        for i, posterior in enumerate(self._parts):
            places = [place for place, chosen in enumerate(parts) if chosen == i]
            if n and not places:
                continue
            draws = posterior.sample(
                len(places),
                scale=scale,
                part=part,
                antithetic=antithetic,
                generator=source,
                memory_bytes=memory_bytes,
            )
            for name, values in draws.items():
                if name not in result:
                    result[name] = values.new_empty((n, *values.shape[1:]))
                result[name][places] = values
        return result

    @contextmanager
    def sampled(
        self,
        model: nn.Module,
        *,
        scale: float | None = None,
        generator: Generator = None,
        loader: Iterable[Any] | None = None,
        forward: Forward | None = None,
    ) -> Iterator[nn.Module]:
        """Put weights drawn from one of the posteriors into a model; see `Posterior.sampled`."""
        source = source_of(generator)
        (part,) = self._chosen(1, source)
        with self._parts[part].sampled(
            model, scale=scale, generator=source, loader=loader, forward=forward
        ) as inside:
            yield inside

    def _members(
        self, model: nn.Module, loader: Iterable[Any] | None, forward: Forward | None
    ) -> list[tuple[Target, Gaussian]]:
        return [
            member
            for posterior in self._parts
            for member in posterior._members(model, loader, forward)
        ]

    def log_prob(self, weights: Mapping[str, Tensor], *, scale: float | None = None) -> Tensor:
        """The log of the density of the mixture; see `Posterior.log_prob`."""
        parts = [
            posterior.log_prob(weights, scale=scale) + math.log(share)
            for posterior, share in zip(self._parts, self._part_weights, strict=True)
        ]
        return torch.logsumexp(torch.stack(parts), dim=0)

    def _chosen(self, n: int, source: torch.Generator) -> list[int]:
        """Posteriors for so many draws, by their numbers."""
        if len(set(self._part_weights)) == 1:
            size = len(self._parts)
            drawn = torch.randint(size, (n,), generator=source, device=source.device)
        elif not n:
            return []
        else:
            shares = torch.tensor(self._part_weights, dtype=torch.float64, device=source.device)
            drawn = torch.multinomial(shares, n, replacement=True, generator=source)
        return [int(part) for part in drawn.tolist()]

    def _shares(self, networks: int) -> list[float] | None:
        """Of each network, where every posterior has as many; None where they are equal."""
        if len(set(self._part_weights)) == 1:
            return None
        each = networks // len(self._parts)
        return [weight / each for weight in self._part_weights for _ in range(each)]


def _normalised(count: int, weights: Sequence[float] | None) -> tuple[float, ...]:
    if weights is None:
        return (1 / count,) * count
    if len(weights) != count or not all(0 <= w < math.inf for w in weights) or not any(weights):
        raise ValueError(
            f"weights={list(weights)!r:.200}: give {count} numbers, zero or more, one positive"
        )
    _, exponent = math.frexp(max(weights))
    near_one = [math.ldexp(weight, -exponent) for weight in weights]  # the sum may overflow
    total = math.fsum(near_one)
    return tuple(weight / total for weight in near_one)


def _described(entry: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    return "missing" if entry is None else f"{str(entry[1]).removeprefix('torch.')} {entry[0]}"

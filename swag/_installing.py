"""Weights of a posterior in a network: its mean for good, or a draw for a while."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from swag._buffers import Buffers
from swag._distribution import MEMORY_BYTES, Distribution, scale_of
from swag._forward import Forward
from swag._predictor import Predictor
from swag._target import Target, refuse_drawn
from swag.sampling import Gaussian, Generator, Plan, Seeds, draw

__all__ = ["Installing"]


class Installing(Distribution, Predictor):
    """A Gaussian over weights, and the buffers of the network that they are of."""

    @abstractmethod
    def _last_buffers(self) -> Buffers:
        """The model's buffers at the last iterate collected."""

    def install_mean(
        self,
        model: nn.Module,
        *,
        loader: Iterable[Any] | None = None,
        forward: Forward | None = None,
    ) -> None:
        """Put the mean, known as SWA, into a model for good.

        The buffers of the last iterate go with it, and the statistics of batch normalisation are
        recomputed (`swag.update_bn`), but for layers that were frozen.

        Parameters
        ----------
        model
            Has the parameters collected, on any device.
        loader, forward
            As for `predict`.

        Raises
        ------
        ModelError
            The model has other parameters or buffers; nothing was changed.
        ValueError
            The model has batch normalisation and `loader` is None.
        WindowError
            Nothing has been collected yet.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> posterior = swag.SWAG(model)
        >>> for weight in [1.0, 3.0]:
        ...     _ = torch.nn.init.constant_(model.weight, weight)
        ...     posterior.update_parameters(model)
        >>> posterior.install_mean(model)
        >>> model.weight.tolist()
        [[2.0, 2.0]]
        """
        refuse_drawn(model)
        gaussian = self._gaussian()
        target = self._target(model, loader, forward)
        target.put(gaussian.anchor + torch.from_numpy(gaussian.moments.mean))

    def _members(
        self, model: nn.Module, loader: Iterable[Any] | None, forward: Forward | None
    ) -> list[tuple[Target, Gaussian]]:
        gaussian = self._gaussian()
        return [(self._target(model, loader, forward), gaussian)]

    def _target(
        self, model: nn.Module, loader: Iterable[Any] | None, forward: Forward | None
    ) -> Target:
        return Target(model, self._table, self._last_buffers(), loader, forward)

    @contextmanager
    def sampled(
        self,
        model: nn.Module,
        *,
        scale: float | None = None,
        generator: Generator = None,
        loader: Iterable[Any] | None = None,
        forward: Forward | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> Iterator[nn.Module]:
        """Put drawn weights into a model; at the end its own come back, bit for bit.

        Parameters
        ----------
        model
            Has the parameters collected, on any device. Its buffers come back too; inside, they are
            those of the last iterate.
        scale, generator, memory_bytes
            As for `sample`; ``scale=0`` gives the mean.
        loader, forward
            As for `predict`.

        Yields
        ------
        torch.nn.Module
            The model itself. It cannot be collected from meanwhile.

        Raises
        ------
        ModelError
            As for `predict`.
        ValueError
            The model has batch normalisation and `loader` is None.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(4, 2)
        >>> posterior = swag.SWAG(model)
        >>> posterior.update_parameters(model)
        >>> with posterior.sampled(model, generator=0):
        ...     model(torch.ones(1, 4)).shape
        torch.Size([1, 2])
        """
        gaussian = self._gaussian()
        target = self._target(model, loader, forward)
        seeds = Seeds.take(1, generator)
        vectors = draw(Plan(gaussian, seeds, scale_of(gaussian, scale)), memory_bytes)
        with target.borrowed():
            target.put(vectors[0])
            del vectors
            yield model

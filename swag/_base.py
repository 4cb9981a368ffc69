"""What can be done with a Gaussian over the weights of a network, wherever its iterates are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from swag._analysis import Analysis
from swag._buffers import Buffers
from swag._distribution import MEMORY_BYTES, scale_of
from swag._forward import Forward
from swag._predictor import Predictor
from swag._target import Target, refuse_drawn
from swag.sampling import Center, Gaussian, Generator, Plan, Seeds, draw

if TYPE_CHECKING:
    from swag.posterior import StoredPosterior

__all__ = ["Posterior"]


class Posterior(Analysis, Predictor):
    """A Gaussian over weights: a mean, a diagonal, and a low-rank part.

    Its covariance is ``scale * (diag(variance) + D D^T / (k - 1))``, the k columns of D being
    deviations of iterates from their mean. Made by `swag.load`, `window`, and `swag.SWAG`.
    """

    @abstractmethod
    def _last_buffers(self) -> Buffers:
        """The model's buffers at the last iterate collected."""

    @abstractmethod
    def _collected(self) -> int:
        """Iterates in the store, when all is there that was collected."""

    @abstractmethod
    def window(
        self,
        start: int = 0,
        every: int = 1,
        rank: int | None = None,
        center: Center = "running",
        *,
        stop: int | None = None,
    ) -> StoredPosterior:
        """The posterior of some of the iterates, chosen after the fact.

        Parameters
        ----------
        start
            Number of the first iterate to use, from 0: where the burn-in ends.
        every
            Use every so many iterates from there.
        rank
            Columns of the low-rank part: the last so many of those used, or as many as are held if
            that is fewer; None for all that are held, 0 for the diagonal alone.
        center
            What deviations are taken from: ``"running"``, the mean of the iterates up to each, as
            Maddox et al. 2019 do (Algorithm 1), or ``"mean"``, the mean of all those used, which
            gives their sample covariance.
        stop
            Number of the first iterate not to use; None for all that are there.

        Returns
        -------
        StoredPosterior
            Of the iterates collected so far; it shares the store. Its moments are computed at the
            first use, from one reading of its iterates, unless it has them all.

        Raises
        ------
        WindowError
            It would have no iterate, or the moments need iterates that were not kept.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> posterior = swag.SWAG(model)
        >>> for weight in [9.0, 1.0, 2.0, 3.0]:
        ...     _ = torch.nn.init.constant_(model.weight, weight)
        ...     posterior.update_parameters(model)
        >>> posterior.window(start=1).mean()
        {'weight': tensor([[2.]])}
        """

    def iterate(self, index: int) -> dict[str, Tensor]:
        """The weights of one iterate, bit for bit as the network had them.

        Parameters
        ----------
        index
            Its number among all collected, from 0; a negative one counts from the last.

        Returns
        -------
        dict of str to torch.Tensor
            By parameter, with its shape and dtype, in host memory. Where ``dtype=`` was narrower
            than the network's, they are rounded to that.

        Raises
        ------
        WindowError
            It was not collected, or not kept (`max_rank`).

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> posterior = swag.SWAG(model)
        >>> for weight in [9.0, 1.0]:
        ...     _ = torch.nn.init.constant_(model.weight, weight)
        ...     posterior.update_parameters(model)
        >>> posterior.iterate(0), posterior.iterate(-1)
        ({'weight': tensor([[9.]])}, {'weight': tensor([[1.]])})
        """
        vector = self._store.iterate(index, self._collected())
        views = self._table.by_name(vector)
        return {e.name: views[e.name].to(e.dtype) for e in self._table.entries}

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

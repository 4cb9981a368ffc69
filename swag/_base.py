"""What can be done with a Gaussian over the weights of a network, wherever its iterates are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from swag._buffers import Buffers
from swag._distribution import MEMORY_BYTES, Distribution, scale_of
from swag._forward import Forward
from swag._predicting import Activation, Draws, activation_of, average, batches_of
from swag._target import Target, refuse_drawn
from swag.sampling import Center, Generator, Seeds, draw, source_of

if TYPE_CHECKING:
    from swag.posterior import StoredPosterior

__all__ = ["Posterior", "predict"]


class Posterior(Distribution):
    """A Gaussian over weights: a mean, a diagonal, and a low-rank part.

    Its covariance is ``scale * (diag(variance) + D D^T / (k - 1))``, the k columns of D being
    deviations of iterates from their mean. Made by `swag.load`, `window`, and `swag.SWAG`.
    """

    @abstractmethod
    def _last_buffers(self) -> Buffers:
        """The model's buffers at the last iterate collected."""

    @abstractmethod
    def window(
        self,
        start: int = 0,
        every: int = 1,
        rank: int | None = None,
        center: Center = "running",
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
        vectors = draw(gaussian, seeds, scale_of(gaussian, scale), memory_bytes)
        with target.borrowed():
            target.put(vectors[0])
            del vectors
            yield model

    def predict(
        self,
        model: nn.Module,
        inputs: Tensor | Dataset[Any] | Iterable[Any],
        *,
        activation: Activation,
        samples: int = 30,
        scale: float | None = None,
        generator: Generator = None,
        loader: Iterable[Any] | None = None,
        forward: Forward | None = None,
        batch_size: int = 1000,
        memory_bytes: int = MEMORY_BYTES,
    ) -> Tensor:
        """Average what networks drawn from the posterior make of each input.

        The inputs are gone through once, so they may come from anywhere and in any order, which is
        that of the result.

        Parameters
        ----------
        model
            Has the parameters collected: takes a batch, gives a tensor whose first axis is the
            batch. It runs in evaluation mode; weights, buffers and modes come back.
        inputs
            A tensor of shape (n, ...), a dataset, a DataLoader, or any iterable of batches. A batch
            is a tensor, or a tuple or list of which the model takes the first item, or as many as
            its forward needs; the rest, labels, is left alone.
        activation
            What makes an output into what is averaged: ``"softmax"``, over the classes of outputs
            of shape (batch, classes); ``"sigmoid"``, for each item alone; ``"none"``, for
            regression; or a function, such as ``torch.nn.Softmax(dim=1)``, which says the axis.
        samples
            Networks to average over; one is enough with ``scale=0``.
        scale, generator
            As for `sample`.
        loader
            Training batches for `swag.update_bn`, gone through for each network; needed where the
            model has batch normalisation that was not frozen when it was collected.
        forward
            Called as ``forward(model, batch)``, the batch on the model's device, where the model
            takes it in another way: ``lambda model, batch: model(**batch).logits``.
        batch_size
            Of `inputs`, where they are one tensor or a dataset.
        memory_bytes
            For draws, the part of the trajectory, and batches, that are held at a time. Draws that
            do not find room, where the inputs do not either, go to a file without a name in the
            directory for temporary ones.

        Returns
        -------
        torch.Tensor
            Shape (n, ...) as the model's outputs, float32 (float64 where they are), on the model's
            device.

        Raises
        ------
        ModelError
            The model has other parameters or buffers, or would not compute with the weights drawn.
        ValueError
            The inputs are shuffled or have no batch, or the model has batch normalisation and
            `loader` is None, or which items of a batch or which axis is meant cannot be told.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(4, 3)
        >>> posterior = swag.SWAG(model)
        >>> posterior.update_parameters(model)
        >>> posterior.predict(model, torch.zeros(7, 4), activation="softmax", samples=2).shape
        torch.Size([7, 3])
        """
        return predict(
            [self],
            model,
            inputs,
            activation=activation,
            samples=samples,
            scale=scale,
            generator=generator,
            loader=loader,
            forward=forward,
            batch_size=batch_size,
            memory_bytes=memory_bytes,
        )


def predict(
    posteriors: Sequence[Posterior],
    model: nn.Module,
    inputs: Tensor | Dataset[Any] | Iterable[Any],
    *,
    activation: Activation,
    samples: int,
    scale: float | None,
    generator: Generator,
    loader: Iterable[Any] | None,
    forward: Forward | None,
    batch_size: int,
    memory_bytes: int,
) -> Tensor:
    """`Posterior.predict` over as many draws of each posterior."""
    if samples < 1:
        raise ValueError(f"samples must be at least 1, not {samples}")
    function = activation_of(activation)
    batches = batches_of(inputs, batch_size)
    source = source_of(generator)  # one for all, so that no two use the same numbers
    share = memory_bytes // 4
    parts = []
    for posterior in posteriors:
        gaussian = posterior._gaussian()
        target = posterior._target(model, loader, forward)
        factor = scale_of(gaussian, scale)
        seeds = Seeds.take(samples, source)
        parts.append(Draws(target, gaussian, seeds, factor, 3 * share // len(posteriors)))
    with parts[0].target.borrowed():
        return average(parts, batches, function, forward, share)

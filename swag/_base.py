"""What can be done with a Gaussian over the weights of a network, wherever its iterates are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from swag._analysis import Analysis
from swag._buffers import Buffers
from swag._distribution import MEMORY_BYTES, scale_of
from swag._draws import Draws
from swag._forward import Forward
from swag._predicting import Watch, batches_of, reduced, rows_in
from swag._reductions import (
    Activation,
    Average,
    GaussianMixture,
    Noise,
    Reduction,
    Stack,
    activation_of,
)
from swag._target import Target, refuse_drawn
from swag.regression import GaussianPrediction
from swag.sampling import Center, Generator, Plan, Seeds, draw, source_of

if TYPE_CHECKING:
    from swag.posterior import StoredPosterior

__all__ = ["Options", "Posterior", "predict"]

R = TypeVar("R")


class Posterior(Analysis):
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
        draws_at_once: int | None = None,
        progress: Watch | None = None,
    ) -> Tensor:
        """Average what networks drawn from the posterior make of each input.

        The inputs are gone through once, so they may come from anywhere and in any order, which is
        that of the result.

        Parameters
        ----------
        model
            Has the parameters collected: takes a batch, gives a tensor whose first axis is the
            batch, or something that holds one: an object or mapping with ``logits``, as the models
            of transformers give, or ``out``; a tuple, of which the first tensor that is not a
            single number counts. It runs in evaluation mode; weights, buffers and modes come back.
        inputs
            A tensor of shape (n, ...), a dataset, a DataLoader, or any iterable of batches. A batch
            is a tensor; a mapping, such as a BatchEncoding, whose items go to the arguments of
            their names; or a tuple or list of which the model takes the first item, or as many as
            its forward needs. The rest, labels, is left alone.
        activation
            What makes an output into what is averaged: ``"softmax"``, over the classes of outputs
            of shape (batch, classes) or (batch, classes, height, width, ...); ``"sigmoid"``, for
            each item alone; ``"none"``, for regression; or a function, such as
            ``torch.nn.Softmax(dim=-1)``, which says the axis.
        samples
            Networks to average over; one is enough with ``scale=0``.
        scale, generator
            As for `sample`.
        loader
            Training batches for `swag.update_bn`, gone through for each network; needed where the
            model has batch normalisation that was not frozen when it was collected.
        forward
            Called as ``forward(model, batch)``, the batch on the model's device, where the model
            takes it in another way: ``lambda model, batch: model(batch["image"]).scores``.
        batch_size
            Of `inputs`, where they are one tensor or a dataset.
        memory_bytes
            For draws, the part of the trajectory, and batches, that are held at a time. Draws that
            do not find room, where the inputs do not either, go to a file without a name in the
            directory for temporary ones.
        draws_at_once
            Networks that go through the model together, by `torch.func.vmap`; None for as many as
            seem to find room, 1 for one after another. Where the model does not allow it, they go
            one after another all the same: where it branches on values, recomputes statistics, or
            is wrapped. Together and alone, outputs agree to rounding.
        progress
            Called as ``progress(done, total)`` after each batch of each network with the inputs
            seen, each counted for every network; `total` is None where nobody knows how many
            inputs there are.

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
        TypeError
            Which tensor of the outputs is meant cannot be told.

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
            lambda networks: Average(networks, activation_of(activation)),
            samples=samples,
            scale=scale,
            generator=generator,
            loader=loader,
            forward=forward,
            batch_size=batch_size,
            memory_bytes=memory_bytes,
            draws_at_once=draws_at_once,
            progress=progress,
        )

    def predict_regression(
        self,
        model: nn.Module,
        inputs: Tensor | Dataset[Any] | Iterable[Any],
        *,
        noise: Noise = None,
        **options: Unpack[Options],
    ) -> GaussianPrediction:
        """Mean and variance of what networks drawn from the posterior say of each input.

        Parameters
        ----------
        model, inputs
            As for `predict`.
        noise
            Variance of the observations around a network's output: a number, or a tensor that
            broadcasts to the outputs; ``"learned"`` where the model gives two tensors, mean and
            variance, as `torch.nn.GaussianNLLLoss` takes them; None for none, which leaves the
            networks' own variance (`GaussianPrediction.fitted_noise` finds one afterwards).
        **options
            As for `predict`, from `samples` on.

        Returns
        -------
        GaussianPrediction
            Its `mean` has the shape of the outputs, its `variance` too.

        Raises
        ------
        ValueError
            `noise`, or a variance that the model gives, is negative; or as `predict`.
        ModelError, TypeError
            As `predict`.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(1, 1)
        >>> posterior = swag.SWAG(model)
        >>> for slope in [1.0, 3.0]:
        ...     _ = torch.nn.init.constant_(model.weight, slope)
        ...     _ = torch.nn.init.constant_(model.bias, 0)
        ...     posterior.update_parameters(model)
        >>> found = posterior.window(rank=0).predict_regression(
        ...     model, torch.tensor([[0.0], [1.0]]), noise=0.25, samples=100, generator=0
        ... )
        >>> found.variance[0], bool(found.epistemic[1] > 0.5)
        (tensor([0.2500]), True)
        """
        return predict(
            [self], model, inputs, lambda networks: GaussianMixture(networks, noise), **options
        )

    def predict_each(
        self,
        model: nn.Module,
        inputs: Tensor | Dataset[Any] | Iterable[Any],
        *,
        activation: Activation = "none",
        **options: Unpack[Options],
    ) -> Tensor:
        """What each network drawn from the posterior makes of each input.

        Parameters
        ----------
        model, inputs
            As for `predict`.
        activation
            A function of the outputs, as for `predict`; the outputs themselves by default.
        **options
            As for `predict`, from `samples` on.

        Returns
        -------
        torch.Tensor
            Shape (samples, n, ...), on the model's device; held as a whole.

        Raises
        ------
        ModelError, ValueError, TypeError
            As `predict`.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(4, 3)
        >>> posterior = swag.SWAG(model)
        >>> posterior.update_parameters(model)
        >>> posterior.predict_each(model, torch.zeros(7, 4), samples=2).shape
        torch.Size([2, 7, 3])
        """
        return predict(
            [self],
            model,
            inputs,
            lambda networks: Stack(networks, activation_of(activation)),
            **options,
        )


class Options(TypedDict, total=False):
    """How `Posterior.predict` goes about it; the meanings are given there."""

    samples: int
    scale: float | None
    generator: Generator
    loader: Iterable[Any] | None
    forward: Forward | None
    batch_size: int
    memory_bytes: int
    draws_at_once: int | None
    progress: Watch | None


def predict(
    posteriors: Sequence[Posterior],
    model: nn.Module,
    inputs: Tensor | Dataset[Any] | Iterable[Any],
    reduction: Callable[[int], Reduction[R]],
    *,
    samples: int = 30,
    scale: float | None = None,
    generator: Generator = None,
    loader: Iterable[Any] | None = None,
    forward: Forward | None = None,
    batch_size: int = 1000,
    memory_bytes: int = MEMORY_BYTES,
    draws_at_once: int | None = None,
    progress: Watch | None = None,
) -> R:
    """What a reduction, made for so many networks, makes of as many draws of each posterior."""
    for name, value in (("samples", samples), ("draws_at_once", draws_at_once)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    made = reduction(samples * len(posteriors))
    batches = batches_of(inputs, batch_size)
    source = source_of(generator)  # one for all, so that no two use the same numbers
    share = memory_bytes // 4
    parts = []
    for posterior in posteriors:
        gaussian = posterior._gaussian()
        target = posterior._target(model, loader, forward)
        plan = Plan(gaussian, Seeds.take(samples, source), scale_of(gaussian, scale))
        parts.append((target, Draws(plan, 3 * share // len(posteriors))))
    rows = rows_in(inputs)
    total = None if rows is None else rows * samples * len(posteriors)
    watch = None if progress is None else lambda done: progress(done, total)
    with parts[0][0].borrowed():
        return reduced(parts, batches, made, forward, share, draws_at_once, watch)

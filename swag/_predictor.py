"""Predictions by networks that are drawn, from one posterior or from several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, TypedDict, TypeVar, Unpack

from torch import Tensor, nn
from torch.utils.data import Dataset

from swag._counts import count
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
from swag._target import Target
from swag.regression import GaussianPrediction
from swag.sampling import Gaussian, Generator, Plan, Seeds, source_of

__all__ = ["Options", "Predictor"]

R = TypeVar("R")


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


class Predictor(ABC):
    """What networks can be drawn from."""

    @abstractmethod
    def _members(
        self, model: nn.Module, loader: Iterable[Any] | None, forward: Forward | None
    ) -> list[tuple[Target, Gaussian]]:
        """The Gaussians that are drawn from, each with the model that takes its draws."""

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
            It may change what it is given, which is a copy. Its weights change meanwhile, so that a
            graph that was recorded before cannot be gone backward through.
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
            Networks to average over, of a mixture so many of each posterior that weighs anything;
            one is enough with ``scale=0``.
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
            do not find room go to a file without a name in the directory for temporary ones, where
            the inputs do not find room either, or to read the trajectory again and again would take
            longer.
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
        function = activation_of(activation)
        return self._reduced(
            model,
            inputs,
            lambda networks: Average(networks, function, self._shares(networks)),
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
        return self._reduced(
            model,
            inputs,
            lambda networks: GaussianMixture(networks, noise, self._shares(networks)),
            **options,
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
            Shape (samples, n, ...), on the model's device; held as a whole. Of a mixture there are
            so many of each posterior, one posterior after another, and as many of one that weighs
            little: the mean over them is that of `predict` where the weights are equal alone. A
            posterior that is given twice to `swag.MultiSWAG` has twice as many.

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
        function = activation_of(activation)
        return self._reduced(model, inputs, lambda networks: Stack(networks, function), **options)

    def _shares(self, networks: int) -> list[float] | None:
        """What each of so many networks counts, together 1; None where they count the same."""
        return None

    def _reduced(
        self,
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
        """What a reduction, made for so many networks, makes of as many draws of each Gaussian."""
        samples = count("samples", samples, 1)
        draws_at_once = None if draws_at_once is None else count("draws_at_once", draws_at_once, 1)
        batches = batches_of(inputs, count("batch_size", batch_size, 1))
        source = source_of(generator)  # one for all, so that no two use the same numbers
        members = self._members(model, loader, forward)
        share = memory_bytes // 4
        parts = []
        for target, gaussian in members:
            plan = Plan(gaussian, Seeds.take(samples, source), scale_of(gaussian, scale))
            parts.append((target, Draws(plan, 3 * share // len(members))))
        networks = samples * len(members)
        rows = rows_in(inputs)
        total = None if rows is None else rows * networks
        watch = None if progress is None else lambda done: progress(done, total)
        with parts[0][0].borrowed():
            return reduced(
                parts, batches, reduction(networks), forward, share, draws_at_once, watch
            )

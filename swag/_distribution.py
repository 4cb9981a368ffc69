"""A Gaussian over the weights of a network: its moments, its draws and its density."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from pmarray import PMArray
from swag._counts import count
from swag._draws import Draws, fill, save
from swag._iterates import Iterates
from swag._parameters import ParameterTable
from swag.covariance import Covariance
from swag.density import log_density
from swag.sampling import (
    Gaussian,
    Generator,
    Part,
    Plan,
    Seeds,
    default_scale,
    draw,
    rank,
    refuse_draws,
)

__all__ = ["MEMORY_BYTES", "Distribution", "Drawing", "scale_of"]

MEMORY_BYTES = 1 << 30


class Drawing(TypedDict, total=False):
    """How draws are made; the meanings are given by `Distribution.sample`."""

    scale: float | None
    part: Part
    antithetic: bool
    generator: Generator


class Distribution(ABC):
    """What a posterior is without regard to the network that its weights are of."""

    _store: Iterates

    @abstractmethod
    def _gaussian(self) -> Gaussian:
        """What is drawn from, as it is now."""

    @property
    def _table(self) -> ParameterTable:
        return self._store.table

    @property
    @abstractmethod
    def n_averaged(self) -> int:
        """Iterates in the mean and the variance."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """Columns of the low-rank part; fewer than two make none."""

    def mean(self) -> dict[str, Tensor]:
        """The mean of the weights, known as SWA.

        Returns
        -------
        dict of str to torch.Tensor
            By parameter, with its shape, float32 (float64 where a parameter has it), in host
            memory. What is summed is the distance from the first iterate, in float32: of float64
            weights that have moved by 0.1 the mean is off by 6e-8 after 2,000 iterates and by 2e-7
            after 20,000 (root mean squares; it grows with the root of their number).
            `install_mean` puts it into a model.

        Raises
        ------
        WindowError
            Nothing has been collected yet.
        """
        gaussian = self._gaussian()
        return gaussian.table.by_name(gaussian.anchor + torch.from_numpy(gaussian.moments.mean))

    def variance(self) -> dict[str, Tensor]:
        """The diagonal: the mean squared deviation of each weight from its mean.

        Returns
        -------
        dict of str to torch.Tensor
            By parameter, with its shape, float32, in host memory.

        Raises
        ------
        WindowError
            Nothing has been collected yet.
        """
        gaussian = self._gaussian()
        return gaussian.table.by_name(torch.from_numpy(gaussian.variance))

    @property
    def covariance(self) -> Covariance:
        """The covariance as a linear operator, with the default `scale` of `sample`.

        It is of the iterates that are there now, and computes when it is asked: `Covariance` says
        what. ``posterior.covariance_of(scale=1.0)`` has another scale or memory.

        Raises
        ------
        WindowError
            Nothing has been collected yet.
        """
        return self.covariance_of()

    def covariance_of(
        self, *, scale: float | None = None, memory_bytes: int = MEMORY_BYTES
    ) -> Covariance:
        """The covariance as a linear operator.

        Parameters
        ----------
        scale
            As for `sample`, and not 0.
        memory_bytes
            For the part of the trajectory that is held at a time. A square matrix of `rank` rows,
            float64, comes on top where one is needed.

        Returns
        -------
        Covariance
            Of the iterates that are there now.

        Raises
        ------
        ValueError
            `scale` is 0 or negative.
        WindowError
            Nothing has been collected yet.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> posterior = swag.SWAG(model)
        >>> for weight in [1.0, 3.0]:
        ...     _ = torch.nn.init.constant_(model.weight, weight)
        ...     posterior.update_parameters(model)
        >>> posterior.window(rank=0).covariance_of(scale=4.0).diagonal()
        {'weight': tensor([[4.]], dtype=torch.float64)}
        """
        gaussian = self._gaussian()
        factor = scale_of(gaussian, scale)
        if factor == 0:
            raise ValueError("with scale=0 there is no density")
        return Covariance.of(gaussian, factor, memory_bytes)

    @property
    def slices(self) -> dict[str, slice]:
        """Where each parameter lies, flat, in a vector of all weights."""
        return {entry.name: slice(entry.start, entry.stop) for entry in self._table.entries}

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
        """Draw weights. All draws together read the trajectory once.

        Parameters
        ----------
        n
            Number of draws.
        scale
            Factor of the whole covariance; 1/2 with a low-rank part and 1 without one if None.
        part
            What of the covariance is drawn from: ``"both"``, the ``"diagonal"`` alone, or the
            ``"low-rank"`` part alone. With one seed, what the parts add to the mean adds up to what
            both do.
        antithetic
            Whether draws come in pairs, the second as far from the mean as the first, on the other
            side. What is odd in the weights then averages to what it is at the mean.
        generator
            Of the random numbers: a `torch.Generator`, an int that seeds one, or None for numbers
            that differ every time. The global generator is never used. The same seed gives the
            same draws, to rounding, whatever the store and the memory; n draws and then m more are
            the same as n + m.
        memory_bytes
            For the part of the trajectory that is held at a time. The draws come on top.

        Returns
        -------
        dict of str to torch.Tensor
            By parameter, shape (n, *parameter), of its dtype, in host memory; what
            `torch.func.functional_call` under `torch.vmap` takes.

        Raises
        ------
        ValueError
            `n` or `scale` is negative, or `n` is odd and the draws antithetic.
        WindowError
            Nothing has been collected yet, or there is no low-rank part.
        pmarray.errors.BudgetError
            The draws do not fit into memory: `iter_samples` draws one after another.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(4, 2)
        >>> posterior = swag.SWAG(model)
        >>> for _ in range(3):
        ...     _ = torch.nn.init.normal_(model.weight)
        ...     posterior.update_parameters(model)
        >>> posterior.sample(5, generator=0)["weight"].shape
        torch.Size([5, 2, 4])
        """
        refuse_draws(count("n", n), self._table)
        plan = self._plan(n, scale=scale, part=part, antithetic=antithetic, generator=generator)
        views = self._table.by_name(draw(plan, memory_bytes))
        return {e.name: views[e.name].to(e.dtype) for e in self._table.entries}

    def iter_samples(
        self, n: int, *, memory_bytes: int = MEMORY_BYTES, **options: Unpack[Drawing]
    ) -> Iterator[dict[str, Tensor]]:
        """Draw weights, one draw after another.

        The trajectory is read once. Draws that do not find room in half of `memory_bytes` go to a
        file without a name in the directory for temporary ones, and are read from there.

        Parameters
        ----------
        n
            Number of draws.
        memory_bytes
            For the draws and the part of the trajectory that are held at a time.
        **options
            `scale`, `part`, `antithetic` and `generator`, as for `sample`.

        Yields
        ------
        dict of str to torch.Tensor
            By parameter, with its shape and dtype, in host memory.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(4, 2)
        >>> posterior = swag.SWAG(model)
        >>> posterior.update_parameters(model)
        >>> for weights in posterior.iter_samples(2):
        ...     _ = model.load_state_dict(weights)
        """
        table = self._table
        draws = Draws(self._plan(n, **options), memory_bytes)

        def one_after_another() -> Iterator[dict[str, Tensor]]:
            for vector in draws.kept():
                views = table.by_name(vector)
                yield {e.name: views[e.name].to(e.dtype) for e in table.entries}

        return one_after_another()

    def sample_into(
        self, out: PMArray, *, memory_bytes: int = MEMORY_BYTES, **options: Unpack[Drawing]
    ) -> None:
        """Draw weights into a stored array, block by block, in one transaction.

        The trajectory is read once, and no draw is held as a whole.

        Parameters
        ----------
        out
            Shape (draws, n), for as many draws as it has rows; `slices` says which of the n weights
            are whose. A row-major array has each draw in one piece.
        memory_bytes
            For the blocks of the trajectory and of the draws that are held at a time.
        **options
            `scale`, `part`, `antithetic` and `generator`, as for `sample`.

        Raises
        ------
        ValueError
            The array has another shape, or no dtype of floating point, or as `sample`.
        WindowError
            As `sample`.

        Examples
        --------
        >>> import pmarray, torch, swag
        >>> model = torch.nn.Linear(4, 2)
        >>> posterior = swag.SWAG(model)
        >>> posterior.update_parameters(model)
        >>> with pmarray.open("memmap:./draws", (100, 10), "float32") as draws:
        ...     posterior.sample_into(draws, generator=0)
        ...     draws[3, posterior.slices["bias"]].shape
        (2,)
        """
        n = out.shape[0] if getattr(out, "ndim", 0) == 2 else 0
        fill(out, self._plan(n, **options), memory_bytes)

    def save_samples(
        self,
        folder: str | os.PathLike[str],
        n: int,
        *,
        overwrite: bool = False,
        memory_bytes: int = MEMORY_BYTES,
        **options: Unpack[Drawing],
    ) -> list[Path]:
        """Draw weights into files, one for each draw, in the format of safetensors.

        A file holds the parameters by name and no buffers: ``model.load_state_dict(
        safetensors.torch.load_file(path), strict=False)`` takes it. It appears when it is whole.
        The trajectory is read once. Needs the extra ``safetensors``.

        Parameters
        ----------
        folder
            Made if it is not there. The files are ``draw-00000.safetensors`` and so on.
        n
            Number of draws.
        overwrite
            Whether to replace files of these names.
        memory_bytes
            For the draws and the part of the trajectory that are held at a time; see
            `iter_samples`.
        **options
            `scale`, `part`, `antithetic` and `generator`, as for `sample`.

        Returns
        -------
        list of pathlib.Path
            The files.

        Raises
        ------
        FileExistsError
            A file of these names is there; nothing was written.
        ModuleNotFoundError
            The package safetensors is not installed.
        ValueError, WindowError
            As `sample`.
        """
        plan = self._plan(n, **options)
        metadata = {
            "n_averaged": str(plan.gaussian.on_demand.count),
            "rank": str(rank(plan.gaussian)),
            "scale": repr(plan.scale),
            "part": plan.part,
        }
        return list(save(Path(folder), Draws(plan, memory_bytes), metadata, overwrite))

    def _plan(
        self,
        n: int,
        *,
        scale: float | None = None,
        part: Part = "both",
        antithetic: bool = False,
        generator: Generator = None,
    ) -> Plan:
        n = count("n", n)
        gaussian = self._gaussian()
        factor = scale_of(gaussian, scale)
        return Plan(gaussian, Seeds.take(n, generator, antithetic=antithetic), factor, part)

    def log_prob(
        self,
        weights: Mapping[str, Tensor],
        *,
        scale: float | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> Tensor:
        """The log of the density at given weights.

        Reads the trajectory once; the work grows with the square of `rank`.

        Parameters
        ----------
        weights
            By parameter, shape (..., *parameter), the same leading axes for all: what `sample`
            returns, or ``dict(model.named_parameters())``. Names of other parameters are ignored.
        scale
            As for `sample`, and not 0.
        memory_bytes
            For the part of the trajectory that is held at a time. A square matrix of `rank` rows,
            float64, comes on top.

        Returns
        -------
        torch.Tensor
            Shape (...), float64, in nats; minus infinity where a weight is infinite.

        Raises
        ------
        ModelError
            A parameter is missing, has another shape, or is complex.
        WindowError
            There is no density, since some weights did not change in the iterates averaged.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> posterior = swag.SWAG(model)
        >>> for weight in [1.0, 3.0]:
        ...     _ = torch.nn.init.constant_(model.weight, weight)
        ...     posterior.update_parameters(model)
        >>> posterior.window(rank=0).log_prob({"weight": torch.tensor([[2.0]])})
        tensor(-0.9189, dtype=torch.float64)
        """
        gaussian = self._gaussian()
        factor = scale_of(gaussian, scale)
        if factor == 0:
            raise ValueError("with scale=0 there is no density")
        # In float64: what a draw is off by may be far smaller than the weights themselves.
        lead, vectors = gaussian.table.join(weights, torch.float64)
        return log_density(gaussian, vectors, factor, memory_bytes).reshape(lead)

    def state_dict(self) -> dict[str, Any]:
        """The moments, what they are of, and where the trajectory is; never the trajectory itself.

        Returns
        -------
        dict
            `n_averaged`, `rank`, `center`, `mean` and `variance` (by parameter, as the methods of
            these names give them), `store` (its URL) and `max_rank`. `torch.save` takes it.
        """
        gaussian = self._gaussian()
        return {
            "n_averaged": gaussian.moments.count,
            "rank": rank(gaussian),
            "center": gaussian.center,
            "mean": self.mean(),
            "variance": self.variance(),
            "store": self._store.url,
            "max_rank": self._store.configuration.max_rank,
        }


def scale_of(gaussian: Gaussian, scale: float | None) -> float:
    """The factor of the covariance that is meant, the default one for None."""
    if scale is None:
        return default_scale(gaussian)
    if not 0 <= scale < math.inf:
        raise ValueError(f"scale is a factor of the covariance and cannot be {scale}")
    return scale

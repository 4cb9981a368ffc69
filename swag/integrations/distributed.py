"""A posterior in checkpoints of ``torch.distributed.checkpoint``."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from swag._held import is_sharded, spread_as
from swag.collect import SWAG

__all__ = ["PosteriorState"]


class PosteriorState:
    """Mean, variance and count of a posterior that is being collected, as a ``Stateful``.

    ``torch.distributed.checkpoint.save`` asks for its state, which makes durable what was
    collected: the store has all that a training which resumes needs. ``load`` cuts the store back
    to the iterates of the checkpoint. Of a model that is spread over processes, mean and variance
    are spread as its parameters are, and can be read by any number of processes.

    Every process that collects makes one, and saves and loads at the same time.

    Parameters
    ----------
    posterior
        Open.
    model
        That is collected.

    Examples
    --------
    >>> import torch, swag
    >>> model = torch.nn.Linear(3, 1)
    >>> posterior = swag.SWAG(model)
    >>> state = PosteriorState(posterior, model)
    >>> for step in range(5):
    ...     _ = torch.nn.init.normal_(model.weight)
    ...     posterior.update_parameters(model)
    ...     if step == 2:
    ...         saved = state.state_dict()  # what dcp.save({"posterior": state}) asks for
    >>> state.load_state_dict(saved)  # as dcp.load({"posterior": state}) does
    >>> posterior.n_averaged
    3
    """

    def __init__(self, posterior: SWAG, model: nn.Module) -> None:
        self._posterior = posterior
        self._model = model

    def state_dict(self) -> dict[str, Any]:
        """What is saved: ``n_averaged``, and ``mean`` and ``variance`` by parameter, float32.

        Reads the trajectory once, where every iterate is kept; before the first iterate, both are
        zero.

        Raises
        ------
        ModelError
            The model has other parameters, or replicas (hybrid sharding), of which only the first
            has its part.
        pmarray.errors.PMArrayError, OSError
            As `swag.SWAG.flush`.
        """
        self._posterior.flush()
        count, mean, variance = self._posterior._own_moments()
        return {
            "n_averaged": count,
            "mean": self._by_parameter(mean),
            "variance": self._by_parameter(variance),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Cut the store back to the iterates of a checkpoint.

        Raises
        ------
        WindowError
            It has fewer, or, with `max_rank`, cannot go back so far.
        """
        self._posterior.rewind(to=int(state["n_averaged"]))

    def _by_parameter(self, vector: Tensor) -> dict[str, Tensor]:
        posterior = self._posterior
        parameters = posterior._whole.find(self._model)
        views = posterior._table.by_name(vector)
        part = posterior._part
        if part is None:
            return {name: view.clone() for name, view in views.items()}
        return {
            name: spread_as(name, parameter, view)
            if is_sharded([parameter])
            else part.agreement.gather(view.clone())[0]
            for (name, view), parameter in zip(views.items(), parameters, strict=True)
        }

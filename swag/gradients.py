"""What the gradients of training say about whether it has settled.

Where the weights theta move about one place, E|theta|² does not change from step to step, and that
ties the gradients to the steps. SGD with momentum makes the step ``theta -= lr * d`` where
``d = momentum * d + g``, and g is the gradient, weight decay included. Then

    E[theta . g] = (1 + momentum) / 2 * lr * E[d . d]        Yaida 2019, equation FDR1'
    E[theta . d] = lr / 2 * E[d . d]                         Zhang et al. 2020, SASA+

Both hold only there: before, the left sides differ from the right ones by how fast the weights
travel.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from swag.convergence import effective_sample_size

__all__ = ["Gradients", "discrepancy"]


class Gradients:
    """Record of every step of an optimizer what the two tests need: four numbers.

    A step takes four products of vectors as long as the weights more. Ends with `detach`, or at the
    end of a ``with`` block.

    Parameters
    ----------
    optimizer
        `torch.optim.SGD`, with or without momentum and weight decay; without dampening, Nesterov's
        momentum and `maximize`.

    Raises
    ------
    TypeError
        The optimizer is another.
    ValueError
        Its steps are not those of the module.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    >>> with Gradients(optimizer) as gradients:
    ...     for _ in range(20):
    ...         optimizer.zero_grad()
    ...         model(torch.randn(8, 3)).square().mean().backward()
    ...         optimizer.step()
    >>> gradients.values.shape
    (20, 4)
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(optimizer, torch.optim.SGD):
            raise TypeError(
                f"the relations are those of torch.optim.SGD, not of {type(optimizer).__name__}"
            )
        for group in optimizer.param_groups:
            if group["dampening"] or group["nesterov"] or group["maximize"]:
                raise ValueError(
                    "the relations are not those of dampening, nesterov or maximize: use SGD "
                    "without them"
                )
        self.optimizer = optimizer
        """Whose steps they are of."""
        self._rows: list[tuple[float, float, float, float]] = []
        self._hook = optimizer.register_step_post_hook(self._look)

    @property
    def values(self) -> NDArray[np.float64]:
        """A row for each step, shape (steps, 4): both sides of Yaida's relation, then of SASA+."""
        return np.array(self._rows, np.float64).reshape(-1, 4)

    @property
    def last(self) -> tuple[float, float, float, float] | None:
        """The row of the last step; None before the first."""
        return self._rows[-1] if self._rows else None

    def clear(self) -> None:
        """Forget the steps so far: call it when collection begins."""
        self._rows.clear()

    def detach(self) -> None:
        """Record no more. What was recorded stays."""
        self._hook.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()

    @torch.no_grad()
    def _look(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        sums = [0.0] * 4
        for group in optimizer.param_groups:
            rate, momentum = float(group["lr"]), float(group["momentum"])
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                for i, term in enumerate(_terms(optimizer, group, parameter, rate, momentum)):
                    sums[i] += term
        self._rows.append((sums[0], sums[1], sums[2], sums[3]))


def discrepancy(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """By how many standard errors the means of two series of one chain differ; NaN if constant."""
    off = left - right
    off = off / (np.abs(off).max() or 1)  # squares neither overflow nor vanish
    error = np.sqrt(off.var(ddof=1) / effective_sample_size(off))
    return float(off.mean() / error) if error > 0 else float("nan")


def _terms(
    optimizer: torch.optim.Optimizer,
    group: dict[str, Any],
    parameter: Tensor,
    rate: float,
    momentum: float,
) -> tuple[float, float, float, float]:
    """The four numbers, as far as one parameter goes; after its step."""
    assert parameter.grad is not None
    own = parameter.grad.to_dense()  # that of an embedding may be sparse
    direction: Tensor
    if momentum:
        direction = optimizer.state[parameter]["momentum_buffer"]
        before = parameter + rate * direction
        gradient = own + group["weight_decay"] * before
    else:  # theta' = theta - lr (g + decay theta), solved for theta
        decay = group["weight_decay"]
        before = (parameter + rate * own) / (1 - rate * decay)
        gradient = direction = own + decay * before
    squares = rate * _dot(direction, direction)
    return (
        _dot(before, gradient),
        (1 + momentum) / 2 * squares,
        _dot(before, direction),
        squares / 2,
    )


def _dot(one: Tensor, other: Tensor) -> float:
    return float((one.double() * other.double()).sum())

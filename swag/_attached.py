"""Copying behind training: when it may be done.

Weights do not change from one step of the optimizer to the next, so that an iterate can be copied
while the next forward and backward pass run, and only the step has to wait. That holds where nobody
else changes weights, which is not taken on trust: `Attached` says whether everything is as it has
to be, and `swag._behind` whether the weights copied are those of the call.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from swag._devices import KINDS
from swag._held import is_summoned
from swag.gradients import Gradients

__all__ = ["Attached", "has_spare_core", "is_better_beside"]

_LONG_COPY_BYTES = 64 << 20
"""To copy so much takes tens of milliseconds, and no more beside training on all cores."""


class Attached:
    """The optimizers that wait for a copy before they step.

    Parameters
    ----------
    wait
        Called before each step.
    """

    def __init__(self, wait: Callable[[], object]) -> None:
        self._wait = weakref.WeakMethod(wait)
        self._optimizers: list[torch.optim.Optimizer] = []
        self._handles: list[Any] = []
        self._gradients: list[Gradients] = []
        self._stepped: set[int] = set()
        self._stepping: set[int] = set()

    def add(self, optimizer: torch.optim.Optimizer, *, gradients: bool = False) -> None:
        """Let an optimizer wait, too; and record its gradients.

        Raises
        ------
        TypeError
            It is none.
        TypeError, ValueError
            Gradients of its steps say nothing.
        """
        optimizer = _stepped_by(optimizer)
        if not hasattr(optimizer, "register_step_pre_hook"):
            raise TypeError(
                f"attach takes a torch.optim.Optimizer, and this is {type(optimizer).__name__}"
            )
        if gradients and not any(there.optimizer is optimizer for there in self._gradients):
            self._gradients.append(Gradients(optimizer))
        if any(there is optimizer for there in self._optimizers):
            return
        self._optimizers.append(optimizer)
        number, wait, stepped, stepping = (
            id(optimizer),
            self._wait,
            self._stepped,
            self._stepping,
        )

        def before(*_: object) -> None:
            stepping.add(number)
            if (method := wait()) is not None:
                method()

        def after(*_: object) -> None:
            stepping.discard(number)
            stepped.add(number)

        self._handles.append(optimizer.register_step_pre_hook(before))
        self._handles.append(optimizer.register_step_post_hook(after))

    def collected(self) -> None:
        """An iterate was collected; the hooks seen so far count no more."""
        self._stepped.clear()
        for gradients in self._gradients:
            gradients.clear()

    def terms(self) -> tuple[float, ...] | None:
        """What the gradients of the last steps say, of all parameters; None where one has none."""
        rows = [gradients.last for gradients in self._gradients]
        known = [row for row in rows if row is not None]
        if not known or len(known) < len(self._optimizers):
            return None
        return tuple(map(sum, zip(*known, strict=True)))

    def detach(self) -> None:
        """Let no optimizer wait any more."""
        while self._handles:
            self._handles.pop().remove()
        while self._gradients:
            self._gradients.pop().detach()
        self._optimizers.clear()

    def may_copy_behind(
        self, model: nn.Module, parameters: Sequence[Tensor], held: Sequence[Tensor]
    ) -> bool:
        """Whether nothing but these optimizers changes the weights, as far as can be seen.

        Each has stepped since the last collection and is not stepping now; together they have all
        of the parameters; and what this process has of these, `held`, are plain tensors on
        one device that no forward pass writes to. In host memory, it must be worth it, too.
        """
        numbers = {id(optimizer) for optimizer in self._optimizers}
        if not numbers or not numbers <= self._stepped or self._stepping:
            return False
        stepped = {
            id(parameter)
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        return (
            all(id(p) in stepped for p in parameters)
            and all(map(_is_plain, held))
            and len({parameter.device for parameter in held}) == 1
            and (held[0].device.type in KINDS or (held[0].is_cpu and _all_beside(held)))
            # An embedding with a maximal norm shortens its weights in the forward pass.
            and all(getattr(m, "max_norm", None) is None for m in model.modules())
            and not any(map(is_summoned, model.modules()))
        )


def _stepped_by(optimizer: Any) -> Any:
    """The optimizer whose step has hooks: accelerate's has none, and PyTorch's inside."""
    while not hasattr(optimizer, "_optimizer_step_pre_hooks") and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _all_beside(held: Sequence[Tensor]) -> bool:
    return is_better_beside(sum(parameter.nbytes for parameter in held))


def is_better_beside(nbytes: int) -> bool:
    """Whether training is held up less by what is done beside it to so many bytes in host memory.

    If not, it is done while training waits, which then has all cores for it.
    """
    return nbytes >= _LONG_COPY_BYTES or has_spare_core()


def has_spare_core() -> bool:
    """Whether training leaves a core to the thread that copies.

    PyTorch's threads wait for the slowest of them. Beside as many as there are cores, one more
    costs them more than a short copy takes.
    """
    if hasattr(os, "sched_getaffinity"):
        return torch.get_num_threads() < len(os.sched_getaffinity(0))
    return torch.get_num_threads() < (os.cpu_count() or 1)


def _is_plain(parameter: Tensor) -> bool:
    return (
        type(parameter) in (nn.Parameter, Tensor)
        and parameter.layout == torch.strided
        and parameter.is_contiguous()
        and not parameter.is_inference()
    )

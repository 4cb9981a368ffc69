"""Copying behind training: when it may be done, and whether the weights stayed as they were.

Weights do not change from one step of the optimizer to the next, so that an iterate can be copied
while the next forward and backward pass run, and only the step has to wait. That holds where nobody
else changes weights, which is not taken on trust: `Attached` says whether everything is as it has
to be, and `Behind` whether the weights are the same when the copy ends as they were at the call.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from swag.gradients import Gradients

__all__ = ["Attached", "Behind", "WeightsChangedError", "copy_alone"]

_STRIDE = 4093
"""One of so many weights is in a sample: a prime, so that no row or column is always left out."""
_PIECE_ITEMS = 1 << 14
"""PyTorch shares out no operation on so few: the copying thread takes no core from training."""
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Of so many bytes: as integers, weights that are NaN can be compared."""
_LOOK_SECONDS = 0.1


class WeightsChangedError(Exception):
    """Weights changed while they were copied behind; undoes the transaction and goes no further."""


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
        TypeError, ValueError
            Gradients of its steps say nothing.
        """
        if any(there is optimizer for there in self._optimizers):
            return
        if gradients:
            self._gradients.append(Gradients(optimizer))
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
        of the parameters; and what this process has of these, `held`, are plain tensors that no
        forward pass writes to.
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
            # An embedding with a maximal norm shortens its weights in the forward pass.
            and all(getattr(m, "max_norm", None) is None for m in model.modules())
        )


class Behind:
    """One iterate that is copied behind.

    Made by the thread that collects, at the call; the other methods are of the copying thread, but
    for `wait`.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._mark = [_mark(parameter) for parameter in parameters]
        self._lock = threading.Lock()
        self._lock.acquire()
        self._copied = False
        self.over = False
        """Whether it was collected, or will not be."""
        self.error: BaseException | None = None
        """Why it was not collected."""

    def check(self) -> None:
        """Raise if the weights are not what they were."""
        for parameter, mark in zip(self._parameters, self._mark, strict=True):
            if _mark(parameter) != mark:
                raise WeightsChangedError

    def let_go(self) -> None:
        """Weights may change now: they are copied, or will not be."""
        if not self._copied:
            self._copied = True
            self._lock.release()

    def end(self) -> None:
        """It was collected, or will not be."""
        self.let_go()
        self.over = True

    def wait(self, alive: Callable[[], bool]) -> None:
        """Return when the weights may change; an interrupt tears only the wait."""
        # The lock is taken by one of those who wait and never given back: `_copied` says it all.
        while not self._copied and alive():
            self._lock.acquire(timeout=_LOOK_SECONDS)


def copy_alone(out: Tensor, parameter: Tensor) -> None:
    """`Tensor.copy_` on this thread alone, as far as that can be had."""
    if not (out.is_contiguous() and parameter.is_contiguous()):
        out.copy_(parameter)
        return
    there, here = out.view(-1), parameter.view(-1)
    for start in range(0, len(here), _PIECE_ITEMS):
        piece = slice(start, start + _PIECE_ITEMS)
        there[piece].copy_(here[piece])


def _is_plain(parameter: Tensor) -> bool:
    return (
        type(parameter) in (nn.Parameter, Tensor)
        and parameter.device.type == "cpu"
        and parameter.layout == torch.strided
        and parameter.is_contiguous()
        and not parameter.is_inference()
    )


def _mark(parameter: Tensor) -> tuple[int, int, int, list[int]]:
    """What tells that a parameter was written to: nearly always, and in no time."""
    bits = parameter.detach().view(-1).view(_INTEGERS[parameter.dtype.itemsize])
    return (
        parameter.data_ptr(),
        parameter.untyped_storage().nbytes(),
        parameter._version,
        bits[::_STRIDE].tolist(),
    )

"""Iterates that are copied behind training, and whether their weights stayed as they were.

An iterate is `Taken` when it is collected at once. `Shared` is one whose weights are in host
memory, where training has them: the step waits until they are copied. `Brought` is one that a
device copies to host memory beside its computations (`swag._devices`): over there, the step waits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pmarray.locks import Lock
from swag._buffers import Buffers
from swag._devices import Device
from swag._statistics import Observed

__all__ = ["Behind", "Brought", "Shared", "Staging", "Taken", "WeightsChangedError", "memory_of"]

_STRIDE = 4093
"""One of so many weights is in a sample: a prime, so that no row or column is always left out."""
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Of so many bytes: as integers, weights that are NaN can be compared."""
_ALIGNMENT = 64
_LOOK_SECONDS = 0.1


class WeightsChangedError(Exception):
    """Weights changed while they were copied behind; undoes the transaction and goes no further."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What there is to collect of an iterate."""

    weights: Sequence[Tensor]
    """In the memory that parameters have at the call (`memory_of`)."""
    buffers: Buffers
    observed: Observed


class Behind(ABC):
    """One iterate that is copied behind.

    Made by the thread that collects, at the call; the other methods are of the copying thread, but
    for `wait`.
    """

    def __init__(self) -> None:
        self._copied = False
        self.over = False
        """Whether it was collected, or will not be."""
        self.error: BaseException | None = None
        """Why it was not collected."""

    @abstractmethod
    def taken(self) -> Taken:
        """Return what there is to copy, as soon as it is in host memory."""

    @abstractmethod
    def check(self) -> None:
        """Raise `WeightsChangedError` if the weights copied are not what they were at the call."""

    @abstractmethod
    def reads(self, weights: Sequence[Tensor]) -> bool:
        """Whether the memory of some weights must stay as it is until `wait` has returned."""

    @abstractmethod
    def wait(self, alive: Callable[[], bool]) -> None:
        """Return when the weights may change; an interrupt tears only the wait.

        `alive` says whether the copying thread still does anything.
        """

    def let_go(self) -> None:
        """Weights may change now: they are copied, or will not be."""
        self._copied = True

    def end(self) -> None:
        """It was collected, or will not be."""
        self.let_go()
        self.over = True


class Shared(Behind):
    """One whose weights are copied from where training has them.

    Parameters
    ----------
    taken
        All in host memory.
    watched
        The weights that must not change until they are copied.
    """

    def __init__(self, taken: Taken, watched: Sequence[Tensor]) -> None:
        super().__init__()
        self._taken: Taken | None = taken
        self._watched = watched
        self._marks = [(*_mark(weights), _sample(weights).tolist()) for weights in watched]
        self._lock = Lock()
        self._lock.acquire()

    def taken(self) -> Taken:
        """See `Behind`."""
        assert self._taken is not None
        return self._taken

    def check(self) -> None:
        """See `Behind`."""
        for weights, mark in zip(self._watched, self._marks, strict=True):
            if (*_mark(weights), _sample(weights).tolist()) != mark:
                raise WeightsChangedError

    def reads(self, weights: Sequence[Tensor]) -> bool:
        """See `Behind`."""
        return not self._copied and _share_memory(self._watched, weights)

    def let_go(self) -> None:
        """See `Behind`."""
        if not self._copied:
            self._copied = True
            self._lock.release()

    def end(self) -> None:
        """See `Behind`."""
        super().end()
        self._watched, self._taken = (), None  # memory that parameters may have given up

    def wait(self, alive: Callable[[], bool]) -> None:
        """See `Behind`."""
        # The lock is taken by one of those who wait and never given back: `_copied` says it all.
        while not self._copied and alive():
            self._lock.acquire(timeout=_LOOK_SECONDS)


class Staging:
    """Host memory that the iterates of a device pass through, one after another."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._memory = torch.empty(0, dtype=torch.uint8, device="cpu")

    def places(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Memory for tensors; what those of the last call have is used again."""
        ends = [0]
        for tensor in tensors:
            ends.append(ends[-1] + -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT)
        if len(self._memory) < ends[-1]:
            self._memory = self.device.empty((ends[-1],), torch.uint8)
        return [
            self._memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for start, tensor in zip(ends, tensors, strict=False)
        ]


class Brought(Behind):
    """One that a device copies to host memory beside its computations.

    Weights do not change until the next step, before which the device waits for their copy. What
    may change earlier is copied twice: over there, in its turn, and then home.

    Parameters
    ----------
    staging
        Of the device. Nothing else must be under way there.
    model
        Has the buffers.
    sources
        The weights on the device, in the memory that parameters have at the call (`memory_of`).
    loss
        Of the minibatch before, if it is known.
    terms
        As in `Observed`.
    """

    @torch.no_grad()
    def __init__(
        self,
        staging: Staging,
        model: nn.Module,
        sources: Sequence[Tensor],
        loss: float | Tensor | None,
        terms: tuple[float, ...] | None,
    ) -> None:
        super().__init__()
        self._device = staging.device
        self._sources: Sequence[Tensor] = sources
        self._marks = [_mark(source) for source in sources]
        self._books = Lock()
        self._changed: bool | None = None
        """Whether they had, when somebody last could tell."""
        self._weights = staging.places(sources)
        self._pairs = list(zip(self._weights, sources, strict=True))
        self._samples = [
            self._bring(torch.cat([_sample(s) for s in sources if s.dtype == dtype]))
            for dtype in self._dtypes()
        ]
        self._buffers = Buffers.of(model, self._bring_now)
        self._loss = self._bring_now(loss.detach()) if isinstance(loss, Tensor) else loss
        self._terms = terms
        self._home = self._device.bring(self._pairs)

    def _dtypes(self) -> list[torch.dtype]:
        return list(dict.fromkeys(weights.dtype for weights in self._weights))

    def _bring_now(self, tensor: Tensor) -> Tensor:
        """Host memory that gets what a tensor holds now, also if it changes before."""
        if tensor.device != self._sources[0].device:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor)
        return self._bring(tensor.clone())

    def _bring(self, tensor: Tensor) -> Tensor:
        place = self._device.empty(tensor.shape, tensor.dtype)
        self._pairs.append((place, tensor))
        return place

    def taken(self) -> Taken:
        """See `Behind`."""
        self._home.synchronize()
        self._look()
        self._pairs.clear()
        self._sources = ()
        return Taken(
            self._weights,
            self._buffers,
            Observed(None if self._loss is None else float(self._loss), self._terms),
        )

    def check(self) -> None:
        """See `Behind`."""
        if self._changed:
            raise WeightsChangedError
        for dtype, sample in zip(self._dtypes(), self._samples, strict=True):
            found = [_sample(weights) for weights in self._weights if weights.dtype == dtype]
            if not torch.equal(torch.cat(found), sample):
                raise WeightsChangedError

    def reads(self, weights: Sequence[Tensor]) -> bool:
        """See `Behind`."""
        return not self._copied and _share_memory(self._sources, weights)

    def wait(self, alive: Callable[[], bool]) -> None:
        """See `Behind`."""
        if not self._copied:
            self._look()
            self._device.hold(self._home)

    def _look(self) -> None:
        """See whether the weights changed; whoever comes first, for then they may.

        They are copied, or about to be changed by who waits for that over there.
        """
        with self._books:
            if self._changed is None:
                self._changed = [_mark(source) for source in self._sources] != self._marks


def memory_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The memory that parameters have now, as tensors; no copy.

    It stays the iterate's if a parameter gets other memory meanwhile, such as an average that is
    swapped in and out. What is written to it by way of a parameter, a mark tells.
    """
    return [parameter.detach() for parameter in parameters]


def _share_memory(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    starts = {tensor.untyped_storage().data_ptr() for tensor in some}
    return any(tensor.untyped_storage().data_ptr() in starts for tensor in others)


def _mark(weights: Tensor) -> tuple[int, int, int]:
    """What tells that weights were written to by way of PyTorch, or that their memory is gone."""
    return weights.data_ptr(), weights.untyped_storage().nbytes(), weights._version


def _sample(weights: Tensor) -> Tensor:
    """What tells that they were written to some other way: nearly always, and in no time."""
    bits = weights.view(-1).view(_INTEGERS[weights.dtype.itemsize])
    return bits[::_STRIDE]

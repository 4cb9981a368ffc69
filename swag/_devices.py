"""Devices that compute behind their host, and what is asked of them to bring weights home.

What a program asks of a GPU is done later, in the order of a *stream*. Nothing here waits for the
stream that trains:

1. A stream of our own waits, over there, until what was asked of the training stream before is
   done. Then it copies to page-locked host memory, and an event marks that it has.
2. Whoever is about to change what is copied has the training stream wait for the event
   (`Device.hold`): over there, too; the host goes on.
3. The thread that collects waits for the event, and has the copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["KINDS", "Device", "Event"]


class Event(Protocol):
    """A place in a stream."""

    def synchronize(self) -> None:
        """Return when the device has come there; other threads of Python run meanwhile."""


class Device(Protocol):
    """A device that computes behind its host."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Host memory that the device can write to beside its computations."""

    def bring(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Event:
        """Have tensors of the device copied to host memory, when what they hold is computed.

        Of each pair the first, from `empty`, gets what the second has. Both have to live until the
        event.
        """

    def hold(self, event: Event) -> None:
        """Let nothing that this thread asks for from now on begin before the event."""


class CUDA:
    """A GPU of NVIDIA's, or of AMD's, which PyTorch calls by the same name."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._own: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Device`."""
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True, device="cpu")

    @torch.no_grad()
    def bring(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> torch.cuda.Event:
        """See `Device`."""
        self._own.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._own):
            for here, there in pairs:
                here.copy_(there, non_blocking=True)
            event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._own)
        return event

    def hold(self, event: Event) -> None:
        """See `Device`."""
        assert isinstance(event, torch.cuda.Event)
        torch.cuda.current_stream(self._device).wait_event(event)


KINDS: dict[str, Callable[[torch.device], Device]] = {"cuda": CUDA}
"""By the type of a `torch.device`; all others compute when they are asked."""

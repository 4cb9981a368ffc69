"""A device that computes behind its host, where there is none: the path of a GPU, on a CPU.

What PyTorch does on the CPU is done at once, as if the training stream had nothing to do. The
copies home are what comes later: when somebody has the training stream wait for them, which does
them then and there, or when the training thread itself waits for the one that collects. Who forgets
to wait gets weights of a later step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from swag import _devices
from swag._devices import Event
from swag._worker import Worker

__all__ = ["Late", "LateEvent", "late_device"]

_LOST_SECONDS = 60


class LateEvent:
    """A place behind some copies."""

    def __init__(self, copies: list[Callable[[], object]]) -> None:
        self._copies = copies
        self._lock = threading.Lock()
        self.reached = threading.Event()

    def come_to(self) -> None:
        """The device does what is before it."""
        with self._lock:
            while self._copies:
                self._copies.pop(0)()
            self.reached.set()

    def synchronize(self) -> None:
        """See `Event`."""
        if not self.reached.wait(_LOST_SECONDS):
            raise AssertionError("nobody has waited for the copy")


class Late:
    """See `Device`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.events: list[LateEvent] = []
        self.held: list[Event] = []
        self.memory: list[Tensor] = []

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Device`; what nobody has copied to shows."""
        memory = torch.empty(tuple(shape), dtype=dtype)
        memory.view(-1).view(torch.uint8).fill_(0x7F)
        self.memory.append(memory)
        return memory

    @torch.no_grad()
    def bring(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> LateEvent:
        """See `Device`."""
        event = LateEvent([lambda p=pair: p[0].copy_(p[1]) for pair in pairs])  # type: ignore[misc]
        self.events.append(event)
        return event

    def hold(self, event: Event) -> None:
        """See `Device`: here, as if it were full of work, the copies are done first."""
        assert isinstance(event, LateEvent)
        self.held.append(event)
        event.come_to()


@contextmanager
def late_device() -> Iterator[list[Late]]:
    """Take the CPU for such a device; yield those that are made."""
    made: list[Late] = []

    def make(device: torch.device) -> Late:
        made.append(Late(device))
        return made[-1]

    def in_time(real: Callable[[Worker], None]) -> Callable[[Worker], None]:
        def waiting(self: Worker) -> None:
            for device in made:
                for event in device.events:
                    event.come_to()
            real(self)

        return waiting

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(_devices.KINDS, "cpu", make)
        patch.setattr(Worker, "settle", in_time(Worker.settle))
        patch.setattr(Worker, "stop", in_time(Worker.stop))
        yield made

"""In the guest: does the transactions of a workload, and says which it has begun and committed."""

from __future__ import annotations

import random
from typing import Any, Protocol

import pmarray
from pmarray.testing import Workload

__all__ = ["Say", "make", "write"]

_CACHE_BYTES = 16384
"""Small, so that transactions spill."""


class Say(Protocol):
    """Sends a reply to the host and returns when it is on its way."""

    def __call__(self, word: str, value: Any = None) -> None: ...


def make(*, url: str) -> None:
    """Make an empty group."""
    pmarray.open_group(url, mode="w").close()


def write(say: Say, *, url: str, seed: int, length: int, begin: int, wait: bool) -> None:
    """Do transactions `begin` to `length` of the workload.

    Waited for, each is committed when it ends. Pipelined ones are promised by a flush, which comes
    after a few of them.
    """
    workload = Workload(seed, length)
    rng = random.Random(f"{seed} {begin}")
    with pmarray.open_group(url, mode="a", cache=_CACHE_BYTES) as group:
        for i in range(begin, length):
            say("begun", i + 1)
            with group.transaction(wait=wait):
                workload.apply(i, group)
            if wait:
                say("committed", i + 1)
            elif rng.random() < 0.2:
                group.flush()
                say("committed", i + 1)
    say("committed", length)

"""Stores of swag: what stands in attributes, and saved states of trainings."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

import pmarray
from tests.fuzz.mutate import change_bytes, change_json
from tests.fuzz.targets.use import attempt
from tests.fuzz.watch import Target

__all__ = ["TARGETS"]

Use = Callable[[random.Random, str], None]


def store(base: Path) -> Use:
    """The description of a posterior, and its counters."""
    import torch
    from torch import nn

    import swag

    model = nn.Linear(3, 2)
    group = pmarray.open_group(pmarray_url := "dram:fuzz-store")
    posterior = swag.SWAG(model, store=group)
    for step in range(3):
        torch.nn.init.constant_(model.weight, step)
        posterior.update_parameters(model)
    posterior.flush() if hasattr(posterior, "flush") else None
    keys = [key for key in group.attrs if key.startswith("swag")]
    whole = {key: group.attrs[key] for key in keys}
    assert whole, pmarray_url

    def use(rng: random.Random, mode: str) -> None:
        changed = change_json(rng, whole)
        group.attrs.clear()
        if isinstance(changed, dict):
            try:
                group.attrs.update({k: v for k, v in changed.items() if isinstance(k, str)})
            except (TypeError, RecursionError):
                return

        def read() -> None:
            found = swag.load(group)
            found.mean()
            found.sample(1)

        attempt(read)

    return use


def state(base: Path) -> Use:
    """The description of a saved state, and its bytes."""
    import torch

    from swag._state import pack, unpack

    description, data = pack(
        {"step": 3, "weights": torch.ones(2, 3), "rng": (torch.zeros(5, dtype=torch.uint8), None),
         "nan": float("nan"), "list": [1, {"a": torch.zeros((), dtype=torch.int64)}]}
    )  # fmt: skip

    def use(rng: random.Random, mode: str) -> None:
        changed = change_json(rng, description)
        raw = (
            data
            if rng.random() < 0.8
            else np.frombuffer(change_bytes(rng, data.tobytes()), np.uint8)
        )
        try:
            changed = json.loads(json.dumps(changed))
        except RecursionError:
            return
        attempt(lambda: unpack(changed, raw))

    return use


TARGETS: dict[str, Target] = {"swag-store": store, "swag-state": state}

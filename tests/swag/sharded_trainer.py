"""A `Trainer` of Transformers that shards its model over processes, for tests that start them."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from swag.integrations.transformers import SWAGCallback
from tests.swag.nets import Facts, facts
from tests.swag.sharded import whole
from tests.swag.trainers import classifier, train

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the library, about others
    import transformers
    from accelerate import PartialState
    from accelerate.utils.dataclasses import DistributedType

import swag


class DiedError(Exception):
    """Training comes to an end that it did not plan."""


class Watch(transformers.TrainerCallback):
    """Collects the same iterates in a plain model beside it."""

    def __init__(self, die_at: int) -> None:
        self.plain = classifier()
        self.beside = swag.SWAG(self.plain)
        self.die_at: int | None = die_at
        self.sharded = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        weights = whole(kwargs["model"])
        self.sharded = any(hasattr(p, "placements") for p in kwargs["model"].parameters())
        with torch.no_grad():
            self.plain.load_state_dict(weights, strict=False)
        self.beside.update_parameters(self.plain)
        if state.global_step == self.die_at:
            raise DiedError


def trained(folder: str, store: str) -> tuple[bool, int, Facts]:
    """Train to an exception, and go on from the checkpoint before; and what a plain loop makes."""
    rank, size = dist.get_rank(), dist.get_world_size()
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(size))

    def of_cpus(self: Any, *_: Any) -> tuple[str, DistributedType]:
        # Accelerate shards on devices alone, and looks for nothing but this to tell that there are.
        self.device = torch.device("cpu")
        return "gloo", DistributedType.MULTI_GPU

    PartialState._prepare_backend = of_cpus
    options: dict[str, Any] = {
        "labels": True,
        "max_steps": 5,
        "save_strategy": "steps",
        "save_steps": 2,
        "gradient_accumulation_steps": 1,
        "fsdp": True,
        "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]},
    }
    watch = Watch(die_at=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(DiedError), SWAGCallback(store) as callback:
            train(classifier(), Path(folder), callback, watch, **options)
        dist.barrier()
        with swag.load(store) as read:
            before = read.n_averaged
        dist.barrier()
        watch.die_at = None
        watch.beside.rewind(to=2)
        resume = str(Path(folder) / "checkpoint-2")
        train(classifier(), Path(folder), SWAGCallback(store), watch, resume=resume, **options)
    return watch.sharded, before, facts(watch.beside)

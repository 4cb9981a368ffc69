"""However a network is wrapped and stepped, its posterior is that of a plain loop, to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import swag
from swag.errors import SwagWarning
from tests.swag.nets import facts, network, same, steps, stored


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group(
        "gloo", store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


Wrap = Callable[[nn.Module], Any]
WRAPS: dict[str, Wrap] = {
    "plain": lambda model: model,
    "DataParallel": DataParallel,
    "DDP": DistributedDataParallel,
    "compile": lambda model: torch.compile(model, backend="eager"),
    "compiled DDP": lambda model: torch.compile(DistributedDataParallel(model), backend="eager"),
    "DDP of compiled": lambda model: DistributedDataParallel(torch.compile(model, backend="eager")),
}


def in_a_plain_loop(count: int) -> Any:
    model = network()
    posterior = swag.SWAG(model)
    for _ in steps(model, count):
        posterior.update_parameters(model)
    return facts(posterior)


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python:RuntimeWarning")
@pytest.mark.parametrize("how", WRAPS)
@pytest.mark.usefixtures("group")
def test_a_wrapped_network_is_collected_under_its_own_names(how: str, scratch: Path) -> None:
    store, model = f"memmap:{scratch / 'posterior'}", WRAPS[how](network())
    with swag.SWAG(model, store=store) as posterior:
        for _ in steps(model, 5):
            posterior.update_parameters(model)
    assert same(stored(store), in_a_plain_loop(5))
    plain, inputs = network(), torch.ones(4, 3)
    with swag.load(store) as read:
        # One network at a time: several go through a plain one at once, and may round otherwise.
        options: dict[str, Any] = {"activation": "none", "generator": 0}
        options |= {"samples": 2, "draws_at_once": 1}
        assert torch.equal(
            read.predict(plain, inputs, **options), read.predict(model, inputs, **options)
        )
    with swag.SWAG(plain, store=store, mode="a") as posterior:  # and goes on with the plain one
        posterior.update_parameters(plain)
        assert posterior.n_averaged == 6


def test_a_step_that_a_scaler_skips_adds_no_iterate() -> None:
    model = network()
    posterior, plain = swag.SWAG(model), swag.SWAG(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(5):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = model(torch.full((4, 3), step / 4)).square().mean()
        scaler.scale(loss).backward()
        if step == 2:
            next(model.parameters()).grad.fill_(torch.inf)  # type: ignore[union-attr]
        scaler.step(optimizer)
        scaler.update()
        if step == 2:
            with pytest.warns(SwagWarning, match="a gradient scaler has skipped it"):
                posterior.update_parameters(model)
        else:
            posterior.update_parameters(model)
            plain.update_parameters(model)
    assert posterior.n_repeated == 1
    assert same(facts(posterior), facts(plain))


def test_an_average_beside_it_is_the_mean() -> None:
    model = network()
    posterior, averaged = swag.SWAG(model), AveragedModel(model)
    for _ in steps(model, 6):
        posterior.update_parameters(model)
        averaged.update_parameters(model)
    for name, value in averaged.module.named_parameters():
        torch.testing.assert_close(posterior.mean()[name], value.detach())


SCRIPT = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from swag.integrations import Collector
from tests.swag.nets import network, steps

dist.init_process_group("gloo")
model = DistributedDataParallel(network())
with Collector(sys.argv[1]) as collector:
    if dist.get_rank() == 0:
        collector.begin(model)
    for step, _ in enumerate(steps(model, 4), start=1):
        collector.stepped(model, step)
dist.destroy_process_group()
"""


def test_the_first_of_two_processes_collects(scratch: Path) -> None:
    store, script = f"memmap:{scratch / 'posterior'}", scratch / "train.py"
    script.write_text(SCRIPT)
    run = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run"),
            # As --standalone does it, but for the name: a container need not know its localhost.
            *("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"),
            *("--nproc-per-node=2", str(script), store),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    found, alone = stored(store), in_a_plain_loop(4)
    # Gradients are averages of two equal ones, which is exact.
    assert same(found, alone)

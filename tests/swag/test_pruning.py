"""What is pruned is a window in less space; other processes read and copy while a store grows."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

import pmarray
import swag
from swag.cli import app
from swag.errors import StoreError, WindowError
from swag.integrations import Collector
from swag.pruning import prune
from tests.sampling import examples
from tests.swag.commands import SWAG
from tests.swag.nets import facts, same, stored
from tests.swag.test_collect import network, wandering


def collected(store: str, count: int, **options: Any) -> None:
    models = wandering(network(), count)
    with swag.SWAG(models[0], store=store, **options) as posterior:
        for model in models:
            posterior.update_parameters(model)


@examples(8)
@given(count=st.integers(1, 12), start=st.integers(0, 12), every=st.integers(1, 5))
def test_a_pruned_store_is_the_window(count: int, start: int, every: int) -> None:
    store = f"dram:pruned-{count}-{start}-{every}"
    collected(store, count, mode="w")
    if start >= count:
        with pytest.raises(WindowError, match=f"none from {start} on"):
            prune(store, start, every)
        return
    with swag.load(store) as whole:
        window = facts(whole.window(start, every))
    assert prune(store, start, every) == window["n_averaged"]
    found = stored(store)
    assert found["rank"] == window["rank"]
    for what in ("mean", "variance", "draws"):
        torch.testing.assert_close(found[what], window[what], rtol=1e-4, atol=1e-6)
    model = network()
    with swag.SWAG(model, store=store, mode="a") as posterior:
        posterior.update_parameters(model)
        assert posterior.n_averaged == window["n_averaged"] + 1


def test_space_is_given_back_and_a_ring_is_left_alone(scratch: Path) -> None:
    models = wandering(nn.Linear(300, 300), 20)
    store = f"memmap:{scratch / 'posterior'}"
    with swag.SWAG(models[0], store=store) as posterior:
        for model in models:
            posterior.update_parameters(model)

    def used() -> int:
        return sum(path.stat().st_blocks for path in (scratch / "posterior").rglob("*")) * 512

    before = used()
    result = CliRunner().invoke(app, ["prune", store, "--start", "10", "--every", "5"])
    assert result.exit_code == 0
    assert result.output.startswith("2 iterates are left in memmap:")
    assert used() < before - 17 * 360_000 // 2  # 18 of 20 columns, and the journal is kept
    ring = f"memmap:{scratch / 'ring'}"
    with swag.SWAG(models[0], store=ring, max_rank=3) as posterior:
        posterior.update_parameters(models[0])
    with pytest.raises(StoreError, match="keeps the last 3"):
        prune(ring)
    none = f"memmap:{scratch / 'none'}"
    with swag.SWAG(models[0], store=none, max_rank=0) as posterior:
        posterior.update_parameters(models[0])
    with pytest.raises(StoreError, match="keeps no iterates"):
        prune(none)
    result = CliRunner().invoke(app, ["prune", store, "--start", "5"])
    assert result.exit_code == 1
    assert "none from 5 on" in result.output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("output", ["> /dev/full", "| true"])
def test_a_pruning_that_cannot_be_printed_is_told_all_the_same(output: str, scratch: Path) -> None:
    """Who takes it for none prunes again, and loses iterates."""
    store = f"memmap:{scratch}/store"
    collected(store, 30)
    words = shlex.join([*SWAG, "prune", store, "--every", "2"])
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        ["sh", "-c", f"{words} {output}"], capture_output=True, text=True, env=environment
    )
    assert f"15 iterates are left in {store}\n" in done.stderr
    assert ("swag: the output cannot be written" in done.stderr) == ("full" in output)
    words = shlex.join([*SWAG, "info", "--json", store])
    done = subprocess.run(
        ["sh", "-c", f"{words} {output}"], capture_output=True, text=True, env=environment
    )
    assert done.stderr.count("\n") == ("full" in output)


def test_training_resumes_from_its_last_checkpoint_only(scratch: Path) -> None:
    store, models = f"memmap:{scratch / 'posterior'}", wandering(network(), 8)
    with Collector(store) as collector:
        collector.begin(models[0])
        for step, model in enumerate(models[1:], start=1):
            collector.stepped(model, step)
            if step == 4:
                collector.saving(step)
    assert prune(store, start=3) == 4
    with Collector(store) as collector:
        with pytest.raises(StoreError, match="does not know the checkpoint at step 4"):
            collector.begin(models[0], step=4)
        collector.begin(models[0], step=7)
        assert collector.posterior.n_averaged == 4


def test_a_pruned_training_cannot_go_on(scratch: Path) -> None:
    store = f"memmap:{scratch / 'run'}"
    train = ["train", store, "--model", "2conv2fc", "--images", "1000", "--epochs", "2"]
    train += ["--burn-in", "1"]
    assert CliRunner().invoke(app, train).exit_code == 0
    assert prune(store, start=2, every=2) == 4
    result = CliRunner().invoke(app, train)
    assert result.exit_code == 1
    assert "taken out since (swag prune)" in result.output
    assert CliRunner().invoke(app, ["info", store]).exit_code == 0


READER = """
import sys
import torch, swag, pmarray
from tests.swag.commands import SWAG
from tests.swag.nets import facts

source, target, count = sys.argv[1:]
for _ in range(20):
    try:
        pmarray.copy_group(source, target)
        break
    except pmarray.errors.SnapshotExpiredError:  # the ring has gone round, and nothing was left
        pass
else:
    raise RuntimeError("twenty copies have expired")
for _ in range(20):
    try:
        with swag.load(source) as posterior:
            torch.save(facts(posterior), count)
        break
    except swag.errors.WindowError:  # likewise
        assert posterior.rank == 2
else:
    raise RuntimeError("twenty windows are gone")
"""


@pytest.mark.parametrize("rank", [None, 2])
def test_another_process_copies_and_draws_while_the_store_grows(
    rank: int | None, scratch: Path
) -> None:
    store, copied = f"memmap:{scratch / 'posterior'}", f"memmap:{scratch / 'copy'}"
    models = wandering(network(), 400)
    script = scratch / "reader.py"
    script.write_text(READER)
    seen = []
    with swag.SWAG(models[0], store=store, max_rank=rank, checkpoint_every=7) as posterior:
        iterates = iter(models)
        for _ in range(20):
            posterior.update_parameters(next(iterates))
        posterior.flush()
        with subprocess.Popen(
            [sys.executable, str(script), store, copied, str(scratch / "facts.pt")],
            stderr=subprocess.PIPE,
            text=True,
        ) as reader:
            while reader.poll() is None:
                model = next(iterates, None)
                if model is None:
                    iterates = iter(models)
                    continue
                posterior.update_parameters(model)
                seen.append(model)
            assert reader.stderr is not None
            assert reader.returncode == 0, reader.stderr.read()
    every = models[:20] + seen
    for found in (torch.load(scratch / "facts.pt", weights_only=True), stored(copied)):
        count = found["n_averaged"]
        assert 20 <= count < len(every)
        alone = swag.SWAG(models[0], max_rank=rank, checkpoint_every=7)
        for model in every[:count]:
            alone.update_parameters(model)
        assert same(found, facts(alone))
    assert not pmarray.verify(copied)


def test_iterates_that_came_since_the_group_was_opened(tmp_path: Path) -> None:
    store, model = f"memmap:{tmp_path}/s", torch.nn.Linear(2, 1)

    def collect(count: int) -> None:
        with swag.SWAG(model, store, mode="a") as posterior:
            for _ in range(count):
                torch.nn.init.normal_(model.weight)
                posterior.update_parameters(model)

    collect(4)
    with pmarray.open_group(store, mode="r+") as group:
        assert "swag" in group.attrs
        collect(6)
        assert prune(group, start=2, every=2) == 4
    with swag.load(store) as found:
        assert found.n_averaged == 4
        assert torch.equal(found.iterate(0)["bias"], model.bias.detach())

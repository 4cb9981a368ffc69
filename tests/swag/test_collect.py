"""Collecting: the store holds the iterates, their moments are right, and reopening goes on."""

from __future__ import annotations

import copy
import errno
import random
import resource
import shutil
import signal
import tempfile
import threading
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

import pmarray
import swag
from pmarray._commits.committer import Committer
from pmarray._commits.journal import Journal
from pmarray._formats.records import Image
from swag.errors import ModelError, StoreError, WindowError
from tests.sampling import examples

Model = TypeVar("Model", bound=nn.Module)


def network() -> nn.Sequential:
    """A small one, its weights drawn without the global generator."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return wandering(model, 1, seed=99)[0]


def wandering(model: Model, count: int, *, seed: int = 0) -> list[Model]:
    """Models as an optimizer would leave them: a drift and a random walk in every weight."""
    generator = torch.Generator().manual_seed(seed)
    models = []
    for _ in range(count):
        model = copy.deepcopy(model)
        for p in model.parameters():
            if p.requires_grad:
                step = torch.randn(p.shape, generator=generator) * 0.05 + 0.01
                p.data += step.to(p.dtype)
        models.append(model)
    return models


def flat(model: nn.Module) -> NDArray[np.float64]:
    return np.concatenate(
        [p.detach().double().numpy().ravel() for p in model.parameters() if p.requires_grad]
    )


def in_a_row(tensors: dict[str, torch.Tensor]) -> NDArray[np.float64]:
    return np.concatenate([t.double().numpy().ravel() for t in tensors.values()])


def collected(location: str, models: Sequence[nn.Module], **options: Any) -> None:
    """Collect some models, into what is there."""
    with swag.SWAG(models[0], store=location, mode="a", **options) as posterior:
        for model in models:
            posterior.update_parameters(model)


def contents(location: str) -> dict[str, NDArray[np.generic]]:
    """Everything that a posterior depends on."""
    with swag.load(location) as posterior:
        store = posterior._store
        collected = store.progress().collected
        moments = store.moments(collected).moments()
        found = {
            "anchor": store.read_anchor().numpy(),
            "mean": moments.mean,
            "squares": moments.sum_of_squares,
        }
        if store.kept(collected):
            held = range(collected - store.kept(collected), collected)
            columns = store.columns(held)
            found["columns"] = np.concatenate(
                [v for _, v in columns.pieces(0, len(moments.mean), 8)]
            )
        return found


def assert_same(one: dict[str, NDArray[np.generic]], other: dict[str, NDArray[np.generic]]) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


# -- what is stored -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("max_rank", [None, 0, 7])
def test_mean_and_variance_are_those_of_the_iterates(
    location: str, dtype: torch.dtype, max_rank: int | None
) -> None:
    models = wandering(network().to(dtype), 30)
    iterates = np.array([flat(model) for model in models])
    with swag.SWAG(models[0], store=location, max_rank=max_rank) as posterior:
        for model in models:
            posterior.update_parameters(model)
        assert posterior.n_averaged == 30
        assert posterior.rank == (30 if max_rank is None else max_rank)
        mean, variance = posterior.mean(), posterior.variance()
    eps = np.finfo(np.float32).eps
    scale = np.abs(iterates).max()
    assert np.abs(in_a_row(mean) - iterates.mean(axis=0)).max() < 8 * eps * scale
    np.testing.assert_allclose(in_a_row(variance), iterates.var(axis=0), rtol=float(100 * eps))
    assert {t.dtype for t in mean.values()} == {
        torch.float64 if dtype == torch.float64 else torch.float32
    }
    assert [t.shape for t in mean.values()] == [p.shape for p in models[0].parameters()]
    with swag.load(location) as stored:
        for name, value in stored.mean().items():
            assert torch.equal(value, mean[name])
        for name, value in stored.variance().items():
            assert torch.equal(value, variance[name])


def test_the_file_holds_the_iterates(scratch: Path) -> None:
    models = wandering(network(), 9)
    collected(f"memmap:{scratch}", models)
    iterates = np.array([flat(model) for model in models]).T
    stored = np.load(scratch / "trajectory.npy", mmap_mode="r")[: len(iterates)]
    np.testing.assert_array_equal(stored, iterates.astype(np.float32))
    anchor = np.load(scratch / "anchor.npy")
    np.testing.assert_array_equal(anchor[: len(iterates)], iterates[:, 0].astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_an_iterate_comes_back_to_the_bit(location: str, dtype: torch.dtype) -> None:
    models = wandering(network().to(dtype), 5)
    collected(location, models)
    with swag.load(location) as posterior:
        stored = posterior._store.rows
        assert stored is not None
        assert stored.dtype.itemsize == dtype.itemsize
        for number, model in enumerate(models):
            weights = posterior.iterate(number)
            for name, parameter in model.named_parameters():
                assert weights[name].dtype == dtype
                assert torch.equal(weights[name], parameter)
                assert torch.equal(posterior.iterate(number - 5)[name], parameter)
        for outside in (5, -6):
            with pytest.raises(WindowError, match="5 are collected"):
                posterior.iterate(outside)


@pytest.mark.parametrize("max_rank", [None, 0, 3])
def test_a_posterior_says_what_it_is(location: str, max_rank: int | None) -> None:
    models = wandering(network(), 4)
    size = sum(p.numel() for p in models[0].parameters())
    posterior = swag.SWAG(models[0], location, max_rank=max_rank)
    assert f" 0 iterates of {size} weights, max_rank={max_rank}>" in repr(posterior)
    for model in models:
        posterior.update_parameters(model)
    assert f" 4 iterates of {size} weights, max_rank={max_rank}>" in repr(posterior)
    held = 4 if max_rank is None else max_rank
    assert repr(posterior.window()).endswith(f" 4 iterates of {size} weights, rank {held}>")
    posterior.close()
    assert repr(posterior).endswith(f" 4 iterates of {size} weights, max_rank={max_rank}, closed>")


def test_a_ring_has_its_last_iterates(location: str) -> None:
    models = wandering(network(), 9)
    with swag.SWAG(models[0], location, max_rank=3, checkpoint_every=2) as posterior:
        for model in models:
            posterior.update_parameters(model)
            assert torch.equal(posterior.iterate(-1)["0.weight"], model.get_parameter("0.weight"))
        assert torch.equal(posterior.iterate(6)["2.bias"], models[6].get_parameter("2.bias"))
        with pytest.raises(WindowError, match="those from 6 on"):
            posterior.iterate(5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_iterates_are_rounded_and_told_apart(
    location: str, dtype: torch.dtype, recwarn: pytest.WarningsRecorder
) -> None:
    models = wandering(network(), 12)
    for model in models:
        with torch.no_grad():  # a step that the narrower type does not show
            first = models[0].get_parameter("0.weight")
            model.get_parameter("0.weight").copy_(first * (1 + 1e-5))
    for half in (models[:6], models[6:]):
        collected(location, half, dtype=dtype)
    with swag.load(location) as posterior:
        assert posterior.n_averaged == 12
        assert not recwarn
        for number, model in enumerate(models):
            weight = posterior.iterate(number)["2.weight"]
            assert weight.dtype == torch.float32
            assert torch.equal(weight, model.get_parameter("2.weight").to(dtype).float())
        rounded = np.array([flat(model.to(dtype)) for model in models])
        mean = in_a_row(posterior.mean())
        np.testing.assert_allclose(mean, rounded.mean(axis=0), rtol=1e-5, atol=1e-6)
    with pytest.raises(StoreError, match=r"dtype is torch\.float32, not"):
        swag.SWAG(models[0].float(), location, mode="a")


def test_what_a_dtype_cannot_be() -> None:
    with pytest.raises(ValueError, match="wider"):
        swag.SWAG(network(), dtype=torch.float64)
    with pytest.raises(ValueError, match="max_rank=0"):
        swag.SWAG(network(), max_rank=0, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="may be"):
        swag.SWAG(network(), dtype=torch.int8)


def test_where_all_is_kept_moments_are_taken_when_they_are_asked_for(scratch: Path) -> None:
    models = wandering(network(), 9)
    store = f"memmap:{scratch}"
    with swag.SWAG(models[0], store, checkpoint_every=2) as posterior:
        for model in models[:5]:
            posterior.update_parameters(model)
        assert posterior._summing.moments.count == 0
        half = posterior.mean()
        assert posterior._summing.moments.count == 5
        for model in models[5:]:
            posterior.update_parameters(model)
        assert posterior._summing.moments.count == 5
    with swag.load(store) as stored:
        assert stored._store.progress().in_moments == 5
        assert torch.equal(stored.window(start=0).mean()["0.bias"], stored.mean()["0.bias"])
        exact = np.array([flat(model) for model in models]).mean(axis=0)
        np.testing.assert_allclose(in_a_row(stored.mean()), exact, rtol=1e-5, atol=1e-6)
    exact = np.array([flat(model) for model in models[:5]]).mean(axis=0)
    np.testing.assert_allclose(in_a_row(half), exact, rtol=1e-5, atol=1e-6)


def test_what_is_called_at_a_checkpoint_may_ask_for_the_iterate(location: str) -> None:
    models = wandering(network(), 6)
    seen = []

    def on_checkpoint(group: pmarray.Group) -> None:
        seen.append((posterior.n_averaged, posterior.iterate(-1)["0.bias"]))

    with swag.SWAG(
        models[0], location, checkpoint_every=2, on_checkpoint=on_checkpoint
    ) as posterior:
        for model in models:
            posterior.update_parameters(model)
        assert posterior.n_averaged == 6
    assert [count for count, _ in seen] == [2, 4, 6]
    assert all(torch.equal(bias, models[n - 1].get_parameter("0.bias")) for n, bias in seen)


def test_a_ring_writes_each_column_once(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a checkpoint makes superfluous is overwritten without a before-image."""
    written: list[int] = []
    real = Journal.before

    def counted(journal: Journal, number: int, images: Iterable[Image]) -> bool:
        kept = list(images)
        written.extend(image.data.nbytes for image in kept if image.file_id == ring)
        return real(journal, number, kept)

    models = wandering(nn.Linear(200, 100), 60)
    with swag.SWAG(models[0], f"memmap:{scratch}", max_rank=3, checkpoint_every=4) as posterior:
        ring = posterior.group["trajectory"]._array.file_id
        monkeypatch.setattr(Journal, "before", counted)
        for model in models[:45]:
            posterior.update_parameters(model)
        posterior.flush()
        for model in models[45:50]:
            posterior.update_parameters(model)
        posterior.rewind()
        for model in models[45:]:
            posterior.update_parameters(model)
        posterior.flush()
        assert posterior.n_averaged == 63
    assert not written


def test_a_bounded_store_stays_bounded(location: str) -> None:
    models = wandering(network(), 100)
    with swag.SWAG(models[0], store=location, max_rank=5, checkpoint_every=3) as posterior:
        for model in models:
            posterior.update_parameters(model)
        assert posterior.rank == 5
    with pmarray.open_group(location, mode="r") as group:
        assert group["trajectory"].shape[1] == 11


def test_frozen_parameters_are_left_out_and_may_change() -> None:
    model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 1))
    posterior = swag.SWAG(model)
    for later in wandering(model, 4):
        later.get_parameter("0.weight").data += 1
        posterior.update_parameters(later)
    assert set(posterior.mean()) == {"1.weight", "1.bias"}
    untouched = model.get_parameter("0.weight").clone()
    with posterior.sampled(model, generator=0):
        assert torch.equal(model.get_parameter("0.weight"), untouched)


def test_parameters_are_paired_by_name_across_builds(location: str) -> None:
    class Net(nn.Module):
        def __init__(self, names: list[str]) -> None:
            super().__init__()
            for name in names:
                self.register_module(name, nn.Linear(2, 2))

    forwards, backwards = Net(["a", "b"]), Net(["b", "a"])
    with swag.SWAG(forwards, store=location) as posterior:
        posterior.update_parameters(forwards)
        first = {name: value.clone() for name, value in forwards.state_dict().items()}
        for step, model in enumerate((backwards, forwards), 1):  # all weights move alike
            model.load_state_dict({name: value + step for name, value in first.items()})
            posterior.update_parameters(model)
        for value in posterior.variance().values():
            torch.testing.assert_close(value, torch.full_like(value, 2 / 3))
    with swag.SWAG(backwards, store=location, mode="a") as posterior:
        for value in posterior.variance().values():
            torch.testing.assert_close(value, torch.full_like(value, 2 / 3))


def test_the_global_generators_are_left_alone() -> None:
    model = network()
    before = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()  # noqa: NPY002
    posterior = swag.SWAG(model)
    for later in wandering(model, 5):
        posterior.update_parameters(later)
    posterior.sample(3)
    inputs = torch.zeros(2, 3)
    for data in (inputs, torch.utils.data.TensorDataset(inputs)):
        posterior.predict(model, data, activation="softmax", samples=2, generator=1)
    with posterior.sampled(model):
        pass
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == repr(np.random.get_state())  # noqa: NPY002
    assert before[2] == random.getstate()


def test_a_group_that_was_given_stays_open(location: str) -> None:
    model = network()
    with pmarray.open_group(location) as group:
        group.create("mine", 3)
        with swag.SWAG(model, store=group) as posterior:
            posterior.update_parameters(model)
        assert not group.closed
        assert swag.load(group).n_averaged == 1
    with pmarray.open_group(location, mode="r") as group:
        assert "mine" in group


# -- going on -------------------------------------------------------------------------------------


@examples(0.4)
@given(
    stops=st.lists(st.integers(1, 29), max_size=3),
    max_rank=st.sampled_from([None, 0, 1, 4]),
    checkpoint_every=st.integers(1, 12),
)
def test_reopening_goes_on_bit_for_bit(
    stops: list[int], max_rank: int | None, checkpoint_every: int
) -> None:
    models = wandering(network(), 30)
    options = {"max_rank": max_rank, "checkpoint_every": checkpoint_every}
    whole, parts = f"dram:{uuid.uuid4()}", f"dram:{uuid.uuid4()}"
    collected(whole, models, **options)
    edges = sorted({0, *stops, 30})
    for low, high in pairwise(edges):
        collected(parts, models[low:high], **options)
    assert_same(contents(whole), contents(parts))


@pytest.mark.parametrize("max_rank", [None, 4])
def test_moments_are_rolled_forward_from_an_older_checkpoint(
    scratch: Path, max_rank: int | None
) -> None:
    models = wandering(network(), 29)
    options: dict[str, Any] = {"max_rank": max_rank, "checkpoint_every": 10}
    collected(f"memmap:{scratch / 'whole'}", models, **options)
    part = f"memmap:{scratch / 'part'}"
    group = pmarray.open_group(part)
    posterior = swag.SWAG(models[0], store=group, **options)
    for model in models[:25]:
        posterior.update_parameters(model)
    assert posterior.rank  # all taken in
    group.close()  # durable, but for the moments since iterate 20
    with pmarray.open_group(part, mode="r") as group:
        assert group.attrs["swag.progress"]["checkpointed"] == 20
        assert group.attrs["swag.progress"]["collected"] == 25
    collected(part, models[25:], **options)
    assert_same(contents(f"memmap:{scratch / 'whole'}"), contents(part))


def test_what_was_made_durable_survives_without_closing(scratch: Path) -> None:
    # A copy of the files stands for a machine that stops: nothing that came later is in it.
    models = wandering(network(), 24)
    posterior = swag.SWAG(models[0], store=f"memmap:{scratch / 'live'}", checkpoint_every=8)
    for model in models[:16]:
        posterior.update_parameters(model)
    posterior.flush()
    shutil.copytree(scratch / "live", scratch / "dead", symlinks=True)
    for model in models[16:]:
        posterior.update_parameters(model)
    posterior.close()
    collected(f"memmap:{scratch / 'dead'}", models[16:], checkpoint_every=8)
    assert_same(contents(f"memmap:{scratch / 'live'}"), contents(f"memmap:{scratch / 'dead'}"))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Linear(3, 2), {"max_rank": 5}, r"max_rank is 5, not None"),
        (nn.Linear(3, 2), {"checkpoint_every": 7}, r"checkpoint_every is 7, not 100"),
        (nn.Linear(4, 2), {}, r"weight has shape \(2, 4\), not \(2, 3\)"),
        (nn.Linear(3, 2, bias=False), {}, r"bias is missing"),
        (
            nn.Sequential(nn.Linear(3, 2)),
            {},
            r"weight is missing; bias is missing; 0\.weight is new",
        ),
    ],
)
def test_a_store_of_another_kind_is_refused_with_the_difference(
    location: str, model: nn.Module, options: dict[str, Any], message: str
) -> None:
    collected(location, [nn.Linear(3, 2)])
    before = contents(location)
    with pytest.raises(StoreError, match=message):
        swag.SWAG(model, store=location, mode="a", **options)
    assert_same(before, contents(location))


@pytest.mark.parametrize("max_rank", [None, 0, 1, 20, 1000])
@pytest.mark.parametrize(("side", "in_memory", "on_disk"), [(2, 100, 100), (1000, 33, 100)])
def test_checkpoints_unless_somebody_says_how_many(
    location: str, side: int, in_memory: int, on_disk: int, max_rank: int | None
) -> None:
    model = nn.Linear(side, side)
    every = (in_memory if location.startswith("dram:") else on_disk) if max_rank else 100
    for mode in ("w-", "a"):
        with swag.SWAG(model, location, max_rank, mode=mode) as posterior:
            assert posterior._store.configuration.checkpoint_every == every
            nn.init.normal_(model.weight)
            posterior.update_parameters(model)
    with swag.SWAG(model, location, max_rank, mode="w", checkpoint_every=7) as posterior:
        posterior.update_parameters(model)
    with swag.SWAG(model, location, max_rank, mode="a") as posterior:
        assert posterior._store.configuration.checkpoint_every == 7


def test_another_model_while_collecting_is_refused_and_collects_nothing() -> None:
    models = wandering(network(), 3)
    posterior = swag.SWAG(models[0])
    posterior.update_parameters(models[0])
    with pytest.raises(ModelError, match=r"0\.weight has shape"):
        posterior.update_parameters(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)))
    with pytest.raises(ModelError, match=r"3\.weight is new"):
        posterior.update_parameters(network().append(nn.Linear(2, 2)))
    posterior.update_parameters(models[1])
    expected = (flat(models[0]) + flat(models[1])) / 2
    np.testing.assert_allclose(in_a_row(posterior.mean()), expected, rtol=1e-6)


def test_what_is_no_posterior_is_refused(location: str) -> None:
    with pmarray.open_group(location) as group:
        group.create("x", 3)
    with pytest.raises(StoreError, match="holds no posterior"):
        swag.load(location)
    with pmarray.open_group(location) as group:
        group.attrs["swag"] = {"format": 99}
    with pytest.raises(StoreError, match=r'format 99.*mode="w"'):
        swag.load(location)
    with pmarray.open_group(location) as group, pytest.raises(StoreError, match="format 99"):
        swag.SWAG(network(), store=group)
    with swag.SWAG(network(), store=location, mode="w") as posterior:
        assert posterior.n_averaged == 0


@pytest.mark.parametrize("attached", [False, True])
def test_buffers_and_losses_end_no_commit_window(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, attached: bool
) -> None:
    commits: list[int] = []
    commit = Committer.commit

    def counted(self: Committer, writes: Any, merged: Any) -> None:
        commit(self, writes, merged)
        commits.append(len(merged))

    monkeypatch.setattr(Committer, "commit", counted)
    monkeypatch.setattr("swag._location._WINDOW_SECONDS", 60.0)
    model = nn.Sequential(nn.Linear(40, 60), nn.BatchNorm1d(60), nn.Linear(60, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    url = f"memmap:{scratch / 'store'}"
    with swag.SWAG(model, store=url) as posterior:
        if attached:
            posterior.attach(optimizer)
        for step in range(40):
            optimizer.zero_grad()
            model(torch.randn(8, 40)).square().mean().backward()
            optimizer.step()
            posterior.update_parameters(model, loss=float(step))
        assert len(commits) <= 20, commits  # a busy thread takes a few at a time
    with swag.load(url) as stored:
        for name, buffer in stored._last_buffers().tensors.items():
            assert torch.equal(buffer, model.state_dict()[name]), name
        statistics = stored._store.statistics
        assert statistics is not None
        np.testing.assert_array_equal(statistics.of(range(40)).loss, np.arange(40))


@pytest.mark.parametrize("options", [{"max_rank": -1}, {"checkpoint_every": 0}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        swag.SWAG(network(), **options)


# -- what goes wrong behind the caller's back ----------------------------------------------------


def test_nothing_collected_yet() -> None:
    posterior = swag.SWAG(network())
    for question in (posterior.mean, posterior.variance, posterior.sample, posterior.state_dict):
        with pytest.raises(WindowError, match="nothing has been collected"):
            question()
    assert posterior.n_averaged == 0


def test_a_failure_of_the_thread_reaches_the_caller(scratch: Path) -> None:
    models = wandering(network(), 12)
    posterior = swag.SWAG(models[0], store=f"memmap:{scratch}", checkpoint_every=4)
    for model in models[:4]:
        posterior.update_parameters(model)
    posterior.flush()
    saved = contents(f"memmap:{scratch}")
    posterior._store.group.close()  # behind its back
    with pytest.raises(pmarray.errors.ClosedError):
        posterior.update_parameters(models[4])
    with pytest.raises(pmarray.errors.ClosedError):
        posterior.close()
    assert posterior.closed
    posterior.close()
    assert_same(saved, contents(f"memmap:{scratch}"))


def test_a_full_device_is_an_oserror_and_the_checkpoint_remains() -> None:
    full = Path("/dev/shm")
    if not full.is_dir():
        pytest.skip("there is no /dev/shm to limit")
    models = wandering(nn.Linear(100, 100), 200)
    with tempfile.TemporaryDirectory(dir=full) as directory:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            posterior = swag.SWAG(models[0], store=f"memmap:{directory}", checkpoint_every=5)
            # The journal takes four of them.
            resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, limits[1]))
            with pytest.raises(OSError) as caught:  # noqa: PT011 - the first call that can
                for model in models:
                    posterior.update_parameters(model)
                posterior.flush()
            assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        with suppress(OSError):  # what is still in memory may have found room now
            posterior.close()
        with swag.load(f"memmap:{directory}") as stored:
            count = stored.n_averaged
            assert 5 <= count < 200
            expected = np.mean([flat(model) for model in models[:count]], axis=0)
            np.testing.assert_allclose(in_a_row(stored.mean()), expected, atol=1e-5)


def test_closing_ends_the_threads_and_collection(location: str) -> None:
    model = network()
    before = set(threading.enumerate())
    posterior = swag.SWAG(model, store=location)
    posterior.update_parameters(model)
    posterior.close()
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not any(name.startswith("swag-") for name in left)
    with pytest.raises(pmarray.errors.ClosedError):
        posterior.update_parameters(model)


def test_a_posterior_that_is_dropped_leaves_no_thread() -> None:
    model = network()
    before = set(threading.enumerate())
    posterior = swag.SWAG(model)
    posterior.update_parameters(model)
    assert posterior.rank == 1
    threads = set(threading.enumerate()) - before
    assert {"swag-collecting", "swag-moments"} <= {thread.name for thread in threads}
    del posterior
    for thread in threads:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in threads)


def test_the_state_holds_the_moments_and_not_the_trajectory(tmp_path: Path, location: str) -> None:
    models = wandering(network(), 40)
    with swag.SWAG(models[0], store=location) as posterior:
        for model in models:
            posterior.update_parameters(model)
        state = posterior.state_dict()
        torch.save(state, tmp_path / "state.pt")
        again = torch.load(tmp_path / "state.pt", weights_only=True)
        assert again["n_averaged"] == 40
        assert again["store"] == location
        for name, value in posterior.mean().items():
            assert torch.equal(again["mean"][name], value)
    assert (tmp_path / "state.pt").stat().st_size < 10_000

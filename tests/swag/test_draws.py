"""Draws in their parts and pairs, and wherever they go: in memory, an array, files, one by one."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import pmarray
import swag
from swag import _draws, _space, _trajectory
from swag._draws import Draws
from swag._space import free_on_disk
from swag._store import Store
from swag._trajectory import Columns, row_blocks
from swag.cli import app
from swag.errors import WindowError
from tests.sampling import examples
from tests.swag.conftest import Reading

SMALL = 64  # rows of a block, where a test wants many


class Weights(nn.Module):
    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.first = nn.Parameter(values[:6].reshape(2, 3).clone())
        self.second = nn.Parameter(values[6:].clone())


def collected(n: int, count: int, seed: int = 0, location: str | None = None) -> swag.SWAG:
    generator = torch.Generator().manual_seed(seed)
    walk = (0.3 * torch.randn(count, n, generator=generator)).cumsum(dim=0)
    posterior = swag.SWAG(Weights(walk[0]), store=location or f"dram:{uuid.uuid4()}")
    for values in walk:
        posterior.update_parameters(Weights(values))
    return posterior


def flat(weights: dict[str, Tensor]) -> Tensor:
    lead = weights["second"].shape[:-1]
    return torch.cat([weights["first"].reshape(*lead, 6), weights["second"]], dim=-1)


@pytest.fixture(scope="module")
def small_blocks() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    for module in ("sampling", "_trajectory"):
        patch.setattr(f"swag.{module}.BLOCK_ROWS", SMALL)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("draws")


@examples(0.4)
@given(
    n=st.integers(7, 6 * SMALL),
    count=st.integers(2, 9),
    draws=st.integers(0, 3),
    scheme=st.sampled_from(["dram", "memmap", "zarr"]),
    layout=st.sampled_from(["row", "col"]),
    part=st.sampled_from(["both", "diagonal", "low-rank"]),
    antithetic=st.booleans(),
    memory_bytes=st.sampled_from([0, 5000, 1 << 16, 1 << 30]),
    seed=st.integers(0, 2**31),
)
def test_draws_are_the_same_whatever_the_store_and_the_blocks(
    small_blocks: None,
    folder: Path,
    n: int,
    count: int,
    draws: int,
    scheme: str,
    layout: Any,
    part: Any,
    antithetic: bool,
    memory_bytes: int,
    seed: int,
) -> None:
    draws *= 2
    place = uuid.uuid4().hex
    options: dict[str, Any] = {"part": part, "antithetic": antithetic, "generator": seed}
    with collected(n, count, seed) as in_memory:
        expected = flat(in_memory.sample(draws, **options))
    location = f"{scheme}:{place}" if scheme == "dram" else f"{scheme}:{folder / place}"
    with collected(n, count, seed, location) as posterior:
        options["memory_bytes"] = memory_bytes
        close: dict[str, Any] = {"rtol": 0, "atol": 2e-6}
        torch.testing.assert_close(flat(posterior.sample(draws, **options)), expected, **close)
        singly = [flat(weights) for weights in posterior.iter_samples(draws, **options)]
        assert len(singly) == draws
        for one, other in zip(singly, expected, strict=True):
            torch.testing.assert_close(one, other, **close)
        with pmarray.open(f"dram:{uuid.uuid4()}", (draws, n), "float32", layout=layout) as out:
            posterior.sample_into(out, **options)
            torch.testing.assert_close(torch.from_numpy(out[...]), expected, **close)


@pytest.mark.parametrize("memory_bytes", [0, 1 << 30])
def test_the_trajectory_is_read_once_for_all_draws(
    memory_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    posterior = collected(500, 9).window()
    posterior.mean()  # the moments are computed at the first use
    read = 0
    real = Columns.weights_of

    def counted(self: Columns, *blocks_and_memory: Any) -> Any:
        nonlocal read
        for block, which, weights in real(self, *blocks_and_memory):
            read += weights.size
            yield block, which, weights

    monkeypatch.setattr(Columns, "weights_of", counted)
    with pmarray.open(f"dram:{uuid.uuid4()}", (20, 500), "float32") as out:
        for draw in (
            lambda: posterior.sample(20, memory_bytes=memory_bytes),
            lambda: list(posterior.iter_samples(20, memory_bytes=memory_bytes)),
            lambda: posterior.sample_into(out, memory_bytes=memory_bytes),
        ):
            read = 0
            draw()
            assert read == 500 * 9
    read = 0
    posterior.sample(20, part="diagonal")
    assert read == 0


def test_the_anchor_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collected(500, 9, location=str(tmp_path / "p")).close()
    reads: list[Store] = []
    real = Store.read_anchor

    def noted(self: Store) -> Tensor:
        reads.append(self)
        return real(self)

    monkeypatch.setattr(Store, "read_anchor", noted)
    with swag.load(str(tmp_path / "p")) as posterior:
        posterior.sample(3)
        posterior.mean()
        assert len(reads) == 1  # it is as large as the model
        posterior.window(start=2).sample(3)
        assert len(reads) == 1  # measured from its own first iterate
        posterior.window(stop=5).sample(3)
        assert len(reads) == 2


@given(
    st.integers(0, 1 << 24),
    st.integers(0, 5000),
    st.integers(0, 200),
    st.sampled_from([0, 1 << 20, 1 << 24, 1 << 28, 1 << 30, 1 << 34]),
)
def test_blocks_are_long_and_find_room(n: int, k: int, held: int, memory_bytes: int) -> None:
    blocks = list(row_blocks(n, k, memory_bytes, held))
    edges = [0, *(stop for _, stop in blocks)]
    assert [*(start for start, _ in blocks), n] == edges
    rows = max((stop - start for start, stop in blocks), default=0)
    least = _trajectory.BLOCK_ROWS
    assert all(start % least == 0 for start, _ in blocks)
    if rows > least:  # what is held, and some columns at a time
        assert 4 * rows * (held + min(k, 16)) <= memory_bytes
    if memory_bytes >= 4 * (1 << 18) * (2 * held + 16):
        assert rows >= min(n, 1 << 18)


def test_the_parts_add_up() -> None:
    posterior = collected(500, 9)
    mean = flat(posterior.mean())
    both, diagonal, low_rank = (
        flat(posterior.sample(4, part=part, generator=3)) - mean
        for part in ("both", "diagonal", "low-rank")
    )
    torch.testing.assert_close(diagonal + low_rank, both, rtol=0, atol=2e-6)
    # The low-rank part alone has no more directions than it has columns, the diagonal has all.
    assert torch.linalg.matrix_rank(low_rank[:, :50].T @ low_rank[:, :50]) <= 4
    assert low_rank.any()
    assert diagonal.any()
    assert torch.equal(flat(posterior.sample(2, part="low-rank", scale=0))[0], mean)
    with pytest.raises(WindowError, match="no low-rank part"):
        posterior.window(rank=1).sample(part="low-rank")
    with pytest.raises(ValueError, match="'both', 'diagonal', 'low-rank'"):
        posterior.sample(part="all")  # type: ignore[arg-type]


def test_antithetic_draws_are_mirrored_in_the_mean() -> None:
    posterior = collected(500, 9)
    mean = flat(posterior.mean())
    draws = flat(posterior.sample(6, antithetic=True, generator=3)) - mean
    torch.testing.assert_close(draws[::2], -draws[1::2], rtol=0, atol=2e-6)
    assert len({row[0].item() for row in draws}) == 6
    # The first of each pair is what it is without its partner.
    alone = flat(posterior.sample(3, generator=3)) - mean
    torch.testing.assert_close(draws[::2], alone, rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match="3 is odd"):
        posterior.sample(3, antithetic=True)


def test_an_array_is_filled_or_left_as_it_was(tmp_path: Path) -> None:
    posterior = collected(500, 9)
    with pmarray.open_group(tmp_path / "group") as group:
        out = group.create("draws", (3, 500), "float16")
        posterior.sample_into(out, generator=1)
        expected = flat(posterior.sample(3, generator=1))
        np.testing.assert_allclose(out[...], expected.numpy(), rtol=2e-3, atol=1e-3)
        np.testing.assert_allclose(
            out[:, posterior.slices["first"]].reshape(3, 2, 3),
            posterior.sample(3, generator=1)["first"].numpy(),
            rtol=2e-3,
            atol=1e-3,
        )
        before = out[...]
        with pytest.raises(ValueError, match=r"\(3, 499\), and the draws \(3, 500\)"):
            posterior.sample_into(group.create("short", (3, 499), "float16"))
        with pytest.raises(ZeroDivisionError), group.transaction():
            posterior.sample_into(out, generator=2)
            assert not np.array_equal(out[...], before)
            raise ZeroDivisionError
        np.testing.assert_array_equal(out[...], before)


# -- files ----------------------------------------------------------------------------------------


def test_files_load_into_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    safetensors = pytest.importorskip(
        "safetensors.torch", reason="safetensors: needs the package safetensors"
    )
    posterior = collected(500, 9)
    expected = posterior.sample(3, generator=1)
    for memory_bytes in (0, 1 << 30):
        folder = tmp_path / str(memory_bytes) / "deep"
        paths = posterior.save_samples(folder, 3, generator=1, memory_bytes=memory_bytes)
        assert sorted(folder.iterdir()) == paths
        assert paths[2].name == "draw-00002.safetensors"
        for i, path in enumerate(paths):
            model = Weights(torch.zeros(500))
            model.load_state_dict(safetensors.load_file(path))
            torch.testing.assert_close(model.second.detach(), expected["second"][i])
    with pytest.raises(FileExistsError, match="2 of the 2 files are there"):
        posterior.save_samples(folder, 2)
    torch.testing.assert_close(safetensors.load_file(paths[0])["first"], expected["first"][0])
    posterior.save_samples(folder, 2, overwrite=True, generator=2)
    assert not torch.equal(safetensors.load_file(paths[0])["first"], expected["first"][0])

    def full(*arguments: Any) -> None:
        Path(arguments[1]).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(safetensors, "save_file", full)
    with pytest.raises(OSError, match="no space left"):
        posterior.save_samples(tmp_path / "full", 2)
    assert list((tmp_path / "full").iterdir()) == []


# -- the command ----------------------------------------------------------------------------------


def test_the_command_draws_into_an_array_all_or_nothing(tmp_path: Path) -> None:
    store, drawn = f"memmap:{tmp_path / 'store'}", f"memmap:{tmp_path / 'drawn'}"
    with collected(500, 9, location=store) as posterior:
        expected = posterior.window(start=2, rank=4).sample(4, generator=7, antithetic=True)
    options = ["--samples", "4", "--start", "2", "--rank", "4", "--seed", "7", "--antithetic"]

    def sample(destination: str, *more: str) -> Result:
        return CliRunner().invoke(app, ["sample", store, destination, *options, *more])

    done = sample(f"{drawn}#draws")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"4 draws of 500 weights in {drawn}#draws\n"
    with pmarray.open(f"{drawn}#draws", mode="r") as found:
        torch.testing.assert_close(torch.from_numpy(found[...]), flat(expected))
        assert found.attrs["parameters"]["second"] == {"start": 6, "shape": [494]}
    again = sample(f"{drawn}#draws")
    assert again.exit_code == 1
    assert "draws" in again.stderr
    assert sample(f"{drawn}#draws", "--overwrite", "--part", "diagonal").exit_code == 0
    assert sample(f"{store}#draws").exit_code == 0  # beside the trajectory
    with swag.load(store) as posterior_again:
        assert posterior_again.n_averaged == 9
    refused = sample(f"{drawn}#few", "--every", "9", "--part", "low-rank")
    assert refused.exit_code == 1
    assert "no low-rank part" in refused.stderr
    with pmarray.open_group(drawn, mode="r") as group:
        assert set(group) == {"draws"}
    assert sample(f"{drawn}#odd", "--samples", "3").exit_code == 2
    nameless = sample(drawn)
    assert nameless.exit_code == 1
    assert "add a #name" in nameless.stderr


def test_the_command_says_what_is_missing_or_writes_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"memmap:{tmp_path / 'store'}"
    with collected(500, 9, location=store):
        pass
    arguments = ["sample", store, str(tmp_path / "files"), "--samples", "2"]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "safetensors.torch", None)
        patch.setitem(sys.modules, "safetensors", None)
        missing = CliRunner().invoke(app, arguments)
    assert missing.exit_code == 1
    assert "pip install 'pmarray[safetensors]'" in missing.stderr
    assert not (tmp_path / "files").exists()
    pytest.importorskip("safetensors", reason="safetensors: needs the package safetensors")
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "files").iterdir())) == 2


@pytest.mark.parametrize("command", ["train", "evaluate", "sample", "info"])
def test_the_help_of_a_command_has_an_example(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert f"swag {command} memmap:./runs/demo" in " ".join(shown.stdout.split())


@pytest.mark.parametrize("room", [True, False], ids=["a disk with room", "no room"])
def test_draws_beyond_memory_do_not_read_a_long_trajectory_each_time(
    monkeypatch: pytest.MonkeyPatch, reading: Reading, room: bool
) -> None:
    """GPT-2's 124 million weights at rank 14: each of 30 networks read 7 GB."""
    n, count = 3 * SMALL, 20
    posterior = collected(n, count)
    expected = list(Draws(posterior._plan(6, generator=3), 1 << 30).once())
    reading.nbytes = 0
    monkeypatch.setattr(_draws, "free_on_disk", lambda _: 6 * 2 * 4 * n - (not room))
    found = list(Draws(posterior._plan(6, generator=3), memory_bytes=2 * 4 * n).once())
    torch.testing.assert_close(torch.stack(found), torch.stack(expected))
    assert reading.nbytes == (1 if room else 6) * 4 * n * count


@pytest.mark.parametrize("size", [1e-22, 1e30])
def test_numbers_too_small_or_too_large_raise_nothing(size: float) -> None:
    """A program may have asked NumPy to raise what it else ignores or warns of."""
    walk = size * torch.randn(8, 20, generator=torch.Generator().manual_seed(1))
    posterior = swag.SWAG(Weights(walk[0]))
    for values in walk:
        posterior.update_parameters(Weights(values))
    expected = flat(posterior.window().sample(4, generator=0))
    with np.errstate(all="raise"):
        found = flat(posterior.window().sample(4, generator=0))
        alone = flat(posterior.window(rank=0).sample(4, generator=0))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert alone.shape == expected.shape


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_file_system_in_memory_has_no_room_on_a_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    place = f"{os.major(device)}:{os.minor(device)}"
    mounts.write_text(
        f"22 1 0:0 / / rw shared:1 - overlay none rw\n36 22 {place} / /tmp rw - {kind} x rw\n"
    )
    monkeypatch.setattr(_space, "_MOUNTS", mounts)
    assert (free_on_disk(tmp_path) is None) == (kind == "tmpfs")


def test_draws_go_into_numbers_that_hold_them() -> None:
    model = torch.nn.Linear(2, 1)
    posterior = swag.SWAG(model)
    for _ in range(3):
        torch.nn.init.normal_(model.weight)
        posterior.update_parameters(model)
    for dtype in ("int32", "bool", "complex64", "V4"):
        with (
            pmarray.open("dram:", (3, 3), dtype) as out,
            pytest.raises(ValueError, match="would cut draws off"),
        ):
            posterior.sample_into(out)
    with pytest.raises(TypeError, match=r"go into a pmarray\.PMArray"):
        posterior.sample_into(np.zeros((3, 3)))  # type: ignore[arg-type]
    for dtype in ("float16", "bfloat16", "float64"):
        with pmarray.open("dram:", (3, 3), dtype) as out:
            posterior.sample_into(out, generator=0)
            assert np.asarray(out).any()

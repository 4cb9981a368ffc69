"""The command line, in process and as a user runs it, on real MNIST."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import pmarray
from swag.app import runs
from swag.app.recipe import Recipe
from swag.app.training import Trainer
from swag.cli import app
from swag.datasets import mnist
from swag.models import MODELS, build
from tests.swag.commands import SWAG

# One thread, since two that wait for each other are far slower on a busy machine than one.
# 200 minibatches: 160 of burn-in, then 10 iterates, one in four minibatches.
QUICK = ["--model", "2conv2fc", "--epochs", "1", "--images", "8000", "--batch-size", "40",
         "--burn-in", "0.8", "--anneal", "0.1", "--interval", "4", "--threads", "1"]  # fmt: skip
FEW = ["--samples", "2", "--images", "1000"]
EVALUATE = [*FEW, "--json"]
N_PARAMETERS = 21_840
ROWS = ["SGD, last iterate", "SWA", "SWAG-diagonal", "SWAG"]


def swag(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SWAG, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Undo what --threads does to this process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """URL of a store made by `swag train`, and what the command printed."""
    store = f"memmap:{tmp_path_factory.mktemp('run') / 'store'}"
    done = swag("train", store, *QUICK)
    assert done.returncode == 0, done.stderr
    return store, done.stdout


@pytest.fixture(scope="module")
def evaluated(trained: tuple[str, str]) -> dict[str, Any]:
    """What `swag evaluate` prints of that store."""
    found: dict[str, Any] = json.loads(invoke("evaluate", trained[0], *EVALUATE).stdout)
    return found


def test_training_tells_the_rate_and_the_bytes_written(trained: tuple[str, str]) -> None:
    _, output = trained
    assert output.rstrip().endswith(f"finished: 200 minibatches, 10 iterates in {trained[0]}")
    assert re.search(r"epoch 1/1 .* \d+ steps/s .* 873.6 kB written", output)


@pytest.mark.parametrize("scheme", ["zarr", "icechunk"])
def test_other_backends_end_with_the_same_numbers(
    trained: tuple[str, str], evaluated: dict[str, Any], tmp_path: Path, scheme: str
) -> None:
    if scheme == "icechunk":
        pytest.importorskip("icechunk", reason="icechunk: needs the package icechunk")
    store = f"{scheme}:{tmp_path / 'store'}"
    done = invoke("train", store, *QUICK)
    assert done.exit_code == 0, done.output
    assert json.loads(invoke("evaluate", store, *EVALUATE).stdout) == evaluated
    pmarray.copy(f"{store}#trajectory", f"memmap:{tmp_path / 'copy'}")
    with (
        pmarray.open(f"memmap:{tmp_path / 'copy'}", mode="r") as one,
        pmarray.open(f"{trained[0]}#trajectory", mode="r") as other,
    ):
        np.testing.assert_array_equal(one[...], other[...])


def test_the_store_holds_the_iterates_where_numpy_finds_them(trained: tuple[str, str]) -> None:
    folder = Path(trained[0].removeprefix("memmap:"))
    trajectory = np.load(folder / "trajectory.npy", mmap_mode="r")
    assert trajectory.shape[1] == 10
    columns = np.asarray(trajectory[:N_PARAMETERS])
    assert np.abs(columns).max(axis=0)[1:].min() > 0
    assert len({column.tobytes() for column in columns.T}) == 10


def test_the_table_has_a_row_for_each_model_with_sane_numbers(trained: tuple[str, str]) -> None:
    done = invoke("evaluate", trained[0], *FEW, "--threads", "1")
    assert done.exit_code == 0, done.stderr
    for name in ROWS:
        (row,) = re.findall(rf"│ {name} +│ +([\d.]+) │ +([\d.]+) │ +([\d.]+) │ +([\d.]+) │",
                            done.stdout)  # fmt: skip
        accuracy, nll, ece, brier = map(float, row)
        assert 80 < accuracy < 100
        assert 0 < nll < 0.6
        assert 0 <= ece < 10
        assert 0 < brier < 0.2


def test_json_repeats_with_the_seed_and_changes_with_it(
    trained: tuple[str, str], evaluated: dict[str, Any]
) -> None:
    first = evaluated
    again, other = (
        json.loads(invoke("evaluate", trained[0], *EVALUATE, "--seed", seed).stdout)
        for seed in ("0", "2")
    )
    assert first == again
    assert list(first["rows"]) == ROWS
    for name in ("SGD, last iterate", "SWA"):
        assert first["rows"][name] == other["rows"][name]
    for name in ("SWAG-diagonal", "SWAG"):
        assert first["rows"][name]["nll"] != other["rows"][name]["nll"]
    assert (first["n_averaged"], first["rank"]) == (10, 10)


def test_a_window_of_the_iterates_can_be_chosen_after_training(trained: tuple[str, str]) -> None:
    window = ["--start", "2", "--every", "2", "--rank", "3", *FEW]
    found = json.loads(invoke("evaluate", trained[0], *window, "--json").stdout)
    assert (found["n_averaged"], found["rank"]) == (4, 3)
    beyond = invoke("evaluate", trained[0], "--start", "10")
    assert beyond.exit_code == 1
    assert beyond.stderr.startswith("swag: ")


def test_the_last_iterate_in_the_store_is_that_of_training_without_collection(
    trained: tuple[str, str],
) -> None:
    """Collecting must not change training, and the SGD row must be the last weights."""
    run = runs.read(trained[0])
    assert run.recipe.interval == 4
    model = build("2conv2fc")
    torch.set_num_threads(1)  # as QUICK has it: another number may round differently
    alone = Trainer(model, mnist().train, run.recipe)  # which says how many images
    losses = [step.loss for step in alone]
    assert run.step == alone.n_steps == len(run.losses)
    assert run.losses.tolist() == losses
    for stored, own in zip(run.model.parameters(), model.parameters(), strict=True):
        assert stored.equal(own)
    assert np.isfinite(run.seconds[:, 1]).sum() == 10


def test_a_picture_is_written(trained: tuple[str, str], tmp_path: Path) -> None:
    done = invoke("evaluate", trained[0], *FEW, "--figure", str(tmp_path / "a/b.png"))
    assert done.exit_code == 0, done.output
    picture = (tmp_path / "a/b.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 50_000


def test_info_tells_shape_and_recipe(trained: tuple[str, str]) -> None:
    facts = json.loads(invoke("info", trained[0], "--json").stdout)
    assert facts["arrays"]["trajectory"]["shape"] == [N_PARAMETERS, 10]
    assert facts["recipe"]["model"] == "2conv2fc"
    assert facts["step"] == 200
    assert "21,840 x 10 float32" in invoke("info", trained[0]).stdout


def test_an_existing_store_is_left_alone_unless_told(trained: tuple[str, str]) -> None:
    folder = Path(trained[0].removeprefix("memmap:"))
    before = (folder / "trajectory.npy").read_bytes()
    done = invoke("train", trained[0], *QUICK, "--lr", "0.07")
    assert done.exit_code == 1
    assert "Traceback" not in done.stderr
    assert "--lr: 0.07 here, 0.05 there" in done.stderr
    assert "--fresh" in done.stderr
    assert (folder / "trajectory.npy").read_bytes() == before
    # By the same recipe there is nothing left to do.
    again = invoke("train", trained[0], *QUICK)
    assert again.exit_code == 0
    assert "was finished before: 200 minibatches, 10 iterates" in again.stdout
    assert (folder / "trajectory.npy").read_bytes() == before


def test_a_store_that_does_not_exist_is_one_line_and_exit_status_1(tmp_path: Path) -> None:
    for command in ("evaluate", "info"):
        done = invoke(command, f"memmap:{tmp_path / 'none'}")
        assert done.exit_code == 1
        assert done.stderr.count("\n") == 1
        assert "none" in done.stderr


def test_a_group_of_other_data_is_refused(tmp_path: Path) -> None:
    store = f"memmap:{tmp_path / 'other'}"
    with pmarray.open_group(store) as group:
        group.create("x", (3,))[...] = 1
    done = invoke("evaluate", store)
    assert done.exit_code == 1
    assert "swag train did not make it" in done.stderr


def test_damaged_data_is_one_line_and_leaves_no_store(tmp_path: Path) -> None:
    done = invoke("train", f"memmap:{tmp_path / 's'}", *QUICK, "--data", str(tmp_path))
    assert done.exit_code == 1
    assert "train-images" in done.stderr
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        ["--lr", "0"],
        ["--burn-in", "9"],
        ["--momentum", "1"],
        ["--rank", "-1"],
        ["--batch-size", "0"],
        ["--images", "0"],
        ["--model", "5fc"],
    ],
)
def test_an_option_out_of_range_is_a_usage_error(tmp_path: Path, wrong: list[str]) -> None:
    done = invoke("train", f"memmap:{tmp_path / 's'}", *wrong)
    assert done.exit_code == 2
    assert re.search(rf"{wrong[0]}\b", re.sub(r"\x1b\[[0-9;]*m", "", done.stderr))
    assert not (tmp_path / "s").exists()


def test_few_epochs_and_no_burn_in_need_no_other_option() -> None:
    for epochs in range(1, 12):
        recipe = Recipe.of(epochs=epochs)
        assert 0 < recipe.anneal <= recipe.burn_in < epochs
        assert recipe.burn_in == 5 or epochs < 7
    assert Recipe.of(burn_in=0).anneal == 0
    assert Recipe.of() == Recipe()


def test_no_burn_in_then_fresh_with_the_diagonal_alone(tmp_path: Path) -> None:
    store = f"memmap:{tmp_path / 's'}"
    options = ["--model", "2conv2fc", "--epochs", "1", "--images", "600", "--batch-size", "20",
               "--threads", "1"]  # fmt: skip
    done = invoke("train", store, *options, "--burn-in", "0", "--rank", "2")
    assert done.exit_code == 0, done.output
    assert "30 minibatches, 30 iterates" in done.stdout.replace("\n", " ")
    found = json.loads(invoke("evaluate", store, *EVALUATE).stdout)
    assert (found["n_averaged"], found["rank"]) == (30, 2)

    done = invoke("train", store, *options, "--fresh", "--rank", "0", "--seed", "2")
    assert done.exit_code == 0, done.output
    assert "30 minibatches, 9 iterates" in done.stdout.replace("\n", " ")
    recipe = runs.read(store).recipe
    assert (recipe.seed, recipe.rank) == (2, 0)
    found = json.loads(invoke("evaluate", store, *EVALUATE).stdout)
    assert list(found["rows"]) == ROWS[:3]
    with pmarray.open_group(store, mode="r") as group:
        assert sum(group[name].nbytes for name in group) < 12 * 4 * N_PARAMETERS


def test_the_name_of_a_picture_is_looked_at_before_the_work(tmp_path: Path) -> None:
    nowhere = f"memmap:{tmp_path / 'none'}"
    for name in ("picture", "picture.xyz"):
        done = invoke("evaluate", nowhere, "--figure", str(tmp_path / name))
        assert done.exit_code == 2
        assert "--figure" in done.stderr
    (tmp_path / "file").touch()
    done = invoke("evaluate", nowhere, "--figure", str(tmp_path / "file" / "b.png"))
    assert done.exit_code == 1
    assert "file" in done.stderr
    invoke("evaluate", nowhere, "--figure", str(tmp_path / "c" / "b.png"))
    assert not (tmp_path / "c" / "b.png").exists()


def test_without_the_extra_its_name_is_told() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv[0] = 'swag';"
        "from swag.cli import app; app()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "dram:"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "swag: torch is not installed: pip install 'pmarray[swag]' installs it\n"


def test_the_version_is_told_and_the_short_option_for_help() -> None:
    assert invoke("--version").stdout == f"swag {pmarray.__version__}\n"
    for command in ([], ["train"], ["evaluate"], ["info"]):
        assert invoke(*command, "-h").exit_code == 0
    assert "--install-completion" in invoke("-h").stdout


def test_every_field_of_the_recipe_is_an_option() -> None:
    help_text = invoke("train", "--help").stdout
    for field in Recipe().to_json():
        assert f"--{field.replace('_', '-')}" in help_text
    for name in MODELS:
        assert name in help_text


def test_help_comes_without_pytorch() -> None:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "swag", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert time.perf_counter() - started < 10  # a hang, not a budget: machines differ
    assert "evaluate" in done.stdout
    assert "torch" not in {line.split("|")[-1].strip() for line in done.stderr.splitlines()}

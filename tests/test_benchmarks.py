"""The benchmarks run, on a small network for a few steps, and clean up after themselves."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.__main__ import app

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the JSON lines go: not beside what a benchmark writes and removes."""
    return tmp_path_factory.mktemp("output")


def run(*arguments: str) -> str:
    before = torch.get_num_threads()
    try:
        done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    finally:
        torch.set_num_threads(before)
    assert done.exit_code == 0, done.output
    return done.stdout


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_collect_compares_every_way_with_training_alone(scratch: Path, output: Path) -> None:
    out = run(
        "collect", "--model", "2conv2fc", "--rounds", "2", "--steps", "2", "--warm-up", "1",
        "--reference-rank", "4", "--reference-steps", "2", "--probe-mib", "16", "--threads", "1",
        "--directory", str(scratch), "--output", str(output),
    )  # fmt: skip
    lines = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()]
    rows = {cells[0]: cells for cells in lines if len(cells) == 10}
    assert list(rows) == [
        "training alone",
        "SWAG on dram:",
        "SWAG on dram:, attached",
        "SWAG on dram:, rank 20",
        "SWAG on dram:, attached, rank 20",
        "SWAG on memmap:",
        "SWAG on memmap:, attached",
        "SWAG on memmap:, rank 20",
        "SWAG on memmap:, attached, rank 20",
        "SWAG on memmap:, attached, bfloat16",
        "SWAG on zarr:, attached",
        "row-major in DRAM",
        "row-major np.memmap",
    ]
    assert rows["training alone"][2] == "1.00"
    assert re.search(r"device, written in order: [\d.]+ [MG]B/s", out)
    assert list(scratch.iterdir()) == []
    header, *records = lines_of(output / "collect.jsonl")
    assert header["parameters"]["steps"] == 2
    assert header["machine"]["cores"]
    timings = [one for one in records if one["what"] == "timing"]
    assert [one["name"] for one in timings[::2]] == list(rows)
    assert all(one["steps"] == 2 and one["cpu_seconds"] > 0 for one in timings)


def test_rss_checks_what_it_collected(scratch: Path, output: Path) -> None:
    run(
        "rss", "--model", "2conv2fc", "--steps", "20",
        "--directory", str(scratch), "--output", str(output),
    )  # fmt: skip
    _, epoch = lines_of(output / "rss.jsonl")
    assert epoch["steps"] == 20
    assert epoch["file_bytes"] >= 21_840 * 4 * 20
    assert list(scratch.iterdir()) == []


def test_imports_takes_longer_for_pmarray_than_for_numpy(output: Path) -> None:
    run("imports", "numpy", "pmarray", "--processes=1", "--output", str(output))
    times = {one["module"]: one["seconds"] for one in lines_of(output / "imports.jsonl")[1:]}
    assert 0 < times["numpy"] < times["pmarray"]


def test_the_command_line_is_a_module(output: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "imports", "numpy", "--processes=1"]
    done = subprocess.run(
        [*command, "--output", str(output)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    command_line = lines_of(output / "imports.jsonl")[0]["command"]
    assert command_line.startswith("python -m benchmarks imports numpy --processes=1")


def test_array_compares_what_is_installed_and_says_what_is_not(scratch: Path, output: Path) -> None:
    run(
        "array", "--rows", "2000", "--columns", "16", "--rounds", "1",
        "--enough-seconds", "0", "--probe-mib", "8",
        "--directory", str(scratch), "--output", str(output),
    )  # fmt: skip
    records = lines_of(output / "array.jsonl")[1:]
    times: dict[tuple[str, bool], dict[str, float]] = {}
    for one in records:
        if one["what"] == "operation":
            times.setdefault((one["name"], one["cold"]), {})[one["peer"]] = one["seconds"]
    assert {("read an item", False), ("sum", True), ("append columns", False)} <= set(times)
    for name in ("pmarray memmap:", "pmarray zarr:", "np.memmap", "zarr-python"):
        assert all(times[operation][name] > 0 for operation in times)
    notes = {one["name"]: one["note"] for one in records if one["what"] == "peer"}
    for name in ("tensorstore", "h5py", "blosc2", "dask", "pmarray icechunk:"):
        assert name in times["sum", False] or notes[name].startswith("skipped, needs")
    assert list(scratch.iterdir()) == []


def test_shelf_compares_stores_in_place_with_the_write_cache(output: Path) -> None:
    out = run("shelf", "--rows", "2000", "--columns", "8", "--rounds", "1", "--output", str(output))
    records = lines_of(output / "shelf.jsonl")[1:]
    writes = [one for one in records if one["what"] == "write"]
    assert len({one["workload"] for one in writes}) == 7
    assert all(one["seconds"] > 0 for one in writes)
    assert "DRAM that stands for persistent memory" in out

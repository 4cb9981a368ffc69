"""The benchmarks run, on a small network for a few steps, and clean up after themselves."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import torch
from typer.testing import CliRunner

from benchmarks.__main__ import app

REPOSITORY = Path(__file__).parent.parent


def run(*arguments: str) -> str:
    before = torch.get_num_threads()
    try:
        done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    finally:
        torch.set_num_threads(before)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_collect_compares_every_way_with_training_alone(scratch: Path) -> None:
    out = run(
        "collect", "--model", "2conv2fc", "--rounds", "2", "--steps", "2", "--warm-up", "1",
        "--reference-rank", "4", "--reference-steps", "2", "--probe-mib", "16", "--threads", "1",
        "--directory", str(scratch),
    )  # fmt: skip
    lines = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()]
    rows = {cells[0]: cells for cells in lines if len(cells) == 8}
    assert list(rows) == [
        "training alone",
        "SWAG on dram:",
        "SWAG on memmap:",
        "row-major in DRAM",
        "row-major np.memmap",
    ]
    assert rows["training alone"][2] == "1.00"
    assert re.search(r"device, written in order: [\d.]+ [MG]B/s", out)
    assert list(scratch.iterdir()) == []


def test_rss_checks_what_it_collected(scratch: Path) -> None:
    out = run("rss", "--model", "2conv2fc", "--steps", "20", "--directory", str(scratch))
    found = re.search(r"20 minibatches .* file ([\d.]+) MB", out)
    assert found
    assert float(found[1]) >= 21_840 * 4 * 20 / 1e6
    assert list(scratch.iterdir()) == []


def test_imports_takes_longer_for_pmarray_than_for_numpy() -> None:
    command = [sys.executable, "-m", "benchmarks", "imports", "numpy", "pmarray", "--processes=1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    times = dict(re.findall(r"^ *(numpy|pmarray) +([\d.,]+)", done.stdout, re.MULTILINE))
    assert 0 < float(times["numpy"].replace(",", "")) < float(times["pmarray"].replace(",", ""))


def test_array_compares_what_is_installed_and_says_what_is_not(scratch: Path) -> None:
    output = scratch / "seconds.json"
    out = run(
        "array", "--rows", "2000", "--columns", "16", "--rounds", "1",
        "--enough-seconds", "0", "--probe-mib", "8",
        "--directory", str(scratch), "--output", str(output),
    )  # fmt: skip
    times = json.loads(output.read_text())["s"]
    assert {"read an item", "sum cold", "append columns"} <= set(times)
    for name in ("pmarray memmap:", "pmarray zarr:", "np.memmap", "zarr-python"):
        assert all(times[operation][name][0] > 0 for operation in times)
    for name in ("tensorstore", "h5py", "blosc2", "dask", "pmarray icechunk:"):
        assert name in times["sum"] or f"{name}: skipped, needs" in out
    assert list(scratch.iterdir()) == [output]


def test_shelf_compares_stores_in_place_with_the_write_cache() -> None:
    out = run("shelf", "--rows", "2000", "--columns", "8", "--rounds", "1")
    ratios = re.findall(r"│ +([\d.]+) +│$", out, re.MULTILINE)
    assert len(ratios) == 7
    assert all(float(ratio) > 0 for ratio in ratios)
    assert "DRAM that stands for persistent memory" in out

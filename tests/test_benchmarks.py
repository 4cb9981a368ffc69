"""The benchmarks run, on a small network for a few steps, and clean up after themselves."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_collect_compares_every_way_with_training_alone(scratch: Path) -> None:
    out = run(
        "collect", "--model", "2conv2fc", "--rounds", "2", "--steps", "3", "--reference-rank", "4",
        "--reference-steps", "2", "--directory", str(scratch),
    )  # fmt: skip
    rows = {
        cells[1].strip(): cells for line in out.splitlines() if len(cells := line.split("│")) > 4
    }
    assert list(rows) == [
        "training alone",
        "SWAG on dram:",
        "SWAG on memmap:",
        "row-major in DRAM",
        "row-major np.memmap",
    ]
    assert rows["training alone"][4].strip() == "1.00"
    assert re.search(r"device: [\d.]+ [MG]B/s written in order", out)
    assert list(scratch.iterdir()) == []


def test_rss_checks_what_it_collected(scratch: Path) -> None:
    out = run("rss", "--model", "2conv2fc", "--directory", str(scratch))
    found = re.search(r"600 minibatches .* file ([\d.]+) MB", out)
    assert found
    assert float(found[1]) >= 21_840 * 4 * 600 / 1e6
    assert list(scratch.iterdir()) == []


def test_imports_takes_longer_for_pmarray_than_for_numpy() -> None:
    out = run("imports", "numpy", "pmarray", "--processes", "3")
    times = dict(re.findall(r"│ (numpy|pmarray) +│ +([\d.]+) │", out))
    assert 0 < float(times["numpy"]) < float(times["pmarray"])

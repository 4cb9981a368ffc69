"""Column writes on persistent memory, in the emulated machine of the power cuts.

Its processor is emulated, too, so that only ratios within it mean anything: to `dram:`, in the same
machine and the same run.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks._records import Recording
from benchmarks._tables import Table, in_ms, spread

__all__ = ["MEDIA", "measure", "tables"]

MEDIA = {
    "disk": "`memmap:`, ext4 on a disk",
    "memmap-ext4": "`memmap:`, ext4 with DAX",
    "fsdax-ext4": "`shelf:`, ext4 with DAX (FS-DAX)",
    "fsdax-xfs": "`shelf:`, xfs with DAX (FS-DAX)",
    "devdax": "`shelf:`, a bare device (Dev-DAX)",
}

_PROGRAM = """
import json, sys, time
import numpy as np
import pmarray

url, rows, columns, rounds = sys.argv[1], *map(int, sys.argv[2:])
theta = np.random.default_rng(0).standard_normal(rows).astype(np.float32)
for turn in range(rounds):
    for name, place in (("dram:", "dram:"), ("medium", url)):
        group = pmarray.open_group(place)
        x = group.create("x", (rows, columns), "float32", layout="col")
        x[...] = 0  # the memory, or the space, is there
        group.flush()
        began = time.perf_counter()
        for j in range(columns):
            x[:, j] = theta
        group.flush()
        seconds = time.perf_counter() - began
        assert (x[:, columns - 1] == theta).all()
        del group["x"]
        group.close()
        print("found", json.dumps({"name": name, "round": turn, "seconds": seconds / columns}))
"""


def measure(
    run: Recording, *, rows: int, columns: int, rounds: int, media: list[str], directory: Path
) -> None:
    """Boot the machine for each medium, and time columns that are written and made durable."""
    with tempfile.TemporaryDirectory(dir=directory, prefix="guest-") as scratch:
        program = Path(scratch) / "columns.py"
        program.write_text(_PROGRAM)
        for medium in media:
            run.report(f"{medium}: the machine boots")
            words = ["run", "--medium", medium, str(program), "{url}"]
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "tests.powercut",
                    *words,
                    *map(str, (rows, columns, rounds)),
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(f"{medium}: {done.stderr or done.stdout}")
            for line in done.stdout.splitlines():
                if line.startswith("found "):
                    run.add("column", medium=medium, **json.loads(line.removeprefix("found ")))


def tables(run: Recording) -> list[Table]:
    """Lay out a run."""
    asked = run.header["parameters"]
    table = Table(
        f"Columns of {asked['rows']:,} float32, written and made durable, in an emulated machine",
        ["", "ms a column", "x `dram:` there", "of the rounds"],
        note="Medians. The processor is emulated: times are no device's, and a ratio holds within"
        " the machine only. It has no PyTorch: columns are written, and nothing is trained.",
    )
    for medium in dict.fromkeys(one["medium"] for one in run.of("column")):
        seconds: dict[str, list[float]] = {}
        for one in run.of("column"):
            if one["medium"] == medium:
                seconds.setdefault(one["name"], []).append(one["seconds"])
        ratios = [b / a for a, b in zip(seconds["dram:"], seconds["medium"], strict=True)]
        median = statistics.median(seconds["medium"])
        table.rows.append(
            [MEDIA[medium], in_ms(median), f"{statistics.median(ratios):.2f}", spread(ratios)]
        )
    return [table]

"""How long importing takes in a fresh process."""

from __future__ import annotations

import statistics
import subprocess
import sys

from benchmarks._records import Recording
from benchmarks._tables import Table, in_ms

__all__ = ["import_seconds", "measure", "tables"]

_TIMED = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def import_seconds(module: str) -> float:
    """Import `module` in a new interpreter and return the seconds that took."""
    command = [sys.executable, "-c", _TIMED.format(module)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(run: Recording, *, modules: list[str], processes: int) -> None:
    """Time every module in fresh processes, the modules taken in turn."""
    for module in modules:
        import_seconds(module)  # fills the page cache and writes the bytecode
    for turn in range(processes):
        run.report(f"process {turn + 1} of {processes}")
        for module in modules:
            run.add("import", module=module, round=turn, seconds=import_seconds(module))


def tables(run: Recording) -> list[Table]:
    """Lay out a run."""
    times: dict[str, list[float]] = {}
    for one in run.of("import"):
        times.setdefault(one["module"], []).append(one["seconds"])
    processes = run.header["parameters"]["processes"]
    table = Table("", ["import", f"ms, median of {processes}", "fastest", "slowest"])
    for module, found in times.items():
        cells = (statistics.median(found), min(found), max(found))
        table.rows.append([module, *map(in_ms, cells)])
    return [table]

"""How long importing takes in a fresh process."""

from __future__ import annotations

import statistics
import subprocess
import sys

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks._tables import in_ms, machine

__all__ = ["import_seconds", "measure"]

_TIMED = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def import_seconds(module: str) -> float:
    """Import `module` in a new interpreter and return the seconds that took."""
    command = [sys.executable, "-c", _TIMED.format(module)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(console: Console, *, modules: list[str], processes: int) -> dict[str, float]:
    """Print the median over fresh processes, the modules taken in turn."""
    console.print(machine(), highlight=False, soft_wrap=True)
    times: dict[str, list[float]] = {module: [] for module in modules}
    for module in modules:
        import_seconds(module)  # fills the page cache and writes the bytecode
    for _ in range(processes):
        for module in modules:
            times[module].append(import_seconds(module))
    medians = {module: statistics.median(found) for module, found in times.items()}
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    out.add_column("import")
    out.add_column(f"ms, median of {processes}", justify="right")
    out.add_column("fastest, slowest", justify="right")
    for module, seconds in medians.items():
        low, high = min(times[module]), max(times[module])
        out.add_row(module, in_ms(seconds), f"{in_ms(low)}, {in_ms(high)}")
    console.print(out)
    return medians

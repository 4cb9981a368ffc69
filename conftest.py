import gc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import machine

machine.apply()

# Modules whose package has been taken away.
collect_ignore = ["pmarray/backends/zarr/icechunk.py"] if machine.taken("icechunk") else []


@pytest.fixture(autouse=True)
def _doctest_directory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each docstring's example in an empty directory of its own."""
    if not isinstance(request.node, pytest.DoctestItem):
        yield
        return
    monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    directory: Path = request.getfixturevalue("tmp_path")
    monkeypatch.chdir(directory)
    yield


def pytest_collection_finish() -> None:
    """Keep the garbage collector from looking at modules and tests, which stay: half a second."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the skips by their reasons."""
    skipped: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        where = report.longrepr
        reason = where[2] if isinstance(where, tuple) else str(where)
        skipped[reason.removeprefix("Skipped: ")] += 1
    if skipped:
        terminalreporter.section(f"{sum(skipped.values())} skipped, by reason")
        for reason, count in skipped.most_common():
            terminalreporter.line(f"{count:5}  {reason}")

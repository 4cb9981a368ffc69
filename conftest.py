from collections.abc import Iterator
from pathlib import Path

import pytest


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

import uuid
from pathlib import Path

import pytest


@pytest.fixture(params=["dram", "memmap", "zarr", "icechunk"])
def location(request: pytest.FixtureRequest) -> str:
    """URL of a store that does not exist yet and can be opened again, one backend after another."""
    if request.param == "dram":
        return f"dram:{uuid.uuid4().hex}"
    if request.param == "icechunk":
        pytest.importorskip("icechunk", reason="icechunk: needs the package icechunk")
    scratch: Path = request.getfixturevalue("scratch")
    return f"{request.param}:{scratch / 'posterior'}"

import uuid
from pathlib import Path

import pytest


@pytest.fixture(params=["dram", "memmap", "zarr"])
def location(request: pytest.FixtureRequest) -> str:
    """URL of a store that does not exist yet and can be opened again, one backend after another."""
    if request.param == "dram":
        return f"dram:{uuid.uuid4().hex}"
    scratch: Path = request.getfixturevalue("scratch")
    return f"{request.param}:{scratch / 'posterior'}"

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import swag._attached
from pmarray.errors import PMArrayError
from swag._trajectory import Columns
from swag.errors import SwagError
from tests.persistent import persistent_place


@pytest.fixture(params=["dram", "memmap", "zarr", "shelf", "device"])
def location(request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of a store that does not exist yet and can be opened again, one backend after another."""
    if request.param == "dram":
        yield f"dram:{uuid.uuid4().hex}"
    elif request.param in ("shelf", "device"):
        with persistent_place(request.param) as place:
            yield place
    else:
        scratch: Path = request.getfixturevalue("scratch")
        yield f"{request.param}:{scratch / 'posterior'}"


class Reading:
    """How much of trajectories is read."""

    nbytes = 0


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Reading:
    """Counts what is read of trajectories from here on."""
    found, weights_of = Reading(), Columns.weights_of

    def counted(columns: Columns, *arguments: Any) -> Iterator[Any]:
        for piece in weights_of(columns, *arguments):
            found.nbytes += piece[2].nbytes
            yield piece

    monkeypatch.setattr(Columns, "weights_of", counted)
    return found


@pytest.fixture(autouse=True)
def spare_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is attached copies behind, however many cores and threads there are here."""
    monkeypatch.setattr(swag._attached, "has_spare_core", lambda: True)


@pytest.fixture(autouse=True)
def nothing_left_undone(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Work behind that fails is done again, at a price that no result shows.

    An error of the libraries' own says that something has happened, such as a rollback; any other
    is a fault.
    """
    caplog.set_level("DEBUG", "swag")
    yield
    for one in caplog.get_records("call"):
        if one.message == "work behind was left undone":
            assert one.exc_info is not None
            assert isinstance(one.exc_info[1], PMArrayError | SwagError), one.exc_text

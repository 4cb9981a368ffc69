"""Data of arrays that never came to be: told by `verify`, removed by the next writer."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import pmarray
from tests.persistent import MEMORY, pretend_devices

_DEVICE_BYTES = 64 << 20


@pytest.fixture(params=["memmap", "zarr", "shelf"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The URL of a group, and one at which a copy of it can be."""
    if request.param != "shelf":
        yield f"{request.param}:{tmp_path}/g", f"{request.param}:{tmp_path}/copy"
        return
    with (
        tempfile.TemporaryDirectory(prefix="pmarray-device-", dir=MEMORY) as directory,
        pretend_devices(),
    ):
        for name in ("dax0.0", "dax1.0"):
            with (Path(directory) / name).open("wb") as file:
                file.truncate(_DEVICE_BYTES)
        yield f"shelf:{directory}/dax0.0", f"shelf:{directory}/dax1.0"


def died(url: str, copy: str) -> None:
    """Make the copy what another process would find if the writer were killed now."""
    source, target = (Path(one.split(":", 1)[1]) for one in (url, copy))
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def orphans(url: str) -> list[pmarray.Finding]:
    """What `verify` finds of no array."""
    return [one for one in pmarray.verify(url) if "no array" in one.message]


@pytest.mark.uses("libpmem")
def test_an_array_that_was_never_committed_is_told_and_removed(places: tuple[str, str]) -> None:
    url, copy = places
    with pmarray.open_group(url, cache=1 << 20) as group:
        with group.transaction():
            group.create("kept", (3,))[:] = 1
        assert orphans(url) == []
        transaction = group.transaction().__enter__()
        group.create("lost", (1000, 8), layout="col")[:] = 2
        group._session.cache.flush()
        died(url, copy)
        del transaction
        assert sorted(group) == ["kept"]
        assert orphans(url) == []
    assert [one.damaged for one in orphans(copy)] == [False]
    pmarray.recover(copy)
    assert orphans(copy) == []
    with pmarray.open_group(copy, mode="r") as group:
        assert {name: array[:].tolist() for name, array in group.items()} == {"kept": [1, 1, 1]}


def test_an_archive_that_was_never_finished_is_told(tmp_path: Path) -> None:
    url = f"zarr:{tmp_path}/x.zip"
    source = "import os, sys, pmarray; pmarray.open(sys.argv[1], (9,))[:] = 1; os._exit(9)"
    assert subprocess.run([sys.executable, "-c", source, url], check=False).returncode == 9
    (left,) = tmp_path.iterdir()
    pmarray.from_array([1.0, 2.0], url).close()
    (tmp_path / ".x.zip-of-mine").touch()
    assert [(one.where, one.damaged) for one in orphans(url)] == [(str(left), False)]
    left.unlink()
    assert orphans(url) == []
    with pmarray.open(url, mode="r") as a:
        assert a[:].tolist() == [1, 2]

"""The suites for authors of backends, run for those of our own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmarray._url import URL
from pmarray.backends._registry import open_backend
from pmarray.testing import ChunksTests, RegionTests
from tests.persistent import MEMORY, pretend_dax, pretend_devices


class TestDRAM(RegionTests):
    def open(self, place: Path, *, writable: bool) -> Any:
        return open_backend(URL.parse(f"dram:{place.name}"), writable=writable)


class TestMemmap(RegionTests):
    def open(self, place: Path, *, writable: bool) -> Any:
        return open_backend(URL.parse(f"memmap:{place}/g"), writable=writable)


@pytest.mark.uses("libpmem")
class TestDAX(RegionTests):
    @pytest.fixture(autouse=True)
    def _pretence(self) -> Iterator[None]:
        with pretend_dax():
            yield

    def open(self, place: Path, *, writable: bool) -> Any:
        return open_backend(URL.parse(f"shelf:{place}/g?engine=dax"), writable=writable)


@pytest.mark.uses("libpmem")
class TestDevice(RegionTests):
    @pytest.fixture(autouse=True)
    def _pretence(self) -> Iterator[None]:
        with (
            tempfile.TemporaryDirectory(prefix="pmarray-device-", dir=MEMORY) as directory,
            pretend_devices(),
        ):
            self._device = Path(directory) / "dax0.0"
            with self._device.open("wb") as file:
                file.truncate(64 << 20)
            yield

    def open(self, place: Path, *, writable: bool) -> Any:
        return open_backend(URL.parse(f"shelf:{self._device}"), writable=writable)


class TestLocalZarr(ChunksTests):
    def open(self, place: Path, *, writable: bool) -> Any:
        return open_backend(URL.parse(f"zarr:{place}/g"), writable=writable)


class TestZarrInMemory(ChunksTests):
    excludes_writers = False

    def open(self, place: Path, *, writable: bool) -> Any:
        return open_backend(URL.parse(f"zarr:memory://{place.name}"), writable=writable)


@pytest.mark.uses("icechunk")
class TestIcechunk(ChunksTests):
    excludes_writers = False

    def open(self, place: Path, *, writable: bool) -> Any:
        pytest.importorskip("icechunk", reason="icechunk: needs the package icechunk")
        return open_backend(URL.parse(f"icechunk:{place}/g"), writable=writable)

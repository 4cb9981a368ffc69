"""Where the groups of the scenarios are: every backend, in a directory in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pmarray._system import osops
from tests.persistent import pretend_dax, pretend_devices

__all__ = ["PLACES", "Place", "slow_barriers"]

_CACHE_BYTES = 64 << 10
_DEVICE_BYTES = 8 << 20
_UNIT_BYTES = 64 << 10
_BARRIER_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class Place:
    """One backend."""

    name: str
    scheme: str
    target: str = "g"
    cache: int | str = _CACHE_BYTES
    chunks: Any = 2
    """Of an array of columns."""
    plain: Mapping[str, Any] = field(default_factory=dict)
    """How an array is made whose chunks are stored as they are."""
    has_readers: bool = True
    """Whether a second handle may look at what the first has committed."""
    commits_alone: bool = False
    """Whether also what was written outside of transactions appears in one step, at a flush."""

    def url(self, path: Path) -> str:
        """Return the URL of the group in this directory."""
        return f"{self.scheme}:{path}/{self.target}"

    def cache_of(self, least: int) -> int | str:
        """Return the cache of a group, of so many bytes at least."""
        return max(self.cache, least) if isinstance(self.cache, int) else self.cache

    def prepare(self, path: Path) -> None:
        """Make what the group is made in."""
        if self.target == "dax":
            with (path / self.target).open("wb") as file:
                file.truncate(_DEVICE_BYTES)

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """Have persistent memory where there is none."""
        with ExitStack() as pretences:
            if self.scheme == "shelf":
                pretences.enter_context(pretend_dax())
                pretences.enter_context(pretend_devices(_UNIT_BYTES))
            yield


PLACES = {
    place.name: place
    for place in (
        Place("dram", "dram", cache="auto", has_readers=False),
        Place("dram-cached", "dram", has_readers=False),
        Place("memmap", "memmap"),
        Place("shelf", "shelf", cache="auto"),
        Place("shelf-cached", "shelf"),
        Place("device", "shelf", "dax", cache="auto"),
        Place("zarr", "zarr", chunks=(500, 2), plain={"codecs": []}),
        Place("icechunk", "icechunk", chunks=(500, 2), plain={"codecs": []}, commits_alone=True),
    )
}


@contextmanager
def slow_barriers(seconds: float = _BARRIER_SECONDS) -> Iterator[None]:
    """Let barriers take as long as those of a disk, so that more arrives while they do."""
    saved = {name: getattr(osops, name) for name in ("fdatasync", "fsync", "persist")}

    def slow(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            time.sleep(seconds)
            return real(*arguments, **options)

        return call

    try:
        for name, real in saved.items():
            setattr(osops, name, slow(real))
        yield
    finally:
        for name, real in saved.items():
            setattr(osops, name, real)

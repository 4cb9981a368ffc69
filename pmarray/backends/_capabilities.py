"""What a backend can do beyond what all can: asked once, when a group is opened."""

from __future__ import annotations

from typing import NamedTuple, cast

from pmarray.backends._history import Versions
from pmarray.backends._protocols import (
    Backend,
    ChunkBackend,
    CountsChanges,
    KeepsCopies,
    KeepsImages,
    LeavesOrphans,
    LosesLock,
    Measures,
    Overwritable,
    Publishes,
    RegionBackend,
    RemovesOrphans,
    Settles,
)

__all__ = ["Capabilities"]


class Capabilities(NamedTuple):
    """A backend by what it can do; None for what it cannot.

    Either `regions` or `chunks` is there.
    """

    backend: Backend
    """What all can."""
    regions: RegionBackend | None
    chunks: ChunkBackend | None
    versions: Versions | None
    orphans: LeavesOrphans | None
    cleans: RemovesOrphans | None
    copies: KeepsCopies | None
    images: KeepsImages | None
    lock: LosesLock | None
    counter: CountsChanges | None
    measures: Measures | None
    overwritable: Overwritable | None
    publishes: Publishes | None
    settles: Settles | None
    survives_fork: bool
    is_volatile: bool

    @classmethod
    def of(cls, backend: Backend) -> Capabilities:
        """Ask a backend."""
        chunks = backend if isinstance(backend, ChunkBackend) else None
        return cls(
            backend,
            regions=cast(RegionBackend, backend) if chunks is None else None,
            chunks=chunks,
            versions=backend if isinstance(backend, Versions) else None,
            orphans=backend if isinstance(backend, LeavesOrphans) else None,
            cleans=backend if isinstance(backend, RemovesOrphans) else None,
            copies=backend if isinstance(backend, KeepsCopies) else None,
            images=backend if isinstance(backend, KeepsImages) else None,
            lock=backend if isinstance(backend, LosesLock) else None,
            counter=backend if isinstance(backend, CountsChanges) else None,
            measures=backend if isinstance(backend, Measures) else None,
            overwritable=backend if isinstance(backend, Overwritable) else None,
            publishes=backend if isinstance(backend, Publishes) else None,
            settles=backend if isinstance(backend, Settles) else None,
            survives_fork=getattr(backend, "survives_fork", True),
            is_volatile=getattr(backend, "volatile", False),
        )

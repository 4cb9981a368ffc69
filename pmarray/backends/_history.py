"""What a group once was, where its backend keeps that."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple, Protocol, runtime_checkable

__all__ = ["HistoryEntry", "Versions"]


class HistoryEntry(NamedTuple):
    """A commit that can still be opened: ``icechunk:/dir?snapshot=<id>``."""

    id: str
    """Names it."""
    parent: str | None
    """The commit before it."""
    written_at: datetime
    """When it was made."""
    message: str
    """What its writer had to say."""


@runtime_checkable
class Versions(Protocol):
    """What a backend can do that keeps history."""

    def history(self) -> Iterator[HistoryEntry]:
        """Yield the commits, latest first."""

    def create_tag(self, name: str) -> None:
        """Give the last commit a name for good."""

    def create_branch(self, name: str) -> None:
        """Begin a branch at the last commit."""

"""Where a posterior is, and how its group is opened."""

from __future__ import annotations

import os
from typing import Literal

import pmarray
from pmarray.errors import ForeignDataError, GroupNotFoundError
from swag._records import Configuration

__all__ = ["CONSTANT", "Location", "Mode", "cache_for", "holds_posterior", "open_group"]

Location = str | os.PathLike[str] | pmarray.Group
Mode = Literal["w-", "a", "w"]
"""Create only; create or go on; replace."""

CONSTANT = "swag"
"""The attribute of a group that says what never changes of its posterior."""

_AUTO_CACHE_BYTES = 256 << 20
_WINDOW_SECONDS = 0.05
"""For which an iterate may wait for the next ones, to become durable with them."""


def open_group(
    location: Location, mode: pmarray.Mode, configuration: Configuration | None
) -> tuple[pmarray.Group, bool]:
    """Open a location; also say whether the caller has to close it."""
    if isinstance(location, pmarray.Group):
        return location, False
    cache = "auto" if configuration is None else cache_for(configuration)
    group = pmarray.open_group(location, mode=mode, cache=cache, commit_window=_WINDOW_SECONDS)
    return group, True


def holds_posterior(location: Location) -> bool:
    """Whether there is a group that is one."""
    try:
        group, owned = open_group(location, "r", None)
    except (GroupNotFoundError, ForeignDataError):
        return False
    try:
        return CONSTANT in group.attrs
    finally:
        if owned:
            group.close()


def cache_for(configuration: Configuration) -> int | str:
    """The cache in which columns of a large model find room: one on loan, others on their way."""
    need = 4 * (configuration.dtype.itemsize * configuration.table.size + 4096)
    return "auto" if need <= _AUTO_CACHE_BYTES else need

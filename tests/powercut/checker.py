"""In the guest: looks at what a power cut has left."""

from __future__ import annotations

from typing import Any

import pmarray
from pmarray.errors import GroupNotFoundError
from pmarray.testing import State
from tests.powercut.states import EMPTY, to_json
from tests.powercut.writer import Say

__all__ = ["look", "recover"]


def look(*, url: str) -> Any:
    """Return what a reader sees, who recovers nothing."""
    try:
        with pmarray.open_group(url, mode="r") as group:
            return {"state": to_json(State.of_group(group)), "damage": _damage(url)}
    except GroupNotFoundError:
        return {"state": to_json(EMPTY), "damage": []}


def recover(say: Say, *, url: str) -> Any:
    """Say ``recovering``, and bring the group back to its last commit."""
    say("recovering")
    with pmarray.open_group(url, mode="a") as group:
        group._session.recover()
        state = State.of_group(group)
    try:
        return {"state": to_json(state), "damage": _damage(url)}
    except GroupNotFoundError:  # nothing was written, so nothing was made
        return {"state": to_json(state), "damage": []}


def _damage(url: str) -> list[str]:
    return [f"{f.where}: {f.message}" for f in pmarray.verify(url) if f.damaged]

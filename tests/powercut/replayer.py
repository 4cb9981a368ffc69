"""In the guest: stub."""

from __future__ import annotations

from typing import Any

from tests.powercut.writer import Say

__all__ = ["replay"]


def replay(say: Say, **order: Any) -> Any:
    """Nothing yet."""
    raise NotImplementedError

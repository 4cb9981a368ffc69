"""Names that stand in a directory, and lead nowhere else."""

from __future__ import annotations

import os

__all__ = ["is_name"]


def is_name(name: str) -> bool:
    """Whether that can be the name of something in a directory, and leads nowhere else.

    >>> [is_name(name) for name in ("x", "x.npy", "", "..", "a/b")]
    [True, True, False, False, False]
    """
    try:
        return name not in ("", ".", "..") and "/" not in name and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell and no file system has
        return False

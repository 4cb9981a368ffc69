"""Fresh memory is touched on a thread, ahead of who will fill it.

The kernel clears a page when it is first touched, which takes longer than to copy as much. Whoever
appends has that done behind the line before, and finds pages that are there.
"""

from __future__ import annotations

from pmarray._system.populating import populate_write
from pmarray._system.threads import DaemonPool

__all__ = ["BEHIND", "touch"]

BEHIND = DaemonPool(1, "pmarray-touching")
"""What is touched behind is touched here."""


def touch(address: int, nbytes: int) -> bool:
    """Have the pages of some memory made, without changing it; False where that cannot be.

    Parameters
    ----------
    address, nbytes
        Whole pages of one mapping, which stays where it is meanwhile. Other threads of Python run.
    """
    return populate_write(address, nbytes)

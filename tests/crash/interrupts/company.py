"""Another thread that uses the group while an exception arrives in this one."""

from __future__ import annotations

import threading
import time

import pmarray
from pmarray.errors import PMArrayError

__all__ = ["Company"]

_ENDING_SECONDS = 5.0


class Company:
    """Reads as fast as it can, from `begin` to `end`.

    Parameters
    ----------
    group
        What it uses.
    """

    def __init__(self, group: pmarray.Group) -> None:
        self._group = group
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="company", daemon=True)

    def begin(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self) -> bool:
        """End; return whether it could."""
        self._ending.set()
        self._thread.join(_ENDING_SECONDS)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                _ = self._group["y"][0, 0]
                _ = self._group.attrs.get("v")
            except PMArrayError:
                pass  # deleted, closed or interrupted meanwhile
            # What is at hand is read without a lock: others would get their turn too late.
            time.sleep(0)

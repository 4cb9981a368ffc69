"""One transaction of a group that others write to as well: our own, or a part of theirs.

Transactions do not nest, and whatever is written during one belongs to it. So what is collected
inside a transaction of the program's own, on the same thread, becomes a part of that one; while
another thread has one open, its end is waited for.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

import pmarray
from pmarray.errors import TransactionError

__all__ = ["Joining"]

_LOOK_SECONDS = 0.001
_PATIENCE_SECONDS = 60.0


class Joining:
    """A transaction that returns before it is durable, or the one that this thread has open.

    Parameters
    ----------
    group
        Written to in the block.

    Raises
    ------
    TransactionError
        Another thread does not end its own.
    """

    def __init__(self, group: pmarray.Group) -> None:
        self._group = group
        self._own: pmarray.Transaction | None = None

    @property
    def joined(self) -> bool:
        """Whether the block is a part of a transaction of the program's."""
        return self._own is None

    def __enter__(self) -> Self:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            owner = self._group.transaction_owner
            if owner is threading.current_thread():
                return self
            if owner is None:
                # Noted before it begins, so that `end` finds it whatever comes between.
                self._own = self._group.transaction(wait=False)
                try:
                    self._own.__enter__()
                    return self
                except TransactionError:
                    self._own = None
                    if self._group.transaction_owner is None:
                        raise  # it is not for another one that there can be none
            elif not owner.is_alive() or time.monotonic() > deadline:
                raise TransactionError(
                    f"nothing can be collected into {self._group.url} while the thread "
                    f"{owner.name!r} has a transaction of it open: end that one first"
                )
            time.sleep(_LOOK_SECONDS)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._own is not None:
            self._own.__exit__(kind, value, traceback)

    def end(self) -> None:
        """Roll back what an interrupt has left open; nothing if it has ended."""
        if self._own is not None and not self._group.closed:
            self._own.__exit__(KeyboardInterrupt, None, None)

"""`Transaction`: what a block of `Group.transaction` is entered by and left."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Protocol, Self

from pmarray._array.home import Turns
from pmarray.errors import TransactionError

__all__ = ["Transacting", "Transaction"]


class Transacting(Protocol):
    """What makes transactions of a group durable, or takes them back."""

    @property
    def session(self) -> Turns:
        """Whose turn it is."""

    def begin(self, handle: Transaction, /) -> None:
        """Begin the transaction of a block."""

    def commit(self, handle: Transaction, /, *, wait: bool) -> None:
        """Commit it."""

    def admit_rollback(self, handle: Transaction, /) -> bool:
        """Whether it is still there to be rolled back; called with the lock."""

    def roll_back(self) -> None:
        """Take it back."""


class Transaction:
    """Everything written to the group inside the block becomes visible and durable together.

    Made by `Group.transaction` and `PMArray.transaction`. If the block raises, arrays, shapes and
    attributes are again what they were when it was entered. Operations of other threads during
    the block belong to it too.

    An interrupt (Ctrl-C) in the block is an exception like any other. One that arrives while the
    block ends decides nothing: the commit takes place or it does not, as if nobody had
    interrupted, and the next operation on the group waits for the outcome.

    Examples
    --------
    >>> import pmarray
    >>> group = pmarray.open_group("dram:")
    >>> x = group.create("x", (2, 1), layout="col")
    >>> try:
    ...     with group.transaction():
    ...         x.append([1, 2])
    ...         group.attrs["step"] = 1
    ...         raise KeyboardInterrupt
    ... except KeyboardInterrupt:
    ...     x.shape, dict(group.attrs)
    (2, 2)
    ((2, 1), {})
    """

    def __init__(self, commits: Transacting, *, wait: bool) -> None:
        self._commits = commits
        self._wait = wait
        self._begun = False
        self.torn = False
        """Whether an exception has torn it away at its beginning or end: see `OpenTransaction`."""

    def __enter__(self) -> Self:
        if self._begun:
            raise TransactionError("this transaction has been used; call transaction() for another")
        self._begun = True
        self.owner = threading.current_thread()
        commits, session = self._commits, self._commits.session
        try:
            with session.turn():
                session.admit()
                session.do(lambda: commits.begin(self))
        except BaseException:
            self.torn = True
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        commits, session = self._commits, self._commits.session
        try:
            with session.turn():
                if kind is None:
                    session.admit()
                    session.do(lambda: commits.commit(self, wait=self._wait))
                elif commits.admit_rollback(self):
                    session.do(commits.roll_back)
        except BaseException:
            self.torn = True
            raise

"""Which weights are iterates: those that are finite, and that a step has changed."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum

import torch
from torch import Tensor, nn

from swag._parameters import ParameterTable
from swag._records import Skipped
from swag.errors import NonFiniteError, SwagError, SwagWarning

__all__ = ["NoIterateError", "Screen", "Settle", "Vote"]


class Vote(Enum):
    """What a column is, as far as a process can say."""

    FINE = 0
    NONFINITE = 1
    """There is a NaN or an infinity in it."""
    REPEATED = 2
    """It is the one before."""
    FAILED = 3
    """It could not be written."""


Settle = Callable[[Vote, int], Vote]
"""Takes this process's vote and the iterates collected before; gives the vote of all."""


class NoIterateError(Exception):
    """What was written is no iterate; undoes its transaction and goes no further."""


class Screen:
    """Looks at each column that was written, counts those that are no iterates, and says so once.

    Parameters
    ----------
    table
        Of the parameters.
    raise_nonfinite
        Whether to stop at the first column that is not finite.
    settle
        Says what all processes make of a column that this one has voted on, each having a part.
    """

    def __init__(
        self, table: ParameterTable, *, raise_nonfinite: bool, settle: Settle | None = None
    ) -> None:
        self._table = table
        self._settle = settle
        self._asked = False
        self._raise_nonfinite = raise_nonfinite
        self._warned: set[str] = set()
        self._unsaid: deque[str] = deque()
        self._last: tuple[int, Tensor] | None = None
        """Number of an iterate, and the sums of its column."""
        self.skipped = Skipped()

    def look_at(
        self, count: int, column: Tensor, sums: Tensor, before: Callable[[], Tensor | None]
    ) -> None:
        """Look at a column.

        Parameters
        ----------
        count
            Iterates collected before it.
        column, sums
            As `ParameterTable.collect` made them.
        before
            Gives the column of the last iterate, if it can be had; asked for where the sums do not
            tell the two apart.

        Raises
        ------
        NoIterateError
            It is none.
        NonFiniteError
            It is not finite, and that is to be raised.
        """
        nonfinite, repeated = self.skipped.nonfinite, self.skipped.repeated
        wrong = self._table.nonfinite(column, sums)
        vote = Vote.NONFINITE if wrong else Vote.FINE
        if not wrong and count and self._repeats(count - 1, column, sums, before):
            vote = Vote.REPEATED
        if self._settle is not None:
            self._asked = True
            vote = self._settle(vote, count)
        if vote is Vote.NONFINITE:
            names = ", ".join(wrong[:5]) or "what another process holds"
            what = f"{names} {'is' if len(wrong) < 2 else 'are'} not finite"
            if len(sums) > 1 and column.dtype == torch.float16:
                what += " in float16, which ends at 65,504 (dtype=torch.bfloat16 goes further)"
            if self._raise_nonfinite:
                raise NonFiniteError(f"{what}: nothing was collected")
            self.skipped = Skipped(nonfinite + 1, repeated)
            self._warn(
                "nonfinite", f"{what}, after {count} iterates: such weights are not collected"
            )
            raise NoIterateError
        if vote is Vote.REPEATED:
            self.skipped = Skipped(nonfinite, repeated + 1)
            self._warn(
                "repeated",
                f"the weights are those of iterate {count - 1}, bit for bit, and are not collected "
                "again: call update_parameters after a step, and not where a gradient scaler has "
                "skipped it",
            )
            raise NoIterateError

    def begin(self) -> None:
        """A column is about to be written."""
        self._asked = False

    def failed(self, count: int) -> None:
        """It could not be: let no other process wait for this one's vote."""
        if self._settle is not None and not self._asked:
            with suppress(SwagError):
                self._settle(Vote.FAILED, count)

    def look_for_frozen(self, parameters: Sequence[nn.Parameter]) -> None:
        """Tell once that some of the parameters are not trained any more."""
        frozen = [] if "frozen" in self._warned else self._table.frozen(parameters)
        if frozen:
            more = f" and {len(frozen) - 5} more" if len(frozen) > 5 else ""
            self._warn(
                "frozen",
                f"{', '.join(frozen[:5])}{more} do not require a gradient any more, and are "
                "collected as they stand: for a posterior of the rest alone begin another one, "
                "with parameters=, or use the window of iterates since",
            )

    def note(self, iterate: int, sums: Tensor) -> None:
        """A column was collected."""
        self._last = iterate, sums

    def _repeats(
        self, iterate: int, column: Tensor, sums: Tensor, before: Callable[[], Tensor | None]
    ) -> bool:
        known = self._last[1] if self._last is not None and self._last[0] == iterate else None
        rounded = len(sums) > 1
        # Columns may be equal, and the weights not, of which the sums are then all there is.
        if (rounded and known is None) or (known is not None and not torch.equal(known, sums)):
            return False
        there = before()
        return there is not None and torch.equal(there, column)

    def tell(self) -> None:
        """Warn of what was left out, at the call of the method that calls this."""
        while self._unsaid:
            warnings.warn(self._unsaid.popleft(), SwagWarning, stacklevel=3)

    def _warn(self, kind: str, message: str) -> None:
        # Not here: this may be another thread, and the warning may be made an error.
        if kind not in self._warned:
            self._warned.add(kind)
            self._unsaid.append(message)

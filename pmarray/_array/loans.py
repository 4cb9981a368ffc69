"""Lending the memory of an array, to be filled in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from pmarray._array.growth import Growing
from pmarray._array.stored import StoredArray
from pmarray._selection.basic import Selection, storage_axes
from pmarray._storage.items import Loan
from pmarray.errors import ClosedError, LoanError

__all__ = ["Borrowing", "borrowed_for_reading"]

AnyArray = NDArray[Any]


@contextmanager
def borrowed_for_reading(array: StoredArray, choose: Callable[[], Selection]) -> Iterator[AnyArray]:
    """The context manager of `PMArray.reading`."""
    loan: Loan | None = None
    try:
        with array._turn():
            array._admit()
            selection = choose()
            loan = array._storage.pin(storage_axes(selection))
            array._pins.add(loan)
        block = loan.block.reshape(selection.block_shape)
        yield block[(*selection.to_result, ...)]
    finally:
        if loan is not None:
            array._pins.discard(loan)
            loan.done()


class Borrowing:
    """The context manager of `PMArray.writing` and `PMArray.appending`.

    It may be entered on one thread and left on another. Its array knows it weakly: one that an
    exception has torn away before its end, and that nobody has any more, is ended by the next
    operation, as one that has failed.
    """

    _loan: Loan | None = None

    def __init__(
        self,
        array: Growing,
        choose: Callable[[], Selection],
        on_failure: Callable[[Selection], None] | None,
    ) -> None:
        self._array = array
        self._choose = choose
        self._on_failure = on_failure
        self._selection: Selection | None = None
        self._transaction: object = None

    def __enter__(self) -> AnyArray:
        array = self._array
        if self._loan is not None:
            raise LoanError("this loan is open already; call writing() again for another")
        try:
            with array._turn():
                array._admit_writer()
                if self._on_failure is None:
                    self._begin()
                else:
                    array._group._session.do(self._begin)  # the array grows
                block = self._block()
        except BaseException:
            # No call of ours: a second exception could come at its beginning.
            array._group._session.unattended.append(self._give_up)
            raise
        return block

    def _block(self) -> AnyArray:
        assert self._loan is not None
        assert self._selection is not None
        block = self._loan.block.reshape(self._selection.block_shape)
        result: AnyArray = block[(*self._selection.to_result, ...)]
        return result

    def _begin(self) -> None:
        array = self._array
        before = array._layout.lines
        selection = self._selection = self._choose()
        try:
            # At once: from here on `_give_up` can end it.
            self._loan = array._storage.lend(storage_axes(selection))
        except BaseException:
            if array._layout.lines != before:
                array._set_lines(before, fill=False)  # nobody has seen the new lines
            raise
        self._transaction = array._group._session.transaction
        array._loans.add(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        loan, selection = self._loan, self._selection
        if loan is None or selection is None:
            raise LoanError("this loan is not open")
        array, group = self._array, self._array._group
        try:
            if group._session.closed:
                self._loan = None
                raise ClosedError(
                    f"{group.url} was closed before this loan of {array.name!r} ended; what "
                    "was written into it is lost"
                )
            if group._session.transaction is not self._transaction:
                loan.failed()
                self._loan = None
                raise LoanError(
                    f"the transaction in which this loan of {array.name!r} began has ended; what "
                    "was written into it is lost"
                )
            if kind is None:
                group._session.note_change()
                loan.done()
                group._session.note_change()
            else:
                loan.failed()
                if self._on_failure is not None:
                    with array._turn():
                        array._admit_writer()
                        self._on_failure(selection)
            self._loan = None
            # Last: while the loan counts as open, no transaction begins or ends.
            array._loans.discard(self)
        except BaseException:
            group._session.unattended.append(self._give_up)
            if self._loan is None:
                array._loans.discard(self)
            raise

    def _give_up(self) -> None:
        """End a loan that was torn away, as one that has failed; see `Session.unattended`."""
        loan, self._loan = self._loan, None
        array, selection = self._array, self._selection
        if loan is not None and selection is not None:
            loan.failed()
            extents = zip(selection.axes, array.shape, strict=False)
            there = not array._detached and all(axis.stop <= n for axis, n in extents)
            if self._on_failure is not None and there:  # else it has been taken back, or cut off
                self._on_failure(selection)
        array._loans.discard(self)

    def __del__(self) -> None:
        if self._loan is not None:
            self._array._group._session.unattended.append(self._give_up)

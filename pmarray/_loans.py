"""Lending the memory of an array, to be filled in place."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from pmarray._indexing import Selection, storage_axes
from pmarray._storage import Loan
from pmarray.errors import ClosedError, LoanError

if TYPE_CHECKING:
    from pmarray.array import PMArray
    from pmarray.transaction import Transaction

__all__ = ["Borrowing"]

AnyArray = NDArray[Any]


class Borrowing:
    """The context manager of `PMArray.writing` and `PMArray.appending`.

    It may be entered on one thread and left on another.
    """

    def __init__(
        self,
        array: PMArray,
        choose: Callable[[], Selection],
        on_failure: Callable[[Selection], None] | None,
    ) -> None:
        self._array = array
        self._choose = choose
        self._on_failure = on_failure
        self._loan: Loan | None = None
        self._selection: Selection | None = None
        self._transaction: Transaction | None = None

    def __enter__(self) -> AnyArray:
        array = self._array
        if self._loan is not None:
            raise LoanError("this loan is open already; call writing() again for another")
        with array._writing():
            before = array._layout.lines
            selection = self._selection = self._choose()
            try:
                self._loan = array._storage.lend(storage_axes(selection))
            except BaseException:
                if array._layout.lines != before:
                    array._set_lines(before, fill=False)  # nobody has seen the new lines
                raise
            array._loans.add(self)
            self._transaction = array._group._transaction
            block = self._loan.block.reshape(selection.block_shape)
            result: AnyArray = block[(*selection.to_result, ...)]
            return result

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        loan, self._loan = self._loan, None
        if loan is None or self._selection is None:
            raise LoanError("this loan is not open")
        array = self._array
        if array._group.closed:
            raise ClosedError(
                f"{array._group.url} was closed before this loan of {array.name!r} ended; what "
                "was written into it is lost"
            )
        try:
            if array._group._transaction is not self._transaction:
                loan.failed()
                raise LoanError(
                    f"the transaction in which this loan of {array.name!r} began has ended; what "
                    "was written into it is lost"
                )
            if kind is not None:
                loan.failed()
                if self._on_failure is not None:
                    with array._writing():
                        self._on_failure(self._selection)
                return
            try:
                loan.done()
            finally:
                array._group._note_change()
        finally:
            # Last: while the loan counts as open, no transaction begins or ends.
            array._loans.discard(self)

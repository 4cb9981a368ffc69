"""Saying which items nobody wants any more."""

from __future__ import annotations

from typing import Any

from pmarray._array.stored import StoredArray
from pmarray._selection.basic import select, storage_axes
from pmarray.errors import TransactionError

__all__ = ["Forgetting"]


class Forgetting(StoredArray):
    """A `StoredArray` of which items can be given up."""

    def forget(self, index: Any) -> None:
        """Give up what the selected items hold: then they are overwritten at the cost of an append.

        A transaction that overwrites committed items first writes what they hold to the journal,
        and waits until that is durable. Items that were forgotten need none of it: nobody wants
        what they hold. A ring of columns, of which the oldest are overwritten, forgets them a
        commit before it writes them.

        Until the transaction is durable the items hold what they held, also after a crash; from
        its commit on they hold anything, until they are written. A rollback takes it back. A
        reader of an earlier commit that reads them gets `SnapshotExpiredError`, even where they
        have not been overwritten yet.

        What counts is whole blocks of 4096 bytes, in runs: a column of a column-major array. The
        rest is overwritten as before, and so is all of a medium that gains nothing by it, as
        ``zarr:``.

        Parameters
        ----------
        index
            Integers, slices, ``...``.

        Raises
        ------
        TransactionError
            No transaction is open.
        SelectionError
            Out of bounds, or not such an index.
        LoanError
            Memory of the array is lent for writing.

        Examples
        --------
        >>> import numpy as np, pmarray
        >>> a = pmarray.open("memmap:./ring.pma", shape=(2048, 4), layout="col")
        >>> with a.transaction():
        ...     a[:, 3] = 1
        ...     a.forget(np.s_[:, :2])
        >>> with a.transaction():
        ...     a[:, 0] = 2  # no before-image
        >>> a.close()
        """
        with self._turn():
            self._admit_writer()
            if self._group._session.transaction is None:
                raise TransactionError(
                    f"items of {self._name!r} are forgotten by a commit: call forget() inside "
                    "`with array.transaction():`"
                )
            selection = select(index, self.shape)
            self._refuse_loans("forget items")
            self._storage.forget(storage_axes(selection))

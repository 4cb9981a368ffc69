"""The errors of pmarray, in one tree, grouped by what a caller would do about them.

::

    PMArrayError
    |
    |-- the call is wrong: change the program
    |   |-- URLError                  (ValueError)     not a URL of any known backend
    |   |-- LayoutError               (ValueError)     a shape, dtype or layout that cannot be
    |   |-- SelectionError            (IndexError)     an index that cannot be used here
    |   |   `-- AxisError              (numpy.exceptions.AxisError) there is no such axis
    |   |-- BudgetError               (MemoryError)    would not fit the memory allowed for it
    |   |-- LoanError                 (RuntimeError)   an operation that open loans do not allow
    |   |-- TransactionError          (RuntimeError)   nested, or not possible here
    |   |-- ReadOnlyError             (PermissionError) a write to something opened read-only
    |   |-- ReentrantCallError        (RuntimeError)   a signal handler came in the middle
    |   `-- ClosedError               (ValueError)     the group was closed
    |
    |-- it is not there, or there already: open something else
    |   |-- GroupNotFoundError        (FileNotFoundError)
    |   |-- ArrayNotFoundError        (KeyError)
    |   |-- GroupExistsError          (FileExistsError)
    |   `-- ArrayExistsError          (ValueError)
    |
    |-- it is somebody else's: wait, or leave it alone
    |   |-- GroupLockedError          (BlockingIOError) another writer has the group
    |   |-- ConflictError             (RuntimeError)   another writer has changed the same
    |   |-- SnapshotExpiredError      (RuntimeError)   a writer has moved on: refresh
    |   `-- ForeignDataError          (ValueError)     not written by pmarray, or by a newer one
    |
    `-- the medium failed: repair it, then reopen
        |-- DamagedError              (ValueError)     contents contradict their metadata
        `-- StorageError              (OSError)        the operating system refused an operation
            |-- WriteBehindError                       ... in the writer thread, after the call
            `-- PoisonedError                          ... at a barrier: reopen the group
                |-- OutcomeUnknownError                ... at that of a commit
                `-- LockLostError                      the lock file was removed: reopen the group

    PersistenceWarning                (UserWarning)    durable in another way than was asked for

>>> import pmarray
>>> try:
...     pmarray.open("memmap:/no/such/place", mode="r")
... except FileNotFoundError as error:
...     print(type(error).__name__)
GroupNotFoundError
"""

from __future__ import annotations

import numpy as np

__all__ = [
    "ArrayExistsError",
    "ArrayNotFoundError",
    "AxisError",
    "BudgetError",
    "ClosedError",
    "ConflictError",
    "DamagedError",
    "ForeignDataError",
    "GroupExistsError",
    "GroupLockedError",
    "GroupNotFoundError",
    "LayoutError",
    "LeftOutWarning",
    "LoanError",
    "LockLostError",
    "OutcomeUnknownError",
    "PMArrayError",
    "PersistenceWarning",
    "PoisonedError",
    "ReadOnlyError",
    "ReentrantCallError",
    "SelectionError",
    "SnapshotExpiredError",
    "StorageError",
    "TransactionError",
    "URLError",
    "WriteBehindError",
]


class PMArrayError(Exception):
    """The root of every error that pmarray raises on purpose."""


class URLError(PMArrayError, ValueError):
    """The text is not a URL of a known backend.

    >>> import pmarray
    >>> pmarray.open("floppy:/a")
    Traceback (most recent call last):
        ...
    pmarray.errors.URLError: no backend for 'floppy:'; known: dram, icechunk, memmap, shelf, zarr
    """


class LayoutError(PMArrayError, ValueError):
    """A shape, dtype, layout or chunk shape that cannot be, or disagrees with what is stored.

    >>> import pmarray
    >>> pmarray.open("dram:", shape=(2, 2), dtype=object)
    Traceback (most recent call last):
        ...
    pmarray.errors.LayoutError: dtype object holds Python objects, which have no bytes to store
    """


class SelectionError(PMArrayError, IndexError):
    """An index that is out of bounds, or of a kind that this operation does not take.

    >>> import pmarray
    >>> pmarray.open("dram:", shape=(2, 2))[5]
    Traceback (most recent call last):
        ...
    pmarray.errors.SelectionError: index 5 is out of bounds for axis 0 with size 2
    """


class AxisError(SelectionError, np.exceptions.AxisError):
    """The array has no such axis; a ValueError as well, as NumPy's.

    >>> import pmarray
    >>> pmarray.open("dram:", shape=(2, 2)).swapaxes(0, 2)
    Traceback (most recent call last):
        ...
    pmarray.errors.AxisError: axis 2 is out of bounds for array of dimension 2
    """


class BudgetError(PMArrayError, MemoryError):
    """The operation would need more memory than it is allowed; the message says how much."""


class LoanError(PMArrayError, RuntimeError):
    """An operation that is impossible while memory is lent out by `PMArray.writing`."""


class TransactionError(PMArrayError, RuntimeError):
    """A transaction that cannot be begun here, or an operation that it does not allow.

    >>> import pmarray
    >>> group = pmarray.open_group("dram:")
    >>> with group.transaction():
    ...     with group.transaction():
    ...         pass
    Traceback (most recent call last):
        ...
    pmarray.errors.TransactionError: a transaction of dram: is open already, in the thread ...
    """


class ReadOnlyError(PMArrayError, PermissionError):
    """A write to a group that was opened with ``mode="r"``."""


class ReentrantCallError(PMArrayError, RuntimeError):
    """A signal handler used a group whose operation it had interrupted.

    Python runs handlers in the middle of what the main thread does. Raise an exception in the
    handler (`SystemExit`, say), and flush or close the group where it is caught.
    """


class ClosedError(PMArrayError, ValueError):
    """The group has been closed; open it again."""


class GroupNotFoundError(PMArrayError, FileNotFoundError):
    """There is no group at this URL."""


class ArrayNotFoundError(PMArrayError, KeyError):
    """The group has no array of this name.

    >>> import pmarray
    >>> pmarray.open_group("dram:")["weights"]
    Traceback (most recent call last):
        ...
    pmarray.errors.ArrayNotFoundError: no array 'weights' in dram:; it holds no arrays
    """

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, which makes a message of many words unreadable.
        return str(self.args[0]) if self.args else ""


class GroupExistsError(PMArrayError, FileExistsError):
    """A group is there already and ``mode="w-"`` asked for a new one."""


class ArrayExistsError(PMArrayError, ValueError):
    """The group has an array of this name already."""


class GroupLockedError(PMArrayError, BlockingIOError):
    """Another handle, here or in another process, is writing to the group.

    The message names the process. The lock dies with the process that holds it.
    """


class ConflictError(PMArrayError, RuntimeError):
    """Another writer has changed the same; nothing of it was overwritten.

    Two writers of one `icechunk:` branch have written the same chunk, or the same metadata. The one
    that commits second gets this. What it has written is still there, uncommitted: `Group.discard`
    gives it up, and goes on from what the other has left.

    On `zarr:`, another program has changed the metadata of the hierarchy while this writer was at
    work, which no lock of ours prevents; the message says where both versions are.
    """


class SnapshotExpiredError(PMArrayError, RuntimeError):
    """What a reader saw is no longer there: a writer has committed and retired its journal.

    Call `Group.refresh` to see the last commit.
    """


class ForeignDataError(PMArrayError, ValueError):
    """What is there was not written by pmarray, or by a newer format of it; it is left alone."""


class DamagedError(PMArrayError, ValueError):
    """Stored data contradict their metadata: truncated, overwritten, or a checksum differs."""


class StorageError(PMArrayError, OSError):
    """The operating system refused an operation; `errno` says why."""


class WriteBehindError(StorageError):
    """A write failed after the call that made it had returned.

    The data are still held in memory: free space or repair the medium, then `flush` again.
    """


class PoisonedError(StorageError):
    """A barrier failed: what was written since the last one may be lost.

    Nothing is retried, because the kernel may report lost pages as clean. Close the group and
    open it again: it comes back as of the last state that is known to be durable.
    """


class OutcomeUnknownError(PoisonedError):
    """The barrier that should have made a commit durable failed: it may have happened or not.

    Opening the group again settles it.
    """


class LockLostError(PoisonedError):
    """The lock file was removed, or replaced, under the group's writer.

    Another writer may have come since, so nothing more is written. What had been committed or
    flushed is there; open the group again to go on from it.
    """


class LeftOutWarning(UserWarning):
    """A copy has not all that is in its source."""


class PersistenceWarning(UserWarning):
    """A place that was asked for as persistent memory is none, and is used as what it is."""

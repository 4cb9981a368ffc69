"""What can go wrong in swag, as one tree, grouped by what a caller would do about it.

::

    SwagError
    ├── StoreError(ValueError)      not the store asked for: point at another, or start afresh
    └── DatasetError(OSError)       a data file is missing or damaged: install or fetch it again

Errors of the arrays underneath are ``pmarray.errors.PMArrayError`` and pass through unchanged.
"""

from __future__ import annotations

__all__ = ["DatasetError", "StoreError", "SwagError"]


class SwagError(Exception):
    """Root of every error that this package raises on purpose.

    Examples
    --------
    >>> issubclass(DatasetError, SwagError)
    True
    """


class StoreError(SwagError, ValueError):
    """The store holds no posterior, or one of another model or configuration.

    Examples
    --------
    >>> try:
    ...     raise StoreError("this store holds another model")
    ... except ValueError as error:
    ...     print(error)
    this store holds another model
    """


class DatasetError(SwagError, OSError):
    """A file of a data set is missing, truncated or corrupt.

    Examples
    --------
    >>> import swag.datasets
    >>> try:
    ...     swag.datasets.mnist("/nonexistent")
    ... except OSError as error:
    ...     print(error)
    /nonexistent/train-images-idx3-ubyte.gz cannot be read: No such file or directory
    """

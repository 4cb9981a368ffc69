"""What can go wrong in swag, as one tree, grouped by what a caller would do about it.

::

    SwagError
    ├── StoreError(ValueError)      not the store asked for: point at another, or start afresh
    ├── ModelError(ValueError)      the model is not the one collected: build the same one
    ├── WindowError(ValueError)     iterates that are not held: choose others, or collect more
    └── DatasetError(OSError)       a data file is missing or damaged: install or fetch it again

Errors of the arrays underneath are ``pmarray.errors.PMArrayError`` and pass through unchanged.
"""

from __future__ import annotations

__all__ = ["DatasetError", "ModelError", "StoreError", "SwagError", "WindowError"]


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


class ModelError(SwagError, ValueError):
    """The parameters of a model are not those that the posterior is of.

    The message names the differences.

    Examples
    --------
    >>> import swag
    >>> from torch import nn
    >>> posterior = swag.SWAG(nn.Linear(3, 1))
    >>> posterior.update_parameters(nn.Linear(2, 1))
    Traceback (most recent call last):
        ...
    swag.errors.ModelError: the model is not the one collected: weight has shape (1, 2), not (1, 3)
    """


class WindowError(SwagError, ValueError):
    """Iterates were asked for that the posterior does not hold.

    Examples
    --------
    >>> import swag
    >>> from torch import nn
    >>> swag.SWAG(nn.Linear(3, 1)).mean()
    Traceback (most recent call last):
        ...
    swag.errors.WindowError: nothing has been collected yet
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

"""What can go wrong in swag, as one tree, grouped by what a caller would do about it.

::

    SwagError
    ├── StoreError(ValueError)      not the store asked for: point at another, or start afresh
    │   └── StoreExistsError(FileExistsError)   it has iterates: say whether to go on or replace
    ├── ModelError(ValueError)      the model is not the one collected: build the same one
    ├── RecipeError(ValueError)     no such training can be: give another number
    ├── WindowError(ValueError)     iterates that are not held: choose others, or collect more
    ├── NonFiniteError(FloatingPointError)      training has diverged: go back, lower the rate
    └── DatasetError(OSError)       a data file is missing or damaged: install or fetch it again

`SwagWarning` is what goes on all the same, and is said once.

Errors of the arrays underneath are ``pmarray.errors.PMArrayError`` and pass through unchanged.
"""

from __future__ import annotations

__all__ = [
    "DatasetError",
    "ModelError",
    "NonFiniteError",
    "RecipeError",
    "StoreError",
    "StoreExistsError",
    "SwagError",
    "SwagWarning",
    "WindowError",
]


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


class StoreExistsError(StoreError, FileExistsError):
    """The store has iterates already, and ``mode="w-"`` is for a new one.

    Examples
    --------
    >>> import swag
    >>> from torch import nn
    >>> model = nn.Linear(3, 1)
    >>> with swag.SWAG(model, store="dram:mine") as posterior:
    ...     posterior.update_parameters(model)
    >>> swag.SWAG(model, store="dram:mine")
    Traceback (most recent call last):
        ...
    swag.errors.StoreExistsError: dram:mine holds a posterior of 1 iterates already: give mode="a"
    to go on with it, or mode="w" to replace it
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


class RecipeError(SwagError, ValueError):
    """A number of a recipe is outside its range.

    Parameters
    ----------
    field
        Its name in `swag.app.recipe.Recipe`.
    wanted
        What it must be.
    value
        What it was.

    Examples
    --------
    >>> from swag.app.recipe import Recipe
    >>> Recipe(lr=0)
    Traceback (most recent call last):
        ...
    swag.errors.RecipeError: lr must be positive, not 0
    """

    def __init__(self, field: str, wanted: str, value: object) -> None:
        super().__init__(f"{field} must be {wanted}, not {value!r}")
        self.field = field
        self.wanted = wanted
        self.value = value


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


class NonFiniteError(SwagError, FloatingPointError):
    """Weights with a NaN or an infinity were to be collected, with ``on_nonfinite="raise"``.

    Examples
    --------
    >>> import swag, torch
    >>> model = torch.nn.Linear(1, 1)
    >>> posterior = swag.SWAG(model, on_nonfinite="raise")
    >>> _ = torch.nn.init.constant_(model.weight, torch.nan)
    >>> posterior.update_parameters(model)
    Traceback (most recent call last):
        ...
    swag.errors.NonFiniteError: weight is not finite: nothing was collected
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


class SwagWarning(UserWarning):
    """Something is most likely not as it was meant, such as training that has diverged.

    Examples
    --------
    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", SwagWarning)  # stop there
    """

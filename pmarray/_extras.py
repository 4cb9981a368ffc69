"""Packages that only some programs need, and the extras of pmarray that bring them along."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["MissingPackageError", "wanted"]

_EXTRAS = {
    **dict.fromkeys(["torch", "matplotlib", "ml_dtypes"], "swag"),
    "dask": "dask",
    "icechunk": "icechunk",
    "lightning": "lightning",
    "obstore": "s3",
    "safetensors": "safetensors",
    "transformers": "transformers",
}


class MissingPackageError(ModuleNotFoundError):
    """A package of an extra is not installed; the message says what installs it."""


@contextmanager
def wanted() -> Iterator[None]:
    """Say how to install a package that an import in the block does not find.

    >>> with wanted():
    ...     raise ModuleNotFoundError("No module named 'dask'", name="dask.array")
    Traceback (most recent call last):
        ...
    pmarray._extras.MissingPackageError: dask is not installed: pip install 'pmarray[dask]' ...
    """
    try:
        yield
    except MissingPackageError:
        raise
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name not in _EXTRAS:
            raise
        raise MissingPackageError(
            f"{name} is not installed: pip install 'pmarray[{_EXTRAS[name]}]' installs it",
            name=error.name,
        ) from error

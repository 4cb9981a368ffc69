"""Names of a package whose modules are loaded when the first of them is asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["attach"]


def attach(
    package: str, homes: Mapping[str, Iterable[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package, as PEP 562 has them.

    What only some programs use costs the others nothing. Type checkers are told the same by imports
    under ``TYPE_CHECKING``; the test of the architecture compares the two.

    Parameters
    ----------
    package
        Its ``__name__``; it has an ``__all__``.
    homes
        The names that each module gives it.

    Examples
    --------
    >>> find, names = attach("pmarray.linalg", {"pmarray.linalg._norms": ["norm"]})
    >>> find("norm").__module__
    'pmarray.linalg._norms'
    """
    module_of = {name: module for module, names in homes.items() for name in names}
    own = vars(sys.modules[package])

    def find(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = own[name] = getattr(import_module(module_of[name]), name)
        return found

    def names() -> list[str]:
        return sorted(own["__all__"])

    return find, names

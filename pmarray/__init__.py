"""Arrays that outgrow memory.

>>> import pmarray
>>> a = pmarray.open("dram:", shape=(3, 0), dtype="float32", layout="col")
>>> a.append([1, 2, 3])
(3, 1)
>>> a[:, 0]
array([1., 2., 3.], dtype=float32)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pmarray import errors, linalg
from pmarray._array.attributes import Attributes
from pmarray._array.transaction import Transaction
from pmarray._config import config
from pmarray._copying import pickling as _pickling  # noqa: F401  # says how arrays are pickled
from pmarray._geometry.layout import Layout, LayoutName
from pmarray._group.contents import Subgroup
from pmarray._lazy import attach
from pmarray._opening import Mode, open, open_group
from pmarray.array import PMArray
from pmarray.errors import PersistenceWarning, PMArrayError
from pmarray.group import Group

if TYPE_CHECKING:
    from pmarray._copying.copy import CreationMode, copy, copy_group
    from pmarray._copying.from_array import from_array
    from pmarray._upkeep.verify import Finding, Recovery, recover, verify

__version__ = "0.1.0"

__all__ = [
    "Attributes",
    "CreationMode",
    "Finding",
    "Group",
    "Layout",
    "LayoutName",
    "Mode",
    "PMArray",
    "PMArrayError",
    "PersistenceWarning",
    "Recovery",
    "Subgroup",
    "Transaction",
    "config",
    "copy",
    "copy_group",
    "errors",
    "from_array",
    "linalg",
    "open",
    "open_group",
    "recover",
    "verify",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "pmarray._copying.copy": ["CreationMode", "copy", "copy_group"],
        "pmarray._copying.from_array": ["from_array"],
        "pmarray._upkeep.verify": ["Finding", "Recovery", "recover", "verify"],
    },
)

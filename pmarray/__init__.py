"""Arrays that outgrow memory.

>>> import pmarray
>>> a = pmarray.open("dram:", shape=(3, 0), dtype="float32", layout="col")
>>> a.append([1, 2, 3])
(3, 1)
>>> a[:, 0]
array([1., 2., 3.], dtype=float32)
"""

from __future__ import annotations

from pmarray import errors, linalg
from pmarray._config import config
from pmarray._contents import Subgroup
from pmarray._copy import copy, copy_group
from pmarray._from_array import from_array
from pmarray._open import open, open_group
from pmarray._verify import Finding, Recovery, recover, verify
from pmarray.array import PMArray
from pmarray.attributes import Attributes
from pmarray.errors import PersistenceWarning, PMArrayError
from pmarray.group import Group
from pmarray.layout import Layout
from pmarray.transaction import Transaction

__version__ = "0.1.0"

__all__ = [
    "Attributes",
    "Finding",
    "Group",
    "Layout",
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

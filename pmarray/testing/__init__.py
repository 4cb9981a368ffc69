"""Tests for arrays and backends of any kind, for authors of backends and layouts.

Needs the package hypothesis: ``pip install pmarray[test]``.

>>> from pmarray.testing import ArrayMachine
>>> machine = ArrayMachine.over("dram:mine")     # run it with hypothesis, or as a TestCase
>>> machine.__name__
'ArrayMachine[dram:mine]'
"""

from __future__ import annotations

from pmarray.testing.conformance import ChunksTests, RegionTests
from pmarray.testing.stateful import ArrayMachine
from pmarray.testing.strategies import (
    advanced_indices,
    array_dtypes,
    array_shapes,
    basic_indices,
    budgets,
    filled,
    layouts,
    orthogonal_indices,
)
from pmarray.testing.workload import Operation, State, Workload

__all__ = [
    "ArrayMachine",
    "ChunksTests",
    "Operation",
    "RegionTests",
    "State",
    "Workload",
    "advanced_indices",
    "array_dtypes",
    "array_shapes",
    "basic_indices",
    "budgets",
    "filled",
    "layouts",
    "orthogonal_indices",
]

"""A state machine: random operations on a group, against a model made of NumPy arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from numpy.typing import NDArray

import pmarray
from pmarray.testing.strategies import (
    array_dtypes,
    array_shapes,
    basic_indices,
    budgets,
    filled,
    layouts,
)

__all__ = ["ArrayMachine"]

_SEEDS = st.integers(0, 2**16)
_MOST_ITEMS = 1 << 15
"""What `resize` makes at most: an item may be a chunk of its own, and each step compares all."""


class ArrayMachine(RuleBasedStateMachine):
    """Create, write, append, resize, delete, commit, roll back, flush and reopen, in any order.

    Subclasses say where: `url` is asked for once a run and must name an empty place. After every
    step each array equals its model, and a view or another reader may be compared in
    `check_reader`.

    >>> class OnMyBackend(ArrayMachine):
    ...     def url(self):
    ...         return "dram:on-my-backend"
    >>> TestMyBackend = OnMyBackend.TestCase
    """

    group: pmarray.Group
    model: dict[str, NDArray[Any]]

    def url(self) -> str:
        """Return where to make the group; called once a run."""
        raise NotImplementedError

    def stores(self, dtype: np.dtype[Any]) -> bool:
        """Whether the backend has arrays of this dtype."""
        return True

    def budget(self, cache: int | str) -> int | str:
        """Return the cache to open with: a chunk store needs room for the chunks that it has."""
        return cache

    def check_reader(self) -> None:
        """Look at the flushed group with other eyes; nothing unless a subclass does."""

    @classmethod
    def over(cls, url: str) -> type[ArrayMachine]:
        """Return a machine that works on `url`, which is emptied first."""
        return type(f"{cls.__name__}[{url}]", (cls,), {"url": lambda self: url})

    @initialize(cache=budgets())
    def start(self, cache: int | str) -> None:
        self.location = self.url()
        self.transaction: pmarray.Transaction | None = None
        self.model = {}
        self.attrs: dict[str, Any] = {}
        self.fills: dict[str, Any] = {}
        self.group = pmarray.open_group(self.location, mode="w", cache=self.budget(cache))

    @precondition(lambda self: len(self.model) < 3)
    @rule(
        name=st.sampled_from(["a", "b", "c"]),
        shape=array_shapes(2000),
        dtype=array_dtypes(),
        layout=layouts(),
        chunks=st.sampled_from(["auto", 1, 3]),
        seed=st.none() | _SEEDS,
    )
    def create(
        self, name: str, shape: Any, dtype: Any, layout: Any, chunks: Any, seed: int | None
    ) -> None:
        fill = np.zeros((), dtype)[()] if seed is None else filled((1,), dtype, seed)[0]
        try:
            self.group.create(name, shape, dtype, layout=layout, chunks=chunks, fill_value=fill)
        except pmarray.errors.ArrayExistsError:
            assert name in self.model
        except pmarray.errors.BudgetError:
            assert chunks != "auto"
        except pmarray.errors.LayoutError:
            assert not self.stores(np.dtype(dtype))
        else:
            assert name not in self.model
            self.model[name] = np.full(shape, fill, dtype)
            self.fills[name] = fill

    @precondition(lambda self: self.model)
    @rule(data=st.data(), seed=_SEEDS)
    def write(self, data: st.DataObject, seed: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        model = self.model[name]
        index = data.draw(basic_indices(model.shape))
        values = filled(np.shape(model[index]), model.dtype, seed)
        model[index] = values
        self.group[name][index] = values

    @precondition(lambda self: self.model)
    @rule(data=st.data(), seed=_SEEDS)
    def lend(self, data: st.DataObject, seed: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        model, array = self.model[name], self.group[name]
        slow = 0 if array.layout == "row" else model.ndim - 1
        if not model.ndim or not model.shape[slow]:
            return
        line = data.draw(st.integers(0, model.shape[slow] - 1))
        index = (slice(None),) * slow + (line,)
        values = filled(np.shape(model[index]), model.dtype, seed)
        try:
            with array.writing(index) as out:
                out[...] = values
        except pmarray.errors.BudgetError:
            return
        model[index] = values

    @precondition(lambda self: self.model)
    @rule(data=st.data(), count=st.integers(0, 4), seed=_SEEDS, lend=st.booleans())
    def append(self, data: st.DataObject, count: int, seed: int, lend: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        model, array = self.model[name], self.group[name]
        if not model.ndim:
            return
        axis = 0 if array.layout == "row" else model.ndim - 1
        shape = list(model.shape)
        shape[axis] = count
        values = filled(tuple(shape), model.dtype, seed)
        if lend:
            try:
                with array.appending(count) as out:
                    out[...] = values
            except pmarray.errors.BudgetError:
                return
        else:
            array.append(values)
        self.model[name] = np.concatenate([model, values], axis=axis, dtype=model.dtype)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), extent=st.integers(0, 300), any_axis=st.booleans())
    def resize(self, data: st.DataObject, extent: int, any_axis: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        model, array = self.model[name], self.group[name]
        if not model.ndim:
            return
        axis = 0 if array.layout == "row" else model.ndim - 1
        if any_axis:
            axis = data.draw(st.integers(0, model.ndim - 1))
        shape = list(model.shape)
        others = math.prod(shape[:axis] + shape[axis + 1 :])
        shape[axis] = min(extent, _MOST_ITEMS // max(1, others))
        new = np.full(tuple(shape), self.fills[name], model.dtype)
        kept = tuple(slice(0, min(old, now)) for old, now in zip(model.shape, shape, strict=True))
        new[kept] = model[kept]
        array.resize(tuple(shape))
        self.model[name] = new

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        del self.group[name]
        del self.model[name]

    @rule(key=st.sampled_from(["x", "y"]), value=st.integers() | st.text() | st.none())
    def set_attribute(self, key: str, value: Any) -> None:
        self.group.attrs[key] = self.attrs[key] = value

    @rule()
    def flush(self) -> None:
        if self.transaction is not None:
            return
        self.group.flush()
        self.check_reader()

    @precondition(lambda self: self.transaction is None)
    @rule(wait=st.booleans())
    def begin(self, wait: bool) -> None:
        self.before = ({name: a.copy() for name, a in self.model.items()}, dict(self.attrs))
        self.fills_before = dict(self.fills)
        self.transaction = self.group.transaction(wait=wait)
        self.transaction.__enter__()

    @precondition(lambda self: self.transaction is not None)
    @rule()
    def commit(self) -> None:
        transaction, self.transaction = self.transaction, None
        assert transaction is not None
        transaction.__exit__(None, None, None)

    @precondition(lambda self: self.transaction is not None)
    @rule()
    def roll_back(self) -> None:
        transaction, self.transaction = self.transaction, None
        assert transaction is not None
        error = KeyboardInterrupt()
        transaction.__exit__(type(error), error, None)
        (self.model, self.attrs), self.fills = self.before, self.fills_before

    @rule(cache=budgets())
    def reopen(self, cache: int | str) -> None:
        if self.transaction is not None:
            self.roll_back()  # closing would do it too
        self.group.close()
        self.check_reader()
        self.group = pmarray.open_group(self.location, mode="r+", cache=self.budget(cache))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        index = data.draw(basic_indices(self.model[name].shape))
        expected = self.model[name][index]
        found = self.group[name][index]
        assert np.shape(found) == np.shape(expected)
        assert isinstance(found, np.ndarray) == isinstance(expected, np.ndarray)
        np.testing.assert_array_equal(found, expected)

    @invariant()
    def equals_model(self) -> None:
        assert list(self.group) == sorted(self.model)
        assert dict(self.group.attrs) == self.attrs
        for name, model in self.model.items():
            array = self.group[name]
            assert (array.shape, array.dtype) == (model.shape, model.dtype)
            np.testing.assert_array_equal(array[...], model)
            np.testing.assert_array_equal(np.asarray(array), model)

    def teardown(self) -> None:
        if hasattr(self, "group"):
            if self.transaction is not None:
                self.roll_back()
            self.group.close()

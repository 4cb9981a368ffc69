"""Random transactions, the same for the same seed, and the states they lead through.

The crash rig and the kill loop run a workload on a real group, interrupt it, and ask whether what
they find afterwards is one of the states that the model allows.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pmarray
from pmarray._dtypes import parse_dtype
from pmarray.testing.strategies import filled

__all__ = ["Operation", "State", "Workload"]

_DTYPES = ("float32", "int8", "float64", "complex64")


@dataclass(frozen=True, slots=True)
class State:
    """What a group holds: comparable, hashable, small."""

    arrays: tuple[tuple[str, tuple[int, ...], str, str], ...]
    """Name, shape, dtype and a digest of the items, sorted."""
    attrs: tuple[tuple[str, Any], ...]

    @property
    def outline(self) -> State:
        """The same without the items: names, shapes, dtypes and attributes."""
        arrays = tuple((name, shape, dtype, "") for name, shape, dtype, _ in self.arrays)
        return State(arrays, self.attrs)

    @classmethod
    def of_group(cls, group: pmarray.Group) -> State:
        """Read everything that `group` holds."""
        return cls._of({name: group[name][...] for name in group}, dict(group.attrs))

    @classmethod
    def of_model(cls, arrays: dict[str, NDArray[Any]], attrs: dict[str, Any]) -> State:
        """The same of a model."""
        return cls._of(arrays, attrs)

    @classmethod
    def _of(cls, arrays: dict[str, NDArray[Any]], attrs: dict[str, Any]) -> State:
        return cls(
            tuple(
                (name, a.shape, str(a.dtype), hashlib.blake2b(a.tobytes()).hexdigest()[:16])
                for name, a in sorted(arrays.items())
            ),
            tuple(sorted(attrs.items())),
        )


@dataclass(frozen=True, slots=True)
class Operation:
    """One change of a group: create, write, append, resize, delete or set an attribute."""

    kind: str
    name: str
    argument: Any = None
    seed: int = 0

    def on_group(self, group: pmarray.Group) -> None:
        """Do it to a group."""
        if self.kind == "create":
            shape, dtype, layout, chunks = self.argument
            group.create(self.name, shape, dtype, layout=layout, chunks=chunks)
        elif self.kind == "write":
            array = group[self.name]
            shape = tuple(
                len(range(*s.indices(n))) for s, n in zip(self.argument, array.shape, strict=True)
            )
            array[self.argument] = filled(shape, array.dtype, self.seed)
        elif self.kind == "append":
            array = group[self.name]
            array.append(
                filled(_grown(array.shape, array.layout, self.argument), array.dtype, self.seed)
            )
        elif self.kind == "resize":
            array = group[self.name]
            array.resize(_with_lines(array.shape, array.layout, self.argument))
        elif self.kind == "delete":
            del group[self.name]
        else:
            group.attrs[self.name] = self.argument

    def on_model(
        self, arrays: dict[str, NDArray[Any]], layouts: dict[str, str], attrs: dict[str, Any]
    ) -> None:
        """Do it to a model."""
        if self.kind == "create":
            shape, dtype, layout, _ = self.argument
            arrays[self.name], layouts[self.name] = np.zeros(shape, dtype), layout
            return
        if self.kind == "attr":
            attrs[self.name] = self.argument
            return
        array, layout = arrays[self.name], layouts[self.name]
        axis = 0 if layout == "row" else array.ndim - 1
        if self.kind == "write":
            array = arrays[self.name] = array.copy()
            array[self.argument] = filled(array[self.argument].shape, array.dtype, self.seed)
        elif self.kind == "append":
            new = filled(_grown(array.shape, layout, self.argument), array.dtype, self.seed)
            arrays[self.name] = np.concatenate([array, new], axis=axis)
        elif self.kind == "resize":
            new = np.zeros(_with_lines(array.shape, layout, self.argument), array.dtype)
            kept = tuple(slice(0, min(a, b)) for a, b in zip(array.shape, new.shape, strict=True))
            new[kept] = array[kept]
            arrays[self.name] = new
        else:
            del arrays[self.name], layouts[self.name]


def _grown(shape: tuple[int, ...], layout: str, count: int) -> tuple[int, ...]:
    return _with_lines(shape, layout, count)


def _with_lines(shape: tuple[int, ...], layout: str, lines: int) -> tuple[int, ...]:
    return (lines, *shape[1:]) if layout == "row" else (*shape[:-1], lines)


class Workload:
    """A sequence of transactions on up to three small arrays.

    Parameters
    ----------
    seed
        Decides everything.
    length
        How many transactions.
    line_items
        The longest line, in items; small ones share blocks, long ones are padded.
    chunks
        Of the arrays, as for `pmarray.Group.create`.

    Examples
    --------
    >>> workload = Workload(seed=1, length=5)
    >>> with pmarray.open_group("dram:") as group:
    ...     for i in range(5):
    ...         with group.transaction():
    ...             workload.apply(i, group)
    ...     State.of_group(group) == workload.states[5]
    True
    """

    def __init__(
        self,
        seed: int,
        length: int,
        line_items: int = 700,
        *,
        chunks: str | int | tuple[int, ...] = "auto",
    ) -> None:
        self._random = random.Random(seed)
        self._line_items = line_items
        self.chunks = chunks
        """Of the arrays that it creates."""
        self.transactions: list[list[Operation]] = []
        arrays: dict[str, NDArray[Any]] = {}
        layouts: dict[str, str] = {}
        attrs: dict[str, Any] = {}
        self.states = [State.of_model(arrays, attrs)]
        """States 0 to `length`: before the first transaction, after it, and so on."""
        for i in range(length):
            operations = [Operation("attr", "step", i + 1)]
            for _ in range(self._random.randint(1, 4)):
                operation = self._choose(arrays, layouts)
                operation.on_model(arrays, layouts, attrs)
                operations.append(operation)
            operations[0].on_model(arrays, layouts, attrs)
            self.transactions.append(operations)
            self.states.append(State.of_model(arrays, attrs))

    def apply(self, i: int, group: pmarray.Group) -> None:
        """Do transaction `i` to a group; the caller has begun one."""
        for operation in self.transactions[i]:
            operation.on_group(group)

    def _choose(self, arrays: dict[str, NDArray[Any]], layouts: dict[str, str]) -> Operation:
        rng = self._random
        free = [name for name in ("a", "b", "c") if name not in arrays]
        seed = rng.randrange(1 << 16)
        if free and (not arrays or rng.random() < 0.2):
            line = rng.choice([1, 10, self._line_items])
            lines = rng.randint(0, 6)
            layout = rng.choice(["row", "col"])
            shape = (line, lines) if layout == "col" else (lines, line)
            dtype = parse_dtype(rng.choice(_DTYPES))
            return Operation("create", free[0], (shape, dtype, layout, self.chunks), seed)
        name = rng.choice(sorted(arrays))
        array = arrays[name]
        kind = rng.choices(["write", "append", "resize", "delete", "attr"], [8, 6, 2, 1, 1])[0]
        if kind == "write":
            return Operation("write", name, tuple(_slice(rng, n) for n in array.shape), seed)
        if kind == "append":
            return Operation("append", name, rng.randint(1, 3), seed)
        if kind == "resize":
            return Operation("resize", name, rng.randint(0, 8), seed)
        if kind == "delete":
            return Operation("delete", name)
        return Operation("attr", rng.choice("xyz"), seed)


def _slice(rng: random.Random, extent: int) -> slice:
    start = rng.randint(0, extent)
    stop = rng.randint(start, extent)
    return rng.choice([slice(0, extent), slice(start, stop), slice(start, min(start + 1, extent))])

"""What a group holds, as NumPy has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

import pmarray

__all__ = ["Contents"]


@dataclass(frozen=True)
class Contents:
    """Arrays and attributes."""

    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, group: pmarray.Group) -> Self:
        """Read everything."""
        return cls({name: np.array(group[name][...]) for name in group}, dict(group.attrs))

    def having(self, **arrays: NDArray[Any] | None) -> Contents:
        """The same with other arrays; None for none."""
        changed = {**self.arrays, **arrays}
        return replace(self, arrays={name: a for name, a in changed.items() if a is not None})

    def saying(self, **attrs: Any) -> Contents:
        """The same with other attributes; None for none."""
        changed = {**self.attrs, **attrs}
        return replace(self, attrs={name: a for name, a in changed.items() if a is not None})

    def difference(self, other: Contents) -> str | None:
        """Say in what `other` differs, or None if in nothing."""
        for name in sorted({*self.arrays, *other.arrays}):
            mine, its = self.arrays.get(name), other.arrays.get(name)
            if mine is None or its is None:
                return f"{name}: {_shape(mine)} and {_shape(its)}"
            if mine.shape != its.shape or mine.dtype != its.dtype:
                return f"{name}: {_shape(mine)} and {_shape(its)}"
            unlike = mine != its
            if unlike.any():
                at = tuple(int(i) for i in np.argwhere(unlike)[0])
                count = int(unlike.sum())
                return f"{name}: {count} items, first at {at}: {mine[at]} and {its[at]}"
        if dict(self.attrs) != dict(other.attrs):
            return f"attrs: {dict(self.attrs)} and {dict(other.attrs)}"
        return None

    def is_between(self, old: Contents, new: Contents) -> bool:
        """Whether each item is the old one or the new one, and all else the same."""
        if set(self.arrays) != set(old.arrays) or dict(self.attrs) != dict(old.attrs):
            return False
        return all(
            array.shape == old.arrays[name].shape
            and bool(((array == old.arrays[name]) | (array == new.arrays[name])).all())
            for name, array in self.arrays.items()
        )


def _shape(array: NDArray[Any] | None) -> str:
    return "no array" if array is None else f"{array.dtype}{list(array.shape)}"

"""A NumPy whose functions get `PMArray` where a test passes ndarrays.

NumPy's tests make arrays, call a function, and look at the result and at the arrays. Here each
ndarray that goes into a function is first stored, the function gets the stored array, what it has
become is copied back into the ndarray, and stored results come back as ndarrays. So nothing of a
test has to change, and every value that it asserts was computed by us.
"""

from __future__ import annotations

import builtins
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

import pmarray
from pmarray.errors import LayoutError

__all__ = ["Place", "load", "opened"]

_MOST_ITEMS = 20_000
"""Of an array: larger ones make a test of speed or of memory, and not of values."""
_METHODS = ("__call__", "reduce", "accumulate", "reduceat", "outer", "at")


class Place:
    """A group, and the arrays of it that nobody uses now."""

    def __init__(self, group: pmarray.Group) -> None:
        self._group = group
        self._free: dict[Any, list[Any]] = {}
        self._refused: set[Any] = set()
        self.stored = 0
        """How many arguments went through the medium."""

    def store(self, values: Any) -> Any:
        """Return a stored array of these items; None where the medium has no such array."""
        layout = "col" if values.flags.fnc else "row"
        key = values.shape, values.dtype, layout
        if key in self._refused:
            return None
        free = self._free.setdefault(key, [])
        try:
            array = free.pop() if free else self._new(*key)
        except LayoutError:  # no such dtype there
            self._refused.add(key)
            return None
        array[...] = values
        self.stored += 1
        return array

    def _new(self, shape: tuple[int, ...], dtype: Any, layout: str) -> Any:
        return self._group.create(f"x{len(self._group)}", shape, dtype, layout=layout)

    def take_back(self, array: Any) -> None:
        """Keep an array for the next of its form."""
        self._free[array.shape, array.dtype, array.layout].append(array)


_SCHEMES = {"dram": 1 << 20, "memmap": 256, "zarr": 1 << 20}


@contextmanager
def opened(scheme: str, directory: str) -> Iterator[Place]:
    """Open a place; on files pieces are a few items."""
    url = f"{scheme}:{directory}/group"
    with (
        pmarray.open_group(url, cache="4 MiB") as group,
        pmarray.config.set(work_memory=_SCHEMES[scheme]),
    ):
        yield Place(group)


def _is_plain(value: Any) -> bool:
    return (
        type(value) is np.ndarray
        and value.dtype.kind in "biufcmM"
        and value.dtype.isnative
        and value.size <= _MOST_ITEMS
        and value.flags.writeable
    )


class _Call:
    """One call: what was stored for it."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._pairs: list[tuple[Any, Any]] = []

    def stored(self, value: Any) -> Any:
        """Replace ndarrays among arguments by stored arrays."""
        if _is_plain(value):
            for original, array in self._pairs:
                if original is value:
                    return array
            # What two arguments share can be stored once only.
            if any(np.may_share_memory(value, original) for original, _ in self._pairs):
                return value
            array = self._place.store(value)
            if array is None:
                return value
            self._pairs.append((value, array))
            return array
        if type(value) in (list, tuple):
            return type(value)(self.stored(one) for one in value)
        if type(value) is dict:
            return {key: self.stored(one) for key, one in value.items()}
        return value

    def original(self, value: Any) -> Any:
        """Replace stored arrays among results by ndarrays."""
        if isinstance(value, pmarray.PMArray):
            for original, array in self._pairs:
                if array is value:
                    return original
            return np.array(value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self.original, value))
        if type(value) in (list, tuple):
            return type(value)(map(self.original, value))
        if isinstance(value, np.ndarray) and value.base is not None:
            return value.copy() if type(value) is np.ndarray else value
        return value

    def copy_back(self) -> None:
        for original, array in self._pairs:
            now = array[...]
            if now.tobytes() != original.tobytes():
                original[...] = now
            self._place.take_back(array)


def _through(place: Place, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        one = _Call(place)
        try:
            stored = one.stored(args), one.stored(options)
            return one.original(function(*stored[0], **stored[1]))
        finally:
            one.copy_back()

    return call


class _Function:
    """A function or ufunc of NumPy's; its other attributes are NumPy's own."""

    def __init__(self, place: Place, function: Any) -> None:
        self._function = function
        self._place = place
        self.__name__ = function.__name__

    def __call__(self, *args: Any, **options: Any) -> Any:
        return _through(self._place, self._function)(*args, **options)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._function, name)
        return _through(self._place, found) if name in _METHODS else found

    def __eq__(self, other: object) -> bool:
        return self._function is getattr(other, "_function", other)

    def __hash__(self) -> int:
        return hash(self._function)

    def __repr__(self) -> str:
        return repr(self._function)


class _Module(ModuleType):
    """A module of NumPy's with its functions replaced."""

    def __init__(self, place: Place, module: ModuleType) -> None:
        super().__init__(module.__name__)
        self._place = place
        self._module = module
        self._made: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name not in self._made:
            found = getattr(self._module, name)
            if hasattr(found, "_implementation") or isinstance(found, np.ufunc):
                found = _Function(self._place, found)
            elif name == "linalg":
                found = _Module(self._place, found)
            else:
                return found
            self._made[name] = found
        return self._made[name]


def load(path: str, name: str, place: Place) -> ModuleType:
    """Import a test module of NumPy's for which the functions of NumPy are ours."""
    numpys = _Module(place, np)

    def importing(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (),
                  level: int = 0) -> Any:  # fmt: skip
        found = __import__(name, globals, locals, fromlist, level)
        if level == 0 and (name == "numpy" or (name == "numpy.linalg" and not fromlist)):
            return numpys
        return numpys.linalg if level == 0 and name == "numpy.linalg" else found

    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    vars(module)["__builtins__"] = {**vars(builtins), "__import__": importing}
    spec.loader.exec_module(module)
    return module

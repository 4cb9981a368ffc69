"""A NumPy whose functions get `PMArray` where a test passes ndarrays.

NumPy's tests make arrays, call a function, and look at the result and at the arrays. Here each
ndarray that goes into a function is first stored, the function gets the stored array, what it has
become is copied back into the ndarray, and stored results come back as ndarrays. So nothing of a
test has to change, and every value that it asserts was computed by us.
"""

from __future__ import annotations

import builtins
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import numpy as np

import pmarray
from pmarray.errors import LayoutError

__all__ = ["Places", "load", "opened"]

_MOST_ITEMS = 20_000
"""Of an array: larger ones make a test of speed or of memory, and not of values."""
_FIRST_ARGUMENTS = 1000
_THEN_EVERY = 20
"""Of one test, which may loop over 40,000 cases: a medium takes a millisecond for each."""
_MOST_ARRAYS = 500
"""Of a group at a time: each has files open, and tests ask for thousands of forms."""
_METHODS = ("__call__", "reduce", "accumulate", "reduceat", "outer", "at")


class Place:
    """A group, and the arrays of it that nobody uses now."""

    def __init__(self, group: pmarray.Group, work_memory: int) -> None:
        self._group = group
        self.work_memory = work_memory
        self._free: dict[Any, list[Any]] = {}
        self._refused: set[Any] = set()
        self._made = 0
        self.stored = 0
        """How many arguments went through the medium."""
        self._met = 0

    def begin(self) -> None:
        """Begin another test."""
        self._met = 0

    def takes_next(self) -> bool:
        """Whether the next argument of this test is stored."""
        self._met += 1
        return self._met <= _FIRST_ARGUMENTS or self._met % _THEN_EVERY == 0

    def store(self, values: Any) -> Any:
        """Return a stored array of these items; None where the medium has no such array."""
        layout = "col" if values.flags.fnc else "row"
        key = values.shape, values.dtype, values.dtype.char, layout
        if key in self._refused:
            return None
        free = self._free.setdefault(key, [])
        try:
            array = free.pop() if free else self._new(values.shape, values.dtype, layout)
        except LayoutError:  # no such dtype there
            self._refused.add(key)
            return None
        array[...] = values
        self.stored += 1
        return array

    def _new(self, shape: tuple[int, ...], dtype: Any, layout: Any) -> Any:
        # Two chunks of a chunk store, where one of a few items would have 64 KiB.
        chunks: Any = "auto"
        if self._group.url.startswith("zarr:") and shape:
            chunks = (max(1, -(-shape[0] // 2)), *(max(1, n) for n in shape[1:]))
        if len(self._group) >= _MOST_ARRAYS:
            for array in [array for free in self._free.values() for array in free]:
                del self._group[array.name]
            self._free.clear()
        self._made += 1
        name = f"x{self._made}"
        return self._group.create(name, shape, dtype, layout=layout, chunks=chunks)

    def take_back(self, array: Any) -> None:
        """Keep an array for the next of its form."""
        key = array.shape, array.dtype, array.dtype.char, array.layout
        self._free.setdefault(key, []).append(array)


class Places:
    """Some places, of which each test has one."""

    def __init__(self, places: dict[str, Place]) -> None:
        self._places = places
        self._names = list(places)

    @property
    def current(self) -> Place:
        """Where arguments are stored now."""
        return self._places[self._names[0]]

    def turn(self) -> None:
        """Go on to the next test, and to the next place."""
        self._names.append(self._names.pop(0))
        self.current.begin()

    def stored(self) -> dict[str, int]:
        """How many arguments went through each medium."""
        return {name: place.stored for name, place in self._places.items()}


_WORK_MEMORY = {"dram": 1 << 20, "memmap": 256, "zarr": 1 << 20}
"""On files pieces are a few items."""


@contextmanager
def opened(schemes: Sequence[str], directory: str) -> Iterator[Places]:
    """Open a group of each scheme."""
    with ExitStack() as stack:
        places = {}
        for scheme in schemes:
            url = f"{scheme}:{directory}/{scheme}"
            group = stack.enter_context(pmarray.open_group(url, cache="4 MiB"))
            places[scheme] = Place(group, _WORK_MEMORY[scheme])
        yield Places(places)


def _is_plain(value: Any) -> bool:
    return (
        type(value) is np.ndarray
        and value.dtype.kind in "biufcmM"
        and value.dtype.isnative
        and value.size <= _MOST_ITEMS
        and value.flags.writeable
    )


def _changed(values: Any, change: Callable[[Any], Any]) -> Any:
    """A list or tuple of what `change` makes of the items; itself, if that is the same."""
    result = [change(one) for one in values]
    same = all(one is other for one, other in zip(result, values, strict=True))
    return values if same else type(values)(result)


class _Call:
    """One call: what was stored for it."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._pairs: list[tuple[Any, Any]] = []
        self._before: list[bytes] = []
        self._passed: list[Any] = []
        """Arrays that are passed as they are."""

    def stored(self, value: Any) -> Any:
        """Replace ndarrays among arguments by stored arrays."""
        if _is_plain(value):
            for original, array in self._pairs:
                if original is value:
                    return array
            # What two arguments share can be stored once only.
            shared = any(np.may_share_memory(value, original) for original, _ in self._pairs)
            array = None if shared or not self._place.takes_next() else self._place.store(value)
            if array is None:
                self._passed.append(value)
                return value
            self._pairs.append((value, array))
            self._before.append(value.tobytes())
            return array
        if type(value) in (list, tuple):
            return _changed(value, self.stored)
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
            return _changed(value, self.original)
        if any(value is one for one in self._passed):
            return value
        if isinstance(value, np.ndarray) and value.base is not None:
            return value.copy() if type(value) is np.ndarray else value
        return value

    def copy_back(self) -> None:
        for (original, array), before in zip(self._pairs, self._before, strict=True):
            now = array[...]
            if now.tobytes() != before:  # or an out= that shares its memory has changed it
                original[...] = now
            self._place.take_back(array)


def _through(places: Places, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        place = places.current
        one = _Call(place)
        with pmarray.config.set(work_memory=place.work_memory):
            try:
                stored = one.stored(args), one.stored(options)
                return one.original(function(*stored[0], **stored[1]))
            finally:
                one.copy_back()

    return call


class _Function:
    """A function or ufunc of NumPy's; its other attributes are NumPy's own."""

    def __init__(self, places: Places, function: Any) -> None:
        self._function = function
        self._places = places
        self.__name__ = function.__name__

    def __call__(self, *args: Any, **options: Any) -> Any:
        return _through(self._places, self._function)(*args, **options)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._function, name)
        return _through(self._places, found) if name in _METHODS else found

    def __eq__(self, other: object) -> bool:
        return self._function is getattr(other, "_function", other)

    def __hash__(self) -> int:
        return hash(self._function)

    def __repr__(self) -> str:
        return repr(self._function)


class _Module(ModuleType):
    """A module of NumPy's with its functions replaced."""

    def __init__(self, places: Places, module: ModuleType) -> None:
        super().__init__(module.__name__)
        self._places = places
        self._module = module
        self._made: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name not in self._made:
            found = getattr(self._module, name)
            if hasattr(found, "_implementation") or isinstance(found, np.ufunc):
                found = _Function(self._places, found)
            elif name == "linalg":
                found = _Module(self._places, found)
            else:
                return found
            self._made[name] = found
        return self._made[name]


def load(path: str, name: str, places: Places) -> ModuleType:
    """Import a test module of NumPy's for which the functions of NumPy are ours."""
    numpys = _Module(places, np)

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

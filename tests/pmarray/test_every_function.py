"""Every public function of `numpy` and `numpy.linalg`: with ndarrays, and with `PMArray`.

The result is compared, and every argument afterwards; and what is stored into a result shows in the
argument, or is refused, where it shows in NumPy's.
"""

from __future__ import annotations

import dis
import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmarray
from pmarray._numpy.functions.streamed import STREAMED
from tests.pmarray.calls import CALLS, Call
from tests.sampling import sampled

_NOT_CALLED = {
    **dict.fromkeys(["save", "savez", "savez_compressed", "savetxt"], "writes a file"),
    "concat": "is concatenate",
}

_DEPRECATED = {"in1d"}  # and gone from NumPy 2.4


def _public() -> Iterator[tuple[str, Any]]:
    for prefix, module in (("", np), ("linalg.", np.linalg)):
        for name in dir(module):
            function = getattr(module, name)
            dispatched = hasattr(function, "_implementation")
            if dispatched or (isinstance(function, np.ufunc) and function.__name__ == name):
                if isinstance(function, np.ufunc) and prefix:
                    continue
                yield prefix + name, function


def test_every_public_function_is_called() -> None:
    missing = [name for name, _ in _public() if not CALLS.get(name) and name not in _NOT_CALLED]
    missing = [name for name in missing if not _takes_what_no_medium_holds(name)]
    missing = [name for name in missing if name not in _DEPRECATED]
    assert not missing


def _takes_what_no_medium_holds(name: str) -> bool:
    return isinstance(getattr(np, name, None), np.ufunc) and set(getattr(np, name).types) <= {
        "O->O"
    }


class Arguments:
    """Makes the arguments of a call, and keeps them."""

    def __init__(self, place: Place | None, layout: Any = "row") -> None:
        self.made: list[Any] = []
        self._place = place
        self._layout = layout

    def __call__(self, values: Any) -> Any:
        argument = values = np.array(values)
        if self._place is not None:
            argument = self._place.take(values.shape, values.dtype, self._layout)
            argument[...] = values
        self.made.append(argument)
        return argument


class Place:
    """Lends arrays of a group: to create one for each argument would take minutes."""

    def __init__(self, group: pmarray.Group) -> None:
        self.group = group
        self._free: dict[Any, list[Any]] = {}

    def take(self, shape: tuple[int, ...], dtype: Any, layout: Any) -> Any:
        free = self._free.setdefault((shape, np.dtype(dtype), layout), [])
        return free.pop() if free else self._new(shape, dtype, layout)

    def _new(self, shape: tuple[int, ...], dtype: Any, layout: Any) -> Any:
        return self.group.create(f"x{len(self.group)}", shape, dtype, layout=layout)

    def give_back(self, arguments: Arguments) -> None:
        for one in arguments.made:
            self._free[one.shape, one.dtype, one.layout].append(one)


@pytest.fixture(scope="module")
def place(request: Any, tmp_path_factory: Any) -> Iterator[Place]:
    """A group in which pieces are small."""
    scheme = request.param
    url = "dram:" if scheme == "dram" else f"{scheme}:{tmp_path_factory.mktemp('place')}/group"
    memory = 200 if scheme == "memmap" else "1 MiB"
    with pmarray.open_group(url, cache="64 KiB") as group, pmarray.config.set(work_memory=memory):
        yield Place(group)


def outcome(call: Call, arguments: Arguments) -> Any:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return call(arguments)
        except (TypeError, ValueError, IndexError, OverflowError) as error:
            return next(
                kind
                for kind in (TypeError, ValueError, IndexError, OverflowError)
                if isinstance(error, kind)
            )


def same(found: Any, expected: Any, rtol: float = 1e-12) -> None:
    if isinstance(expected, tuple | list):
        assert isinstance(found, tuple | list)
        for one, other in zip(found, expected, strict=True):
            same(one, other, rtol)
    elif isinstance(expected, np.ndarray | np.generic):
        if not isinstance(found, pmarray.PMArray):
            assert isinstance(found, np.ndarray) == isinstance(expected, np.ndarray)
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        found = np.asarray(found)
        if expected.dtype.kind in "fc":
            rtol = max(rtol, {2: 2e-3, 4: 1e-6}.get(expected.real.itemsize, 0))
            np.testing.assert_allclose(found, np.asarray(expected), rtol=rtol, atol=rtol)
        else:
            np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


# What a function does with an array is seen in memory, and with small pieces in files; that its
# reads and writes reach a chunk store as well, in a sample.
_PLACES = [(scheme, name) for scheme in ("dram", "memmap") for name in sorted(CALLS)]
_PLACES += sampled([("zarr", name) for name in sorted(CALLS)], 80)


@pytest.mark.sampled
@pytest.mark.parametrize(("place", "name"), _PLACES, indirect=["place"])
def test_result_and_arguments_are_numpys(name: str, place: Place) -> None:
    for number, call in enumerate(CALLS[name]):
        # Of deviations in float32, asked for by dtype=, the squares are summed in another order.
        rtol = 1e-6 if name.endswith(("var", "std")) else 1e-12
        compare(call, place, "col" if number % 2 else "row", rtol)


@pytest.mark.parametrize(
    "name",
    ["put", "putmask", "place", "put_along_axis", "fill_diagonal", "nan_to_num", "median", "take",
     "copyto", "squeeze", "add"],
)  # fmt: skip
def test_arguments_are_numpys_in_a_transaction(name: str, scratch: Path) -> None:
    """Where there is no mapping of a file that would show what is written."""
    with pmarray.open_group(f"memmap:{scratch}/group") as group:
        with group.transaction():
            for call in CALLS[name]:
                compare(call, Place(group), "row")


def compare(call: Call, place: Place, layout: Any, rtol: float = 1e-12) -> None:
    model, ours = Arguments(None), Arguments(place, layout)
    expected, found = outcome(call, model), outcome(call, ours)
    same(found, expected, rtol)
    assert len(ours.made) == len(model.made)
    for one, other in zip(ours.made, model.made, strict=True):
        same(one[...], other, rtol)
        assert (found is one) == (expected is other)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # arrays of broadcast_arrays
        _store(found, expected)
    for one, other in zip(ours.made, model.made, strict=True):
        same(one[...], other, rtol)
    place.give_back(ours)


def _store(found: Any, expected: Any) -> None:
    """Store into what a function returned, as far as that is possible here."""
    if isinstance(expected, tuple | list):
        for one, other in zip(found, expected, strict=True):
            _store(one, other)
    elif (
        isinstance(expected, np.ndarray)
        and expected.size
        and expected.flags.writeable
        and (isinstance(found, pmarray.PMArray) or found.flags.writeable)
    ):
        first = (0,) * expected.ndim
        found[first] = expected[first] = np.zeros((), expected.dtype)


@pytest.mark.parametrize("function", ["putmask", "dot", "concatenate"])
def test_what_is_written_is_found_without_its_name(function: str) -> None:
    """Of functions in C, which are not streamed where a subclass is among the arguments."""

    class Own(np.ndarray[Any, Any]):
        """A class that is more than its items."""

    written = pmarray.open("dram:", (2,))
    own = np.array([1.0, 0.0]).view(Own)
    arguments: dict[str, list[Any]] = {
        "putmask": [written, own, own + 1],
        "dot": [np.array([[1.0, 2.0], [3.0, 4.0]]), own, written],
        "concatenate": [[own[:1], own[:1]], 0, written],
    }
    expected = np.zeros(2)
    plain = [expected if one is written else one for one in arguments[function]]
    getattr(np, function)(*plain)
    getattr(np, function)(*arguments[function])
    assert expected.any()
    np.testing.assert_array_equal(written[...], expected)


# -- parameters -----------------------------------------------------------------------------------

_UNUSED = {
    ("empty_like", "subok"), ("zeros_like", "subok"), ("ones_like", "subok"),
    ("full_like", "subok"),  # there are no subclasses
    ("einsum", "optimize"),  # which says how to compute, and not what
    ("may_share_memory", "max_work"), ("shares_memory", "max_work"),  # likewise
}  # fmt: skip
_OTHERWISE = {"where": "x and y are given, or are not: None is a value"}


@pytest.mark.parametrize("function", STREAMED, ids=lambda f: f"{f.__module__}.{f.__name__}")
def test_no_parameter_is_ignored(function: Any) -> None:
    """What is taken over has NumPy's parameters, and each is read."""
    name = function.__name__
    if name in _OTHERWISE:
        pytest.skip(_OTHERWISE[name])
    ours = inspect.signature(STREAMED[function])
    try:
        numpys = inspect.signature(function)
    except ValueError:
        pytest.skip("NumPy before 2.4 does not say which parameters its functions in C have")
    assert [(p.name, p.kind) for p in ours.parameters.values()] == [
        (p.name, p.kind) for p in numpys.parameters.values()
    ]
    for one, other in zip(ours.parameters.values(), numpys.parameters.values(), strict=True):
        assert one.default is other.default or one.default == other.default
    implementation = inspect.unwrap(STREAMED[function])
    if "options" in implementation.__code__.co_varnames:
        return  # one that binds NumPy's signature, and passes everything on
    read = _names_read(implementation.__code__)
    ignored = set(ours.parameters) - read - {p for f, p in _UNUSED if f == name}
    assert not ignored


def _names_read(code: Any) -> set[str]:
    """Variables that a function reads, or that functions in it do."""
    found = set()
    for step in dis.get_instructions(code):
        if step.opname.startswith(("LOAD_FAST", "LOAD_DEREF", "LOAD_CLOSURE")):
            found |= set(step.argval) if isinstance(step.argval, tuple) else {step.argval}
    for constant in code.co_consts:
        if hasattr(constant, "co_code"):
            found |= _names_read(constant)
    return found

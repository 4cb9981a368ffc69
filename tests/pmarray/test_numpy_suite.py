"""NumPy's own tests of indexing and of memmap, run against `PMArray`.

They are imported from the NumPy that is installed. An adapter stands in for the names that their
modules import: what they make is a `PMArray` wherever one can hold it. Each exclusion has its
reason, and one that is not needed any more fails.
"""

from __future__ import annotations

import gc
import importlib.util
import itertools
import operator
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

import pmarray

_TESTS = Path(np.__file__).parent / "_core" / "tests"

pytestmark = pytest.mark.skipif(
    not (_TESTS / "test_indexing.py").exists(), reason="this NumPy was installed without its tests"
)

VIEW = "an index gives a copy here; a.view[...] is the lazy view"
FLAT = "there is no flat iterator"
REFERENCES = "counts references to a dtype; live arrays have some"
NDARRAY = "is about ndarray itself: its subclasses, flags, strides or C API"
MEMMAP = "is about an attribute or a parameter of np.memmap that has no counterpart"

EXCLUDED = {
    "TestIndexing.test_empty_tuple_index": VIEW,
    "TestIndexing.test_ellipsis_index": VIEW,
    "TestIndexing.test_gh_26844": VIEW,
    "TestIndexing.test_gh_26844_segfault": VIEW,
    **({"TestIndexing.test_small_regressions": REFERENCES} if sys.version_info < (3, 13) else {}),
    "TestIndexing.test_memory_order": "the result of an index array is in C order here",
    "TestIndexing.test_scalar_return_type": "ends with an array of objects, which is none of ours",
    "TestIndexing.test_character_assignment": "the character type is refused: LayoutError",
    "TestCApiAccess.test_getitem": NDARRAY,
    "TestCApiAccess.test_setitem": NDARRAY,
    "TestFlatiterIndexing.test_flatiter_indexing_boolean": FLAT,
    "TestFlatiterIndexing.test_flatiter_assign_single_integer": FLAT,
    "TestFlatiterIndexing.test_flatiter_indexing_slice_assign": FLAT,
    "TestFlatiterIndexing.test_flatiter_indexing_boolean_assign": FLAT,
    "TestFlatiterIndexing.test_flatiter_indexing_fancy_assign": FLAT,
    "TestFlatiterIndexing.test_flatiter_indexing_fancy_int16_dtype": FLAT,
    "TestFlatiterIndexing.test_flatiter_indexing_not_supported_newaxis_mutlid_float_assign": FLAT,
    "TestMemmap.test_roundtrip": "comes back, and has no flags to ask for",
    "TestMemmap.test_unnamed_file": MEMMAP,
    "TestMemmap.test_attributes": MEMMAP,
    "TestMemmap.test_filename": MEMMAP,
    "TestMemmap.test_path": MEMMAP,
    "TestMemmap.test_filename_fileobj": MEMMAP,
    "TestMemmap.test_slicing_keeps_references": VIEW,
    "TestMemmap.test_view": VIEW,
    "TestMemmap.test_getitem": VIEW,
    "TestMemmap.test_memmap_subclass": NDARRAY,
    "TestMemmap.test_ufunc_return_ndarray": "asks for the class np.memmap after its arithmetic",
    "TestMemmap.test_mmap_offset_greater_than_allocation_granularity": MEMMAP,
    "TestMemmap.test_empty_array_with_offset_multiple_of_allocation_granularity": MEMMAP,
    "TestMemmap.test_no_shape": MEMMAP,
    "TestMemmap.test_empty_array": MEMMAP,
}


class Counter:
    """Knows whether a test touched a `PMArray` at all."""

    made = 0


class Adapter(np.lib.mixins.NDArrayOperatorsMixin):
    """A `PMArray` that is indexed; everything else that a test does is done by NumPy."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        Counter.made += 1
        layout: Any = "col" if array.flags.f_contiguous and not array.flags.c_contiguous else "row"
        self.ours = pmarray.open("dram:", array.shape, array.dtype, layout=layout)
        self.ours[...] = array

    def __getitem__(self, index: Any) -> Any:
        return self.ours[_plain(index)]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.ours[_plain(index)] = _plain(value)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.array(self.ours, dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return getattr(ufunc, method)(*map(_plain, inputs), **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(np.array(self.ours), name)
        if not callable(found):
            return found
        return lambda *args, **options: _wrap(found(*map(_plain, args), **options))

    def __len__(self) -> int:
        return len(self.ours)

    def __index__(self) -> int:
        return operator.index(np.array(self.ours))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.ours)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if isinstance(value, Adapter):
        return np.array(value.ours)
    known = isinstance(value, np.ndarray | np.generic | type)  # classes have the method, too
    return _Like(value) if hasattr(value, "__array__") and not known else value


class _Like:
    """An array-like of a test's; NumPy takes ndarrays only from one."""

    def __init__(self, like: Any) -> None:
        self._like = like

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return _plain(self._like.__array__())


def _wrap(array: Any) -> Any:
    """Put an ndarray into memory of ours, where its type allows that."""
    if type(array) is not np.ndarray or array.dtype.hasobject:
        return array
    return Adapter(array)


class NumPyOfOurs(ModuleType):
    """NumPy, whose constructors give `PMArray`."""

    def __init__(self) -> None:
        super().__init__("numpy_of_ours")

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        if name not in ("array", "arange", "zeros", "ones", "empty"):
            return found
        return lambda *args, **options: _wrap(found(*map(_plain, args), **options))


class Memmap:
    """Takes the place of np.memmap: makes an array in a directory with the file's name."""

    directory: Path
    groups: ClassVar[weakref.WeakSet[pmarray.Group]] = weakref.WeakSet()

    def __new__(
        cls,
        file: Any,
        dtype: Any = np.uint8,
        mode: Any = "r+",
        offset: int = 0,
        shape: Any = None,
        order: Any = "C",
    ) -> Any:
        """Open it, with np.memmap's modes."""
        gc.collect()  # what was dropped is closed when it is found
        Counter.made += 1
        name = file if isinstance(file, Path) else Path(file.name)
        shape = tuple(np.atleast_1d(shape).tolist()) if shape is not None else None
        url = f"memmap:{cls.directory / name.name}"
        modes: dict[str, Any] = {"w+": "w", "r+": "a", "r": "r"}
        array = pmarray.open(url, shape, dtype, mode=modes[mode], order=order)
        cls.groups.add(array.group)
        return array


def _of_plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **options: function(*map(_plain, args), **options)


def _isinstance(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) or (kind is np.ndarray and isinstance(value, Adapter))


def _load(name: str, **names: Any) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"numpys_own_{name}", _TESTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module).update(names)
    # Arrays on a medium have no buffer of their own to look at.
    vars(module)["memoryview"] = _of_plain(memoryview)
    vars(module)["isinstance"] = _isinstance
    for name in ("assert_equal", "assert_array_equal"):
        if name in vars(module):
            vars(module)[name] = _of_plain(vars(module)[name])
    return module


def _cases(module: ModuleType) -> Iterator[Any]:
    """Every test of a module with every set of its parameters, as a callable."""
    for class_name, kind in vars(module).items():
        if not (isinstance(kind, type) and class_name.startswith("Test")):
            continue
        for name in vars(kind):
            function = getattr(kind, name)
            if not (name.startswith("test") and callable(function)):
                continue
            marks = [m for m in getattr(function, "pytestmark", []) if m.name == "parametrize"]
            sets = [_parameters(mark) for mark in marks]
            for i, chosen in enumerate(itertools.product(*sets)):
                case = f"{class_name}.{name}"
                label = case + (f"[{i}]" if marks else "")
                options = {key: value for one in chosen for key, value in one.items()}
                yield pytest.param(kind, name, options, case, id=label)


def _parameters(mark: pytest.Mark) -> list[dict[str, Any]]:
    names, values = mark.args[:2]
    keys = [key.strip() for key in names.split(",")] if isinstance(names, str) else list(names)
    return [dict(zip(keys, [v] if len(keys) == 1 else v, strict=True)) for v in values]


def _run(kind: type, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    test = kind()
    function: Callable[..., Any] = getattr(test, name)
    if "tmp_path" in function.__code__.co_varnames:
        options = {**options, "tmp_path": tmp_path}
    getattr(test, "setup_method", lambda: None)()
    try:
        function(**options)
    finally:
        getattr(test, "teardown_method", lambda: None)()


if (_TESTS / "test_indexing.py").exists():
    _INDEXING = _load("test_indexing", np=NumPyOfOurs())
    _INDEX_ERRORS = _load("test_indexerrors", np=NumPyOfOurs())
    _MEMMAP = _load("test_memmap", memmap=Memmap)
    CASES = [
        case
        for module in (_INDEXING, _INDEX_ERRORS, _MEMMAP)
        for case in _cases(module)
        if case.values[0].__name__ != "TestMultiIndexingAutomated"
    ]
else:
    CASES = []


@pytest.mark.filterwarnings("default", "ignore::ResourceWarning")
@pytest.mark.parametrize(("kind", "name", "options", "case"), CASES)
def test_numpys_own(
    kind: type, name: str, options: dict[str, Any], case: str, tmp_path: Path
) -> None:
    before = Counter.made
    Memmap.directory = tmp_path / "arrays"
    Memmap.directory.mkdir()
    try:
        _run(kind, name, options, tmp_path)
    except (Exception, pytest.fail.Exception):  # the other one is not an Exception
        if case in EXCLUDED:
            pytest.xfail(EXCLUDED[case])
        raise
    finally:
        for group in list(Memmap.groups):  # before their directory goes
            group.close()
    assert case not in EXCLUDED, "passes: it need not be excluded"
    if Counter.made == before:
        pytest.skip("makes nothing that a PMArray could hold")


class _Zero:
    def __index__(self) -> int:
        return 0


class _ZeroLike:
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.array(0)


@pytest.mark.parametrize("zero", [_Zero(), _ZeroLike(), np.array(0), np.int8(0)])
def test_one_item_is_a_scalar(zero: Any) -> None:
    """What test_scalar_return_type asks for before it comes to arrays of objects."""
    for shape in ((1,), (1, 1), (2, 1, 1)):
        a = pmarray.open("dram:", shape)
        index = (zero,) * len(shape)
        assert isinstance(a[index], np.float64)
        assert isinstance(a[(*index[:-1], 0)], np.float64)
        a[index] = 3
        assert a[index] == 3
        assert isinstance(a[(*index, ...)], np.ndarray)


def test_indices_leave_no_references() -> None:
    """What test_small_regressions asks for, of arrays that are there already."""
    a = pmarray.open("dram:", (1,), "i8")

    def index() -> int:
        for kind in (np.intp, np.uint8):
            a[np.array([0], kind)] = 1
            with pytest.raises(IndexError):
                a[np.array([1], kind)] = 1
        return sys.getrefcount(np.dtype(np.intp))

    index()
    before = index()
    assert [index() - before for _ in range(10)][-1] < 5


@pytest.mark.parametrize("layout", ["row", "col"])
@pytest.mark.parametrize("name", ["test_boolean", "test_multidim", "test_1d"])
def test_numpys_own_combinations_of_indices(name: str, layout: Any) -> None:
    """NumPy computes each result with `take` and `reshape`; we compare ours with it."""
    with tempfile.TemporaryDirectory() as directory:
        group = pmarray.open_group(f"memmap:{directory}/group", cache="16 KiB")
        arrays: dict[tuple[int, ...], pmarray.PMArray] = {}
        checked = 0

        def twin(model: Any) -> pmarray.PMArray:
            if model.shape not in arrays:
                key = f"a{len(arrays)}"
                arrays[model.shape] = group.create(key, model.shape, model.dtype, layout=layout)
            arrays[model.shape][...] = model
            return arrays[model.shape]

        class Ours(_original()):  # type: ignore[misc]
            def _check_multi_index(self, arr: Any, index: Any) -> None:
                nonlocal checked
                checked += 1
                array = twin(arr)
                parts = index if isinstance(index, tuple) else (index,)
                try:
                    expected, _ = self._get_multi_index(arr, parts)
                except Exception as error:
                    with pytest.raises(type(error)):
                        array[index]
                    with pytest.raises(type(error)):
                        array[index] = 0
                    return
                np.testing.assert_array_equal(array[index], expected)
                array[index] = expected + 1000
                model = arr.copy()
                model[index] = expected + 1000
                np.testing.assert_array_equal(array[...], model)

            _check_single_index = _check_multi_index

        ours = Ours()
        getattr(ours, "setup_method", lambda: None)()  # before NumPy 2.4, which has a fixture
        getattr(ours, name)()
        assert checked > 2
        group.close()


def _original() -> type:
    original = importlib.util.spec_from_file_location(
        "numpys_indexing", _TESTS / "test_indexing.py"
    )
    assert original is not None
    assert original.loader is not None
    module = importlib.util.module_from_spec(original)
    original.loader.exec_module(module)
    kind: type = module.TestMultiIndexingAutomated
    return kind

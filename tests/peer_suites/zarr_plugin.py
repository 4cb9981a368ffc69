"""The pytest plugin that runs zarr-python's tests of indexing over arrays of ours.

What the tests create by zarr-python is created by us, in a directory of Zarr's format; their
methods go to the indexers that a `PMArray` has.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr

import pmarray
from tests.peer_suites.exclusions import ZARR

_failed: set[str] = set()
_ran: set[str] = set()
_made = 0


class Array:
    """A `PMArray` under the names that zarr-python's arrays have for what they do."""

    def __init__(self, ours: pmarray.PMArray) -> None:
        global _made
        _made += 1
        self.ours = ours
        self.oindex = ours.oindex
        self.vindex = ours.vindex
        self.blocks = ours.blocks
        grid = SimpleNamespace(get_nchunks=self._get_nchunks)
        self.metadata = SimpleNamespace(chunk_grid=grid)
        self._async_array = SimpleNamespace(
            oindex=_Asynchronous(ours.oindex), vindex=_Asynchronous(ours.vindex)
        )

        self._iter_chunk_regions = ours.iter_chunks

    def _get_nchunks(self, shape: Any) -> int:
        return int(np.prod([-(-n // m) for n, m in zip(shape, self.ours.chunks, strict=True)]))

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent of each axis."""
        return self.ours.shape

    def __getitem__(self, index: Any) -> Any:
        return self.ours[_plain(index)]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.ours[_plain(index)] = value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.array(self.ours, dtype)

    def get_basic_selection(self, selection: Any = ..., *, out: Any = None) -> Any:
        """Integers and slices: what `PMArray.view` takes."""
        view = self.ours.view[selection]
        return view[...] if out is None else view.read(..., out=_memory(out))

    def set_basic_selection(self, selection: Any, value: Any) -> None:
        """Assign to integers and slices."""
        self.ours.view[selection][...] = value

    def get_orthogonal_selection(self, selection: Any, *, out: Any = None) -> Any:
        """Each axis for itself."""
        return _into(out, self.oindex[selection])

    def set_orthogonal_selection(self, selection: Any, value: Any) -> None:
        """Assign to each axis for itself."""
        self.oindex[selection] = value

    def get_coordinate_selection(self, selection: Any, *, out: Any = None) -> Any:
        """One coordinate array an axis."""
        return _into(out, self.vindex[selection])

    get_mask_selection = get_coordinate_selection

    def set_coordinate_selection(self, selection: Any, value: Any) -> None:
        """Assign to points."""
        self.vindex[selection] = value

    set_mask_selection = set_coordinate_selection

    def get_block_selection(self, selection: Any) -> Any:
        """Whole chunks."""
        return self.blocks[selection]

    def set_block_selection(self, selection: Any, value: Any) -> None:
        """Assign to whole chunks."""
        self.blocks[selection] = value


class _Asynchronous:
    def __init__(self, indexer: Any) -> None:
        self._indexer = indexer

    async def getitem(self, index: Any) -> Any:
        """Read at an index."""
        return self._indexer[_plain(index)]


def _plain(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_plain, index))
    return index.ours if isinstance(index, Array) else index


def _memory(out: Any) -> Any:
    return out.as_numpy_array() if hasattr(out, "as_numpy_array") else out


def _into(out: Any, values: Any) -> Any:
    if out is None:
        return values
    _memory(out)[...] = values
    return out


class _Zarr(ModuleType):
    """zarr-python, whose functions that create an array create ours."""

    def __init__(self, group: pmarray.Group) -> None:
        super().__init__("zarr")
        self._group = group

    def create_array(
        self, *, shape: Any, dtype: Any, chunks: Any = "auto", fill_value: Any = 0, **_: Any
    ) -> Array:
        """Create an array of ours; where it is, and how its chunks are called, is our business."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        chunks = (chunks,) * len(shape) if isinstance(chunks, int) else chunks
        if chunks != "auto":
            chunks = tuple(max(1, n) for n in chunks)
        name = f"a{len(self._group)}"
        array = self._group.create(name, shape, dtype, chunks=chunks, fill_value=fill_value)
        return Array(array)

    def create_group(self, **_: Any) -> _Zarr:
        """Return what creates arrays."""
        return self

    def create(self, shape: Any, *, dtype: Any = "f8", codecs: Any = None, **options: Any) -> Array:
        """Create an array of ours."""
        return self.create_array(shape=shape, dtype=dtype, **options)

    def array(self, data: Any, *, dtype: Any = None, **options: Any) -> Array:
        """Create an array of ours with values."""
        values = np.asarray(data, dtype)
        result = self.create_array(shape=values.shape, dtype=values.dtype, **options)
        result[...] = values
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(zarr, name)


def _refused_by_numpy(selection: Any, ndim: int) -> bool:
    try:
        np.empty((1050, 10)[:ndim])[selection]
    except IndexError:
        return True
    return False


def _load(path: Path, group: pmarray.Group) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"zarrs_own_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = vars(module)
    names["zarr"] = ours = _Zarr(group)

    def from_numpy(store: Any, a: Any, chunk_shape: Any = None) -> Array:
        result = ours.create_array(shape=a.shape, dtype=a.dtype, chunks=chunk_shape or "auto")
        result[()] = a
        return result

    @pytest.fixture
    def store() -> None:
        return None

    names["zarr_array_from_numpy_array"] = from_numpy
    names["store"] = store
    # What NumPy takes we take: slices that run backwards, new axes.
    for ndim in (1, 2):
        bad = names[f"basic_selections_{ndim}d_bad"]
        bad[:] = [one for one in bad if _refused_by_numpy(one, ndim)]
    return module


class _Module(pytest.Module):
    def _getobj(self) -> ModuleType:
        return _load(self.path, self.config.stash[_GROUP])


_GROUP = pytest.StashKey[pmarray.Group]()


def pytest_configure(config: pytest.Config) -> None:
    directory = config.getoption("basetemp") or "."
    config.stash[_GROUP] = pmarray.open_group(f"zarr:{directory}/zarr", cache="1 MiB")
    config.addinivalue_line("markers", "asyncio: a test of zarr-python")


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> pytest.Module:
    return _Module.from_parent(parent, path=module_path)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    function = pyfuncitem.obj
    if not inspect.iscoroutinefunction(function):
        return None
    names = inspect.signature(function).parameters
    asyncio.run(function(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


def _name(nodeid: str) -> str:
    return ".".join(nodeid.split("[")[0].split("::")[1:])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if (reason := ZARR.get(_name(item.nodeid))) is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=False))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        _ran.add(_name(report.nodeid))
        if not report.passed:
            _failed.add(_name(report.nodeid))


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[_GROUP].close()
    idle = sorted(set(ZARR) & _ran - _failed)
    if idle:
        print("\nneed not be excluded:", *idle, sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    print(f"\n{_made} arrays were ours")

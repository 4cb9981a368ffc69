"""The pytest plugin that runs NumPy's test modules through `shim`; see ``make numpy-suite``.

``PMARRAY_PLACES`` says where arrays are stored: of several places each test has one, in turn.
``PMARRAY_EVERY=20`` takes every twentieth test.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.numpy_suite.exclusions import EXCLUDED, SOMETIMES
from tests.numpy_suite.shim import load, opened

_SCHEMES = os.environ.get("PMARRAY_PLACES", "dram").split()
_EVERY = int(os.environ.get("PMARRAY_EVERY", "1"))
_open = ExitStack()
_places = _open.enter_context(
    opened(_SCHEMES, _open.enter_context(tempfile.TemporaryDirectory(prefix="pmarray-numpy-")))
)
_failed: set[str] = set()
_ran: set[str] = set()


class _Module(pytest.Module):
    def _getobj(self) -> ModuleType:
        return load(str(self.path), f"numpys_own_{self.path.stem}", _places)


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> pytest.Module | None:
    if module_path.name == "__init__.py":
        return None
    return _Module.from_parent(parent, path=module_path)


def _name(item: pytest.Item) -> str:
    """As exclusions name it: module, class and function, without parameters."""
    module, *rest = item.nodeid.split("[")[0].split("::")
    return ".".join([Path(module).stem.removeprefix("test_"), *rest])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items[:] = items[::_EVERY]
    for item in items:
        if (reason := (EXCLUDED | SOMETIMES).get(_name(item))) is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=False))


def pytest_runtest_teardown() -> None:
    _places.turn()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        name = ".".join(
            [Path(report.nodeid.split("::")[0]).stem.removeprefix("test_"),
             *report.nodeid.split("[")[0].split("::")[1:]]
        )  # fmt: skip
        _ran.add(name)
        if report.skipped or report.failed:
            _failed.add(name)


def pytest_sessionfinish(session: pytest.Session) -> None:
    _open.close()
    idle = sorted(set(EXCLUDED) & _ran - _failed)
    if idle and _EVERY == 1 and _SCHEMES == ["memmap"]:
        print("\nneed not be excluded:", *idle, sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    for scheme, count in _places.stored().items():
        print(f"\n{count} arguments were stored in {scheme}:")

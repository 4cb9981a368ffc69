"""What a package names in ``__all__`` is what it offers, and every public name says what it is."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Literal, get_origin

import pytest

import pmarray
import swag

PACKAGES = [pmarray, swag]


def public_modules() -> list[str]:
    return [
        info.name
        for package in PACKAGES
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not any(part.startswith("_") for part in info.name.split("."))
    ]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_a_package_offers_exactly_what_it_names(package: ModuleType) -> None:
    submodules = {info.name for info in pkgutil.iter_modules(package.__path__)}
    offered = {
        name
        for name in dir(package)
        if not name.startswith("_") and name not in submodules and name != "annotations"
    }
    assert offered == set(package.__all__) - submodules


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_names_are_sorted_unique_and_resolve(package: ModuleType) -> None:
    assert package.__all__ == sorted(set(package.__all__))
    for name in package.__all__:
        assert getattr(package, name) is not None


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_a_package_tells_type_checkers_that_it_has_types(package: ModuleType) -> None:
    assert (Path(package.__path__[0]) / "py.typed").exists()


@pytest.mark.parametrize("name", public_modules())
def test_every_public_module_has_what_it_names(name: str) -> None:
    module = importlib.import_module(name)
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_public_name_has_a_docstring(package: ModuleType) -> None:
    silent = [
        name
        for name in package.__all__
        if get_origin(getattr(package, name)) is not Literal
        and callable(getattr(package, name))
        and not inspect.getdoc(getattr(package, name))
    ]
    assert not silent

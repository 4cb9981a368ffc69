"""What ``make test-lowest`` installs is the lowest that `pyproject.toml` promises."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.lowest import EXTRAS, constraints

PROJECT: dict[str, Any] = tomllib.loads(
    (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
)["project"]
NAMED: dict[str, list[str]] = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}


def _bounds(extra: str) -> dict[str, Version]:
    """Lower bounds, as pip's own parser reads them."""
    return {
        canonicalize_name(required.name): Version(one.version)
        for required in map(Requirement, NAMED[extra])
        for one in required.specifier
        if one.operator == ">="
    }


def test_each_lower_bound_is_installed_and_nothing_lower() -> None:
    chosen = [Requirement(line) for line in constraints(PROJECT)]
    expected: dict[str, Version] = {}
    for extra in ("", *EXTRAS):
        for name, bound in _bounds(extra).items():
            expected[name] = max(bound, expected.get(name, bound))
    assert len(expected) > 20
    assert {r.name: str(r.specifier) for r in chosen} == {
        name: f"=={version}" for name, version in expected.items()
    }


@pytest.mark.parametrize("extra", sorted(set(NAMED) - {"docs", "bench"}))
def test_what_an_extra_promises_is_what_is_tried(extra: str) -> None:
    """A lower bound than that of the tests has been tried by nobody."""
    tried = {k: v for name in ("", *EXTRAS) for k, v in _bounds(name).items()}
    assert _bounds(extra) == {name: tried[name] for name in _bounds(extra)}


@pytest.mark.parametrize("requirement", ["a<2", "a>=1,<2", "a>=1; python_version < '3.12'", "a~=1"])
def test_what_is_no_lower_bound_is_refused(requirement: str) -> None:
    with pytest.raises(ValueError, match="more than a name and a lower bound"):
        constraints({"dependencies": [requirement]}, [])


def test_of_two_bounds_the_higher_one_counts() -> None:
    project = {"dependencies": ["a>=1.9"], "optional-dependencies": {"x": ["A[b]>=1.10", "c"]}}
    assert constraints(project, ["x"]) == ["a==1.10"]

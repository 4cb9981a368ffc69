"""The lowest versions that `pyproject.toml` promises, as constraints for pip.

``make test-lowest`` runs it before there is an environment: it needs Python alone.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["constraints", "python"]

EXTRAS = ("swag", "test")
_PROJECT = Path(__file__).parents[1] / "pyproject.toml"
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?(?:>=([0-9.]+))?$")
_PYTHON = re.compile(r">=(\d+)\.(\d+)$")


def constraints(project: Mapping[str, Any], extras: Iterable[str] = EXTRAS) -> list[str]:
    """Return ``name==x`` for each ``name>=x`` that the project or one of these extras requires.

    What has no bound has no constraint. Of several bounds of one name the highest counts, since
    pip has to fulfil them all.

    Raises
    ------
    ValueError
        A requirement says more than a name and a lower bound.

    Examples
    --------
    >>> constraints({"dependencies": ["a[b]>=1.5", "c"]}, [])
    ['a==1.5']
    """
    lowest: dict[str, str] = {}
    required = list(project["dependencies"])
    for extra in extras:
        required += project["optional-dependencies"][extra]
    for requirement in required:
        found = _REQUIREMENT.match(requirement)
        if found is None:
            raise ValueError(f"{requirement} says more than a name and a lower bound")
        name, version = found.groups()
        if version is not None:
            name = re.sub(r"[-_.]+", "-", name).lower()
            lowest[name] = max(version, lowest.get(name, "0"), key=_numbers)
    return [f"{name}=={version}" for name, version in sorted(lowest.items())]


def python(project: Mapping[str, Any]) -> tuple[int, int]:
    """Return the lowest Python that the project takes.

    Examples
    --------
    >>> python({"requires-python": ">=3.11"})
    (3, 11)
    """
    found = _PYTHON.match(project["requires-python"])
    if found is None:
        raise ValueError(f"{project['requires-python']} is no lower bound of Python")
    return int(found[1]), int(found[2])


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


if __name__ == "__main__":
    declared = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]
    if sys.version_info[:2] != python(declared):
        # Not all of the lowest versions exist for a newer one.
        wanted = ".".join(map(str, python(declared)))
        sys.exit(f"the lowest versions are for Python {wanted}: PYTHON=python{wanted} says which")
    print("\n".join(constraints(declared)))

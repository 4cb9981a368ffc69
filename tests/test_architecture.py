"""The rooms of pmarray stand on one another: a module imports only what lies below it.

`FLOORS` is the tower of ``docs/architecture.md``. `UPWARD` and `INSIDE` list what does not fit yet,
and may only shrink: a line that no longer holds fails the test, as a new one does.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest

import pmarray
from pmarray._cache.cache import ChunkCache
from pmarray._system import osops

PACKAGE = Path(__file__).parent.parent / "pmarray"

FLOORS = (
    ("pmarray", "__main__", "cli", "testing"),
    ("_copying", "_upkeep"),
    ("_opening",),
    ("group",),
    ("_group",),
    ("array",),
    ("_numpy",),
    ("linalg",),
    ("_exchange", "_streams"),
    ("_array",),
    ("_storage",),
    ("_commits",),
    ("_cache", "backends"),
    ("_system",),
    ("_formats",),
    ("_selection",),
    ("_geometry",),
    ("_dtypes", "_config", "_url", "_protocols"),
    ("_sizes", "errors"),
)
"""From the top to the ground. Rooms on one floor do not import one another."""

FACE = {"pmarray.testing", "pmarray.__main__"}
"""What uses the library as its users do, or is its face."""

UPWARD: set[tuple[str, str]] = {
    ("array", "group"),
}
INSIDE: set[tuple[str, str]] = {
    ("array", "group"),
}
MAY_IMPORT_INSIDE = {"backends._registry"}
"""A backend is loaded when its scheme is first used."""


class Import(NamedTuple):
    """One module of ours imported by another, both without the leading ``pmarray.``."""

    importer: str
    imported: str
    is_at_the_top: bool


def imports() -> Iterator[Import]:
    """Yield every import of our own modules, wherever in the file it stands."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            for imported in _imported(node):
                yield Import(name.rstrip(".") or "pmarray", imported, node in tree.body)


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        module = node.module or ""
        names = [
            f"{module}.{alias.name}" if _is_module(f"{module}.{alias.name}") else module
            for alias in node.names
        ]
    else:
        return
    for name in names:
        if name == "pmarray":
            yield name
        elif name.startswith("pmarray."):
            yield name.removeprefix("pmarray.")


def _is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def room(module: str) -> str:
    return module.split(".")[0]


def floor(module: str) -> int:
    """How high a module lies, from the ground."""
    (height,) = (i for i, rooms in enumerate(reversed(FLOORS)) if room(module) in rooms)
    return height


def _rooms_below(frame: FrameType | None) -> list[str]:
    """The rooms of the functions that are being called, the outermost first, each once in a row."""
    found: list[str] = []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if PACKAGE in path.parents:
            name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
            if not found or found[-1] != name:
                found.append(name)
        frame = frame.f_back
    return found[::-1]


def _followed(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[list[str]]:
    """Note the rooms above each call of a function."""
    real, seen = getattr(owner, name), []

    def noted(*arguments: Any, **options: Any) -> Any:
        seen.append(_rooms_below(sys._getframe(1)))
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, noted)
    return seen


def test_a_write_goes_down_to_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pmarray.open(tmp_path / "g", (1000, 4), layout="col") as a:
        seen = _followed(monkeypatch, ChunkCache, "acquire")
        a[:, 1] = range(1000)
        assert seen == [["array", "_array", "_storage", "_cache", "_storage"]]
        seen.clear()
        assert a[10, 1] == 10
        assert seen == []  # an item that is cached is looked at, and no chunk acquired


def test_what_was_written_goes_on_to_the_medium(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pmarray.open_group(tmp_path / "g") as group:
        a = group.create("x", (1000, 4), layout="col")
        group.flush()
        seen = _followed(monkeypatch, osops, "pwritev")
        a[:, 1] = 1
        group.flush()
        assert ["_cache", "_commits", "_storage", "backends", "_system"] in seen


def test_every_room_has_its_floor() -> None:
    named = {name for rooms in FLOORS for name in rooms}
    there = {"pmarray"} | {
        path.stem
        for path in PACKAGE.iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and path.stem != "__init__"
    }
    assert there == named


def test_no_import_runs_up() -> None:
    upward = {
        (one.importer, one.imported)
        for one in imports()
        if room(one.importer) != room(one.imported)
        and floor(one.importer) <= floor(one.imported)
        and f"pmarray.{room(one.importer)}" not in FACE
        and one.importer != "cli"
    }
    assert upward == UPWARD


def test_no_import_of_ours_is_hidden_in_a_function() -> None:
    inside = {
        (one.importer, one.imported)
        for one in imports()
        if not one.is_at_the_top and one.importer not in MAY_IMPORT_INSIDE
    }
    assert inside == INSIDE


def test_no_modules_import_one_another_in_a_circle() -> None:
    below: dict[str, set[str]] = {}
    for one in imports():
        if (one.importer, one.imported) not in UPWARD and one.importer not in MAY_IMPORT_INSIDE:
            below.setdefault(one.importer, set()).add(one.imported)
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " > ".join((*above, module))
        if module not in done:
            for other in sorted(below.get(module, ())):
                visit(other, (*above, module))
            done.add(module)

    for module in sorted(below):
        visit(module, ())

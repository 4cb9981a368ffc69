"""The rooms of pmarray stand on one another: a module imports only what lies below it.

`FLOORS` is the tower of ``docs/architecture.md``. `UPWARD` and `INSIDE` list what does not fit yet,
and may only shrink: a line that no longer holds fails the test, as a new one does.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

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

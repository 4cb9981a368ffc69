"""The rooms of both packages stand on one another: a module imports only what lies below it.

A `Tower` is one of those that ``docs/architecture.md`` draws.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).parent.parent
DOCUMENT = HERE / "docs" / "architecture.md"
MOST_LINES = 500
MOST_STATEMENTS = 8


class Import(NamedTuple):
    """One module of a package imported by another, both without the name of the package."""

    importer: str
    imported: str
    is_at_the_top: bool
    is_for_types: bool
    """Whether only a type checker follows it."""


@dataclass(frozen=True)
class Tower:
    """The rooms of a package."""

    package: str
    floors: tuple[tuple[str, ...], ...]
    """From the top to the ground. Rooms on one floor do not import one another."""
    face: frozenset[str]
    """Rooms at the top that use the package as its users do, or are its face."""
    may_import_inside: frozenset[str]
    """Modules that put an import off until it is needed, because it loads what is heavy."""
    only_named: frozenset[tuple[str, str]] = frozenset()
    """Classes that two floors give users of each other: the lower names the upper in a type."""

    @property
    def path(self) -> Path:
        return HERE / self.package

    def floor(self, module: str) -> int:
        """How high a module lies, from the ground."""
        (height,) = (i for i, some in enumerate(reversed(self.floors)) if room(module) in some)
        return height

    def imports(self) -> Iterator[Import]:
        """Yield every import of the package's own modules, wherever in the file it stands."""
        for path in sorted(self.path.rglob("*.py")):
            parts = path.relative_to(self.path).with_suffix("").parts
            name = ".".join(parts).removesuffix("__init__").rstrip(".") or self.package
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for_types = {
                node
                for block in tree.body
                if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
                for node in ast.walk(block)
            }
            # Their package loads them when they are asked for, and says here what it will load.
            named = for_types if attached(tree) else set()
            for node in ast.walk(tree):
                for imported in self._imported(node):
                    shown = node in tree.body or node in named
                    yield Import(name, imported, shown, node in for_types)

    def _imported(self, node: ast.AST) -> Iterator[str]:
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
            if name == self.package:
                yield name
            elif name.startswith(f"{self.package}."):
                yield name.removeprefix(f"{self.package}.")


def attached(tree: ast.Module) -> dict[str, list[str]]:
    """What a package gives to `pmarray._lazy.attach`: names by their modules."""
    return {
        module: names
        for call in _calls(tree, {"attach"})
        for module, names in ast.literal_eval(call.args[1]).items()
    }


def room(module: str) -> str:
    return module.split(".")[0]


def _is_module(name: str) -> bool:
    path = HERE.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


PMARRAY = Tower(
    "pmarray",
    (
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
        ("_sizes", "_available", "errors", "_lazy", "locks", "_extras", "_terminal"),
    ),
    face=frozenset({"__main__", "cli", "testing"}),
    # A backend, when its scheme is first used.
    may_import_inside=frozenset({"backends._registry"}),
    # `PMArray.group` is a `Group`, and `Group["x"]` a `PMArray`.
    only_named=frozenset({("array", "group")}),
)
SWAG = Tower(
    "swag",
    (
        ("swag", "__main__", "cli"),
        ("app", "integrations"),
        ("collect", "export", "mixture"),
        ("_ending", "_beginning"),
        ("_collecting",),
        ("_summing",),
        ("posterior",),
        ("_analysis", "_installing", "burn_in"),
        ("_predictor", "subspace", "divergences", "pruning"),
        ("_distribution",),
        ("_predicting", "density"),
        ("_networks", "covariance"),
        ("_sharding",),
        ("_target", "_factors", "_draws", "_store", "_screening"),
        ("_iterates", "_behind", "_earlier"),
        ("_location",),
        ("batchnorm", "sampling", "_records", "_statistics"),
        ("_buffers", "_parameters"),
        ("_state", "_selecting", "_moments", "_reductions", "_projections"),
        ("_crew", "_following"),
        (
            "_forward",
            "_names",
            "_trajectory",
            "_joining",
            "_worker",
            "_attached",
            "_schedule",
            "preemption",
            "_space",
            "_stats",
        ),
        ("_held", "_devices", "_copying"),
        ("datasets", "calibration", "gradients"),
        (
            "_arrays",
            "_boxes",
            "models",
            "metrics",
            "uncertainty",
            "convergence",
            "regression",
        ),
        ("_counts", "_probabilities"),
        ("errors",),
    ),
    face=frozenset({"__main__", "cli"}),
    # Both answer before PyTorch is loaded, which takes seconds.
    may_import_inside=frozenset({"swag", "cli"}),
)
TOWERS = pytest.mark.parametrize("tower", [PMARRAY, SWAG], ids=lambda tower: tower.package)


@TOWERS
def test_every_room_has_its_floor(tower: Tower) -> None:
    named = {name for rooms in tower.floors for name in rooms}
    there = {tower.package} | {
        path.stem
        for path in tower.path.iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and path.stem != "__init__"
    }
    assert there == named


@TOWERS
def test_the_tower_is_drawn_as_it_stands(tower: Tower) -> None:
    """A line of a drawing begins with the names of rooms."""
    drawing = DOCUMENT.read_text(encoding="utf-8").split(f"\n{tower.package}/  ")[1].split("```")[0]
    lines = [re.match(r"  (\w+/?(?: · \w+/?)*)(?:  |$)", line) for line in drawing.splitlines()]
    drawn = [name.strip("/") for line in lines if line for name in line[1].split(" · ")]
    heights = [tower.floor(name) for name in drawn]
    assert heights == sorted(heights, reverse=True)
    named = {name for rooms in tower.floors for name in rooms}
    assert sorted(drawn) == sorted(named - {tower.package, "__main__"})


@TOWERS
def test_no_import_runs_up(tower: Tower) -> None:
    upward = {
        (one.importer, one.imported)
        for one in tower.imports()
        if room(one.importer) != room(one.imported)
        and tower.floor(one.importer) <= tower.floor(one.imported)
        and room(one.importer) not in tower.face
        and not _is_only_named(tower, one)
    }
    assert upward == set()


def _is_only_named(tower: Tower, one: Import) -> bool:
    return one.is_for_types and (one.importer, one.imported) in tower.only_named


@TOWERS
def test_no_import_of_ours_is_hidden_in_a_function(tower: Tower) -> None:
    inside = {
        (one.importer, one.imported)
        for one in tower.imports()
        if not one.is_at_the_top
        and one.importer not in tower.may_import_inside
        and not _is_only_named(tower, one)
    }
    assert inside == set()


def test_type_checkers_are_told_what_is_loaded_later() -> None:
    packages = 0
    for path in sorted(PMARRAY.path.rglob("__init__.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        told = {
            node.module: [alias.name for alias in node.names]
            for block in tree.body
            if isinstance(block, ast.If)
            for node in block.body
            if isinstance(node, ast.ImportFrom)
        }
        assert told == attached(tree), path
        packages += bool(told)
    assert packages


@TOWERS
def test_no_modules_import_one_another_in_a_circle(tower: Tower) -> None:
    below: dict[str, set[str]] = {}
    for one in tower.imports():
        if not _is_only_named(tower, one) and one.importer not in tower.may_import_inside:
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


@TOWERS
def test_no_module_is_long(tower: Tower) -> None:
    long = {
        str(path.relative_to(HERE)): lines
        for path in sorted(tower.path.rglob("*.py"))
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert not long


@pytest.mark.parametrize("name", ["group", "array"])
def test_what_users_hold_delegates(name: str) -> None:
    """No method of `Group` or `PMArray` has more than a few statements, its docstring aside."""
    (found,) = (
        node
        for node in ast.parse((PMARRAY.path / f"{name}.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    )
    methods = [node for node in found.body if isinstance(node, ast.FunctionDef)]
    assert methods
    counts = {
        method.name: sum(isinstance(node, ast.stmt) for node in ast.walk(method))
        - 1  # the method itself
        - (ast.get_docstring(method) is not None)
        for method in methods
    }
    assert {name: count for name, count in counts.items() if count > MOST_STATEMENTS} == {}


MAY_ASK = {"_group.kinds", "backends._capabilities", "backends._registry"}
"""What a backend or a region can do is asked here, when a group is opened, and nowhere else."""
MEDIA = {"_storage", "backends"}
HANDLES = {"backend", "chunks", "region", "storage", "store", "items"}


def asked_classes(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the classes that something is asked for, and the modules they are of.

    `isinstance`, `issubclass` and the cases of a `match` ask. What a backend asks of classes of its
    own has no module of ours.
    """
    homes = {
        alias.asname or alias.name: f"{node.module}.{alias.name}".removeprefix("pmarray.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    asked = [call.args[1] for call in _calls(tree, {"isinstance", "issubclass"})]
    asked += [node.cls for node in ast.walk(tree) if isinstance(node, ast.MatchClass)]
    for expression in asked:
        for node in ast.walk(expression):
            if isinstance(node, ast.Name):  # the class, or the package that has it
                yield node.id, homes.get(node.id, "")


def _calls(tree: ast.Module, names: set[str]) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            yield node


def _probed(call: ast.Call) -> str | None:
    """What `hasattr`, or `getattr` with a default, looks at, by its last name."""
    if call.func.id == "getattr" and len(call.args) < 3:  # type: ignore[attr-defined]
        return None
    found = call.args[0]
    if isinstance(found, ast.Attribute):
        return found.attr.lstrip("_")
    return found.id.lstrip("_") if isinstance(found, ast.Name) else None


def test_what_a_backend_can_do_is_asked_once() -> None:
    asked = set()
    for path in sorted(PMARRAY.path.rglob("*.py")):
        module = ".".join(path.relative_to(PMARRAY.path).with_suffix("").parts)
        if module in MAY_ASK or room(module) == "testing":  # suites skip what is not claimed
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        asked |= {
            (module, name)
            for name, home in asked_classes(tree)
            if room(home) in MEDIA and room(home) != room(module)
        }
        asked |= {
            (module, probed)
            for call in _calls(tree, {"hasattr", "getattr"})
            if (probed := _probed(call)) in HANDLES
        }
    assert asked == set()

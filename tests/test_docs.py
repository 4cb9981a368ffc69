"""The examples of the README and of the documentation run, and print what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pmarray
import pmarray.backends
import pmarray.linalg
import pmarray.testing
import swag

REPOSITORY = Path(__file__).parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def examples(page: Path) -> doctest.DocTest:
    """Take the examples of all ``pycon`` blocks of a page, in one namespace, at their lines."""
    inside = False
    kept = []
    for line in page.read_text(encoding="utf-8").splitlines():
        if fence := re.match(r"\s*```(\w*)", line):
            inside = fence[1] == "pycon"
            line = ""
        kept.append(line if inside else "")
    name = str(page.relative_to(REPOSITORY))
    return doctest.DocTestParser().get_doctest("\n".join(kept), {}, name, str(page), 0)


PAGES_WITH_EXAMPLES = [page for page in PAGES if examples(page).examples]


@pytest.mark.parametrize(
    "page", PAGES_WITH_EXAMPLES, ids=lambda page: str(page.relative_to(REPOSITORY))
)
def test_the_examples_of_a_page_run(
    page: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scratch)
    report: list[str] = []
    failed, tried = doctest.DocTestRunner(optionflags=FLAGS).run(examples(page), out=report.append)
    assert tried
    assert not failed, "".join(report)


def test_every_page_is_in_the_navigation() -> None:
    navigation = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    docs = REPOSITORY / "docs"
    missing = [
        name
        for page in docs.rglob("*.md")
        if (name := str(page.relative_to(docs))) not in navigation
    ]
    assert not missing


def _object(path: str) -> Any:
    """The module or the object of a dotted path."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        parent, _, name = path.rpartition(".")
        return getattr(_object(parent), name)


def _documented() -> Iterator[Any]:
    """What the directives of the reference show: an object, or what a module names."""
    for page in (REPOSITORY / "docs" / "reference").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for directive in re.finditer(r"^::: (\S+)\n((?:[ ]{4}.*\n)*)", text, re.MULTILINE):
            found = _object(directive[1])
            yield found
            if inspect.ismodule(found):
                listed = re.search(r"members: \[([^\]]*)\]", directive[2])
                names = re.split(r",\s*", listed[1]) if listed else found.__all__
                yield from (getattr(found, name) for name in names)


@pytest.mark.parametrize(
    "package",
    [pmarray, pmarray.backends, pmarray.errors, pmarray.linalg, pmarray.testing, swag],
    ids=lambda package: package.__name__,
)
def test_every_public_name_is_in_the_reference(package: ModuleType) -> None:
    documented = list(_documented())
    missing = []
    for name in package.__all__:
        offered = getattr(package, name)
        shown = type(offered) if name == "config" else offered
        if not any(shown is one for one in documented):
            missing.append(name)
    assert not missing


def test_links_of_the_readme_lead_somewhere_from_a_package_index_too() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets
    assert all(target.startswith("https://") for target in targets)
    named = re.findall(r"`((?:docs|swag)/[\w./-]+|[A-Z]+\.md)`", text)
    assert named
    assert all((REPOSITORY / name).exists() for name in named)

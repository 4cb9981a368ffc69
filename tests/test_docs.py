"""The examples of the README and of the documentation run, and print what they say."""

from __future__ import annotations

import doctest
import re
import warnings
from pathlib import Path

import pytest

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
    with warnings.catch_warnings():
        if page.name == "training-loops.md":
            warnings.simplefilter("ignore")  # of the libraries, about one another
        runner = doctest.DocTestRunner(optionflags=FLAGS)
        failed, tried = runner.run(examples(page), out=report.append)
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

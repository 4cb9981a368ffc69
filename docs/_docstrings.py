"""Turn the reStructuredText that numpydoc allows into the Markdown that the site is made of.

Three things: an example outside an "Examples" section becomes a block of code, a ``::`` before
an indented block goes, and a role such as :class: leaves what it marks.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|exc|attr|obj):`~?([^`]+)`")
_LITERAL = re.compile(r"^[ \t]*::[ \t]*$", re.MULTILINE)
_EXAMPLE = re.compile(r"^>>> (?:.+\n?)+", re.MULTILINE)
_SECTION = re.compile(r"^Examples\n-+$", re.MULTILINE)


class Markdown(griffe.Extension):
    """Rewrites every docstring as it is loaded."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """Rewrite one docstring.

    Griffe makes blocks of the examples in an "Examples" section by itself.
    """
    text = _LITERAL.sub("", _ROLE.sub(r"`\1`", text))
    section = _SECTION.search(text)
    end = section.start() if section else len(text)
    head = _EXAMPLE.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", text[:end])
    return head + text[end:]

"""The subscripts of `numpy.einsum`, read into labels. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Subscripts", "read"]


@dataclass(frozen=True, slots=True)
class Subscripts:
    """One label an axis; axes of the same label are multiplied item by item."""

    inputs: tuple[tuple[int, ...], ...]
    """Labels of each operand."""
    output: tuple[int, ...]
    """Labels that are kept, in this order; all others are summed over."""

    @property
    def is_plain(self) -> bool:
        """Whether no label stands twice in one term: there is no diagonal to take."""
        return all(len(set(term)) == len(term) for term in (*self.inputs, self.output))


def read(args: Sequence[Any]) -> tuple[Subscripts, tuple[Any, ...]]:
    """Read the positional arguments of `numpy.einsum`, in either of its two forms.

    Returns
    -------
    tuple
        The subscripts, with small integers as labels, and the operands.

    Raises
    ------
    ValueError
        They do not fit the operands, or are no subscripts.

    Examples
    --------
    >>> import numpy as np
    >>> read(("ij,jk", np.ones((2, 3)), np.ones((3, 4))))[0]
    Subscripts(inputs=((0, 1), (1, 2)), output=(0, 2))
    >>> read((np.ones((2, 3)), [Ellipsis, 7], [7, Ellipsis]))[0]
    Subscripts(inputs=((0, 1),), output=(1, 0))
    """
    if not args:
        raise ValueError("einsum needs subscripts and at least one operand")
    if isinstance(args[0], str):
        left, arrow, right = args[0].replace(" ", "").partition("->")
        terms = [_letters(term) for term in left.split(",")]
        output = _letters(right) if arrow else None
        operands = tuple(args[1:])
    else:
        terms = [list(term) for term in args[1::2]]
        operands = tuple(args[: 2 * len(terms) : 2])
        output = list(args[-1]) if len(args) % 2 else None
    if len(terms) != len(operands):
        raise ValueError(f"{len(terms)} terms of subscripts and {len(operands)} operands")
    hidden = 0  # axes behind the longest ellipsis
    for term, operand in zip(terms, operands, strict=True):
        extra = len(operand.shape) - len(term) + (Ellipsis in term)
        if term.count(Ellipsis) > 1 or extra < 0 or (extra and Ellipsis not in term):
            raise ValueError(
                f"subscripts with {len(term)} labels do not fit an operand of "
                f"{len(operand.shape)} axes"
            )
        if Ellipsis in term:
            hidden = max(hidden, extra)
    # The axes of an ellipsis are counted from the last, as NumPy broadcasts.
    behind = [("...", -i) for i in range(hidden, 0, -1)]

    def expanded(term: list[Any], extra: int) -> list[Any]:
        if Ellipsis not in term:
            return term
        at = term.index(Ellipsis)
        return [*term[:at], *behind[hidden - extra :], *term[at + 1 :]]

    inputs = [
        expanded(term, len(operand.shape) - len(term) + 1)
        for term, operand in zip(terms, operands, strict=True)
    ]
    count = Counter(label for term in inputs for label in term)
    if output is None:
        once = [label for label in count if count[label] == 1 and not isinstance(label, tuple)]
        result = [*behind, *sorted(once)]
    else:
        if hidden and Ellipsis not in output:
            raise ValueError("the output has no ellipsis, and an operand has one")
        result = expanded(output, hidden)
    unknown = [label for label in result if label not in count]
    if unknown:
        raise ValueError(f"the output has label {unknown[0]!r}, and no operand has it")
    number = {label: i for i, label in enumerate(count)}
    return (
        Subscripts(
            tuple(tuple(number[label] for label in term) for term in inputs),
            tuple(number[label] for label in result),
        ),
        operands,
    )


def _letters(term: str) -> list[Any]:
    head, dots, tail = term.partition("...")
    labels: list[Any] = [*head, *([Ellipsis] if dots else []), *tail]
    for label in labels:
        if label is not Ellipsis and not (label.isascii() and label.isalpha()):
            raise ValueError(f"{label!r} is no subscript: use letters")
    return labels

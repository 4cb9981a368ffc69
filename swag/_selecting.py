"""Which of a model's parameters a posterior is of, where not all that are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from swag.errors import ModelError

__all__ = ["Chosen", "Parameters", "choose", "every"]

Parameters = str | Iterable[str] | Callable[[str, nn.Parameter], bool] | nn.Module
"""Names by glob, a predicate of name and parameter, or a part of the model."""

Chosen = Callable[[str, nn.Parameter], bool]
"""Whether a parameter is one of the posterior's, if it is trained."""


def every(name: str, parameter: nn.Parameter) -> bool:
    """All of them."""
    return True


def choose(parameters: Parameters | None, named: Sequence[tuple[str, nn.Parameter]]) -> Chosen:
    """Make a predicate of what a user gives as ``parameters=``.

    Parameters
    ----------
    parameters
        As `swag.SWAG` takes it; None for all.
    named
        The model's parameters under all their names.

    Raises
    ------
    ModelError
        A pattern is of no parameter, or the part is of another model.
    TypeError
        It is none of these.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    >>> named = list(model.named_parameters())
    >>> chosen = choose("1.*", named)
    >>> [name for name, parameter in named if chosen(name, parameter)]
    ['1.weight', '1.bias']
    >>> choose("head.*", named)
    Traceback (most recent call last):
        ...
    swag.errors.ModelError: parameters='head.*' names no parameter; the model has 0.weight, 0.bias,
    1.weight, 1.bias
    """
    if parameters is None:
        return every
    if isinstance(parameters, nn.Module):
        # By name, so that another copy of the model will do at the next collection.
        inside = {id(parameter) for parameter in parameters.parameters()}
        names = {name for name, parameter in named if id(parameter) in inside}
        if not names:
            raise ModelError(
                f"parameters= is a {type(parameters).__name__} whose parameters are not the model's"
            )
        return lambda name, parameter: name in names
    if callable(parameters):
        return parameters
    patterns = (parameters,) if isinstance(parameters, str) else tuple(parameters)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                f"parameters= takes names, a predicate or a module, not {type(pattern).__name__}"
            )
        if not any(fnmatchcase(name, pattern) for name, _ in named):
            shown = ", ".join(name for name, _ in named[:5])
            more = f" and {len(named) - 5} more" if len(named) > 5 else ""
            raise ModelError(
                f"parameters={pattern!r} names no parameter; the model has {shown}{more}"
            )
    return lambda name, parameter: any(fnmatchcase(name, pattern) for pattern in patterns)

"""A model's own names for its parameters, modules and buffers, whatever wraps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

__all__ = ["by_any_name", "names_of", "own_names"]

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
# Nobody calls a module of his own like this: torch.compile, FSDP and activation checkpointing do.
_INSERTED = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def own_names(model: nn.Module) -> Callable[[str], str]:
    """Make the function that takes off a name of `model` what wrappers have put before or into it.

    Examples
    --------
    >>> wrapped = nn.DataParallel(nn.Sequential(nn.Linear(1, 1)))
    >>> [own_names(wrapped)(name) for name, _ in wrapped.named_parameters()]
    ['0.weight', '0.bias']
    """
    # By type: a model may well call a part of its own "module".
    prefixes = [
        f"{name}.module." if name else "module."
        for name, module in model.named_modules()
        if isinstance(module, _WRAPPERS)
    ]
    prefixes.reverse()  # inner ones first, so that the outer ones fit still

    def own(name: str) -> str:
        for prefix in prefixes:
            if name.startswith(prefix):
                name = prefix.removesuffix("module.") + name.removeprefix(prefix)
        for inserted in _INSERTED:
            name = name.replace(inserted, "")
        return name

    return own


def by_any_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a model; one that is shared stands under each of its names.

    Which of these comes first depends on the order of registration.
    """
    own = own_names(model)
    return {own(name): p for name, p in model.named_parameters(remove_duplicate=False)}


def names_of(there: Mapping[str, nn.Parameter]) -> dict[int, list[str]]:
    """All names of each of these parameters, by its `id`."""
    names: dict[int, list[str]] = {}
    for name, parameter in there.items():
        names.setdefault(id(parameter), []).append(name)
    return names

"""How a batch goes through a model: what of it the model takes, where, and what comes out."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "Forward",
    "copied",
    "device_of",
    "is_wrapped",
    "outputs_of",
    "rows_of",
    "size_of",
    "tensor_of",
]

Forward = Callable[[nn.Module, Any], Any]
"""Takes a model and a batch on its device, gives the model's outputs."""

_OUTPUTS = ("logits", "out", "prediction_logits")  # of transformers, and of torchvision
_WRAPPERS = ("module", "_orig_mod")  # of data parallelism, and of `torch.compile`


def device_of(model: nn.Module) -> torch.device:
    """Where a model is: the device of its first parameter or buffer."""
    return next(chain(model.parameters(), model.buffers())).device


def outputs_of(model: nn.Module, batch: Any, device: torch.device, forward: Forward | None) -> Any:
    """What a model makes of a batch.

    Raises
    ------
    ValueError
        Which items of the batch the model takes cannot be told.
    TypeError
        The batch is nothing that a model takes as it is.
    """
    batch = copied(batch, device)
    if forward is not None:
        return forward(model, batch)
    if isinstance(batch, Mapping):
        return model(**_named(model, batch))
    return model(*_inputs(model, batch))


def tensor_of(outputs: Any) -> Tensor:
    """The tensor of predictions among a model's outputs, its first axis the batch.

    Of a mapping or an object, such as the ModelOutput of transformers, its ``logits``; or its
    ``out``, as in torchvision's models of segmentation. Of a tuple, the first tensor that is not a
    single number, which would be a loss.

    Raises
    ------
    TypeError
        There is none.

    Examples
    --------
    >>> tensor_of({"loss": torch.tensor(0.5), "logits": torch.ones(2, 3)}).shape
    torch.Size([2, 3])
    """
    if isinstance(outputs, Tensor):
        return outputs
    for name in _OUTPUTS:
        found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if isinstance(found, Tensor):
            return found
    if isinstance(outputs, tuple | list):
        for item in outputs:
            if isinstance(item, Tensor) and item.ndim:
                return item
    raise TypeError(
        f"the model gives a {type(outputs).__name__}, and which tensor of it is meant cannot be "
        "told: give forward=, for example forward=lambda model, batch: model(**batch).scores"
    )


def _named(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The items of a batch that a model has arguments for; the rest, labels perhaps, is left."""
    parameters = _signature(model).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(batch)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    takes = [p for p in parameters if p.kind in kinds]
    lacking = [p.name for p in takes if p.default is p.empty and p.name not in batch]
    if lacking or not any(p.name in batch for p in takes):
        raise ValueError(
            f"a batch has {', '.join(map(str, batch))}, and the model takes "
            f"{', '.join(p.name for p in takes)}: say which is which, as in "
            "forward=lambda model, batch: model(batch['image'])"
        )
    return {p.name: batch[p.name] for p in takes if p.name in batch}


def _inputs(model: nn.Module, batch: Any) -> tuple[Any, ...]:
    """The items of a batch that a model takes: as many as it needs, if that is how many it has.

    A model of one argument gets the first item: the rest are labels. One that needs two gets two.
    Where the second may be left out, it may be a mask or labels, and only the caller knows.
    """
    if isinstance(batch, Tensor):
        return (batch,)
    if not isinstance(batch, tuple | list) or not batch or not isinstance(batch[0], Tensor):
        kind = type(batch).__name__
        raise TypeError(
            "a batch is a tensor, a mapping, or a tuple or list that begins with a tensor, and "
            f"this is a {kind}: give forward=lambda model, batch: ... to say how the model takes it"
        )
    items = tuple(batch)
    if len(items) == 1:
        return items
    needed, most = _arguments(model)
    if most is not None and most <= 1:
        return items[:1]
    if 1 < needed <= len(items) and (needed == most or needed == len(items)):
        return items[:needed]
    raise ValueError(
        f"a batch has {len(items)} items, and the model takes from {needed} to "
        f"{'any number' if most is None else most} of them: say which, as in "
        "forward=lambda model, batch: model(batch[0], batch[1])"
    )


def _arguments(model: nn.Module) -> tuple[int, int | None]:
    """How many positional arguments a model needs, and takes at most; None for any number."""
    needed, most = 0, 0
    for parameter in _signature(model).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            return needed, None
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            most += 1
            needed += parameter.default is parameter.empty
    return needed, most


def _signature(model: nn.Module) -> inspect.Signature:
    """That of the model inside its wrappers."""
    inner = _wrapped(model)
    return inspect.signature(model.forward) if inner is None else _signature(inner)


def is_wrapped(model: nn.Module) -> bool:
    """Whether a model is another's wrapper, as of data parallelism or of `torch.compile`."""
    return _wrapped(model) is not None


def _wrapped(model: nn.Module) -> nn.Module | None:
    for name in _WRAPPERS:
        inner = model._modules.get(name)
        if inner is not None and len(model._modules) == 1:
            return inner
    return None


def copied(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on a device, in memory that the model may change.

    One that normalises its input in place would change what the next network is given.
    """
    if isinstance(batch, Tensor):
        own = batch.detach().to(device, copy=True)
        return own.requires_grad_() if batch.requires_grad else own
    if isinstance(batch, dict):
        return {key: copied(item, device) for key, item in batch.items()}
    if isinstance(batch, tuple | list):
        items = [copied(item, device) for item in batch]
        if hasattr(batch, "_fields"):
            return type(batch)(*items)
        return items if isinstance(batch, list) else tuple(items)
    if (clone := getattr(batch, "clone", None)) is not None:  # a graph, and what else knows how
        return clone().to(device)
    if isinstance(batch, MutableMapping):  # BatchEncoding
        there = copy.copy(batch)
        for key, item in batch.items():
            there[key] = copied(item, device)
        return there
    if (to := getattr(batch, "to", None)) is not None:
        return to(device)
    if isinstance(batch, Mapping):
        return {key: copied(item, device) for key, item in batch.items()}
    return batch


def rows_of(batch: Any) -> int:
    """The number of inputs in a batch: the length of its first tensor."""
    first = next(_tensors(batch), None)
    if first is None or not first.ndim:
        raise TypeError(f"a {type(batch).__name__} without a tensor of inputs is no batch")
    return len(first)


def size_of(batch: Any) -> int:
    """Bytes of the tensors in a batch."""
    return sum(tensor.nbytes for tensor in _tensors(batch))


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, tuple | list):
        for item in batch:
            yield from _tensors(item)
    elif hasattr(batch, "values"):
        for item in batch.values():
            yield from _tensors(item)

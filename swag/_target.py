"""A model that takes weights which are not its own, and gets its own back."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from swag._buffers import Buffers, converge_spectral_norms, has_spectral_norms
from swag._forward import Forward, is_wrapped
from swag._held import is_sharded, local_of, reshard
from swag._parameters import ParameterTable
from swag.batchnorm import has_running_statistics, recompute, refuse_no_loader
from swag.errors import ModelError

__all__ = ["COLLECTING", "Statistics", "Target", "refuse_drawn", "refuse_no_model"]


class Copying(Protocol):
    """Whoever copies the weights of models while they train."""

    def _wait_for(self, weights: Sequence[Tensor]) -> None:
        """Return when these weights, of which the memory counts, may change."""


COLLECTING: weakref.WeakValueDictionary[int, Copying] = weakref.WeakValueDictionary()
"""All there are, by identity: weights that are put into a model may be those of an iterate."""

Statistics = list[dict[str, Tensor]]
"""Copies of buffers by name, for each module of a model."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes: as integers, NaN is what it is, and a zero has its sign."""

# The parameters that hold weights which are not their own, by identity; each is held meanwhile.
_DRAWN: dict[object, frozenset[int]] = {}


def refuse_no_model(model: object) -> None:
    """Raise if something is no model, such as its parameters, its class or its optimizer.

    Raises
    ------
    TypeError
        It is none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"a model is a torch.nn.Module, and this is {type(model).__name__}: give the model "
            "itself, not its class, its parameters or its state_dict"
        )


def refuse_drawn(model: nn.Module) -> None:
    """Raise if a model has drawn weights, which are no iterate of its training.

    Raises
    ------
    ModelError
        It has.
    TypeError
        It is no model.
    """
    refuse_no_model(model)
    if _DRAWN and any(
        id(parameter) in drawn for drawn in _DRAWN.values() for parameter in model.parameters()
    ):
        raise ModelError(
            "the model has drawn weights, inside a sampled() block or a predict(): leave it first"
        )


class Target:
    """A model, and what has to be done for it to compute with other weights.

    Parameters
    ----------
    model
        Takes the weights.
    table
        Of these weights.
    buffers
        That go with them.
    loader
        Training inputs, for the statistics of normalisation layers; None if there are none.
    forward
        How a batch goes through the model, if not as `swag._forward` has it.

    Raises
    ------
    ModelError
        The model has other parameters or buffers, or would compute with others than these.
    TypeError
        The loader is a tensor.
    ValueError
        It has batch normalisation, and no training inputs are given.
    """

    def __init__(
        self,
        model: nn.Module,
        table: ParameterTable,
        buffers: Buffers,
        loader: Iterable[Any] | None,
        forward: Forward | None,
    ) -> None:
        refuse_no_model(model)
        refuse_no_loader(loader)
        self.model = model
        self._table = table
        reshard(model)
        self.parameters = table.find(model)
        self._own = [_Own.of(module) for module in model.modules()]
        self._buffers = buffers.find(model)
        self._frozen = buffers.frozen
        self._loader = loader
        self._forward = forward
        self._wait_for_copies()
        _refuse_without_effect(model)
        _refuse_idle_adapters(model, self.parameters)
        if loader is None and has_running_statistics(model, self._frozen):
            raise ValueError(
                "the model has batch normalisation, whose statistics do not fit other weights: "
                "give loader=, the training inputs to compute them from"
            )

    def _wait_for_copies(self) -> None:
        weights = [local_of(parameter) for parameter in self.parameters]
        for reference in COLLECTING.valuerefs():
            if (copying := reference()) is not None:
                copying._wait_for(weights)

    @property
    def is_pure(self) -> bool:
        """Whether weights are all that a draw changes, in a model that stands by itself."""
        return (
            (self._loader is None or not has_running_statistics(self.model, self._frozen))
            and not has_spectral_norms(self.model)
            and not is_wrapped(self.model)
            and not is_sharded(self.parameters)
        )

    def stacked(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Several vectors, for each of `parameters`, whose axes follow one of the vectors."""
        views = self._table.by_name(torch.stack(list(vectors))).values()
        pairs = zip(views, self.parameters, strict=True)
        return [view.to(p.device, p.dtype) for view, p in pairs]

    def put(self, vector: Tensor, statistics: Statistics | None = None) -> None:
        """Put weights, shape (n,), into the model, with the buffers that go with them.

        Parameters
        ----------
        vector
            In host memory.
        statistics
            What the method of this name gave after the same weights, to save computing it again.
        """
        reshard(self.model)
        for own in self._own:
            own.put_back()
        if statistics is not None:
            for own, held in zip(self._own, statistics, strict=True):
                own.take(held)
        else:
            for buffer, value in self._buffers:
                _write(buffer, value)
        # After the buffers, of which one may share its memory with a weight.
        self._table.scatter(vector, self.parameters)
        _forget_old_weights()
        if statistics is None:
            converge_spectral_norms(self.model)
            if self._loader is not None:
                recompute(self._loader, self.model, self._frozen, self._forward)

    def statistics(self) -> Statistics:
        """Copies of all buffers as they are now."""
        return [own.copied() for own in self._own]

    @contextmanager
    def borrowed(self) -> Iterator[nn.Module]:
        """Put parameters, buffers and modes of the model back at the end, bit for bit."""
        reshard(self.model)
        buffers = [(b.detach(), b.detach().clone()) for b in self.model.buffers()]
        weights = [(p.detach(), p.detach().clone()) for p in self.parameters]
        modes = {module: module.training for module in self.model.modules()}
        mark = object()

        def restore() -> None:
            for module, training in modes.items():
                module.training = training
            reshard(self.model)
            for own in self._own:
                own.put_back()
            for buffer, value in buffers:
                _write(buffer, value)
            with torch.no_grad():
                for weight, value in weights:  # last, as in `put`
                    weight.copy_(value)
            _forget_old_weights()

        try:
            _DRAWN[mark] = frozenset(map(id, self.parameters))
            yield self.model
        finally:
            try:
                restore()
            except BaseException:
                restore()  # an interrupt came in between
                raise
            finally:
                _DRAWN.pop(mark, None)


@dataclass(frozen=True, slots=True)
class _Own:
    """The buffers of a module, which a forward pass may assign, and not only write into.

    What it keeps of them beside, such as the length of a table that grows with the inputs, goes
    back with them.
    """

    module: nn.Module
    buffers: dict[str, Tensor | None]
    notes: dict[str, object]

    @classmethod
    def of(cls, module: nn.Module) -> Self:
        """Those that it has now."""
        return cls(module, dict(module._buffers), _notes_of(module))

    def put_back(self) -> None:
        """Let the module have these again; their contents are as they are."""
        now = self.module._buffers
        if now.keys() == self.buffers.keys() and all(now[n] is b for n, b in self.buffers.items()):
            return
        for name in set(now.keys()) - self.buffers.keys():
            del now[name]
        for name, buffer in self.buffers.items():  # a scripted module has no dict, and no update
            now[name] = buffer
        for name in _notes_of(self.module).keys() - self.notes.keys():
            del self.module.__dict__[name]
        self.module.__dict__.update(self.notes)

    def copied(self) -> dict[str, Tensor]:
        """Copies of what the module has now."""
        held = self.module._buffers
        return {name: b.detach().clone() for name, b in held.items() if b is not None}

    def take(self, copies: dict[str, Tensor]) -> None:
        """Write what `copied` gave into the module's buffers, or assign it as it was."""
        for name, value in copies.items():
            buffer = self.module._buffers.get(name)
            if buffer is not None and buffer.shape == value.shape:
                _write(buffer.detach(), value)
            else:
                self.module._buffers[name] = value.clone()


def _notes_of(module: nn.Module) -> dict[str, object]:
    """Its attributes that are plain values; its mode is no business of its buffers."""
    return {
        name: value
        for name, value in module.__dict__.items()
        if name != "training" and isinstance(value, bool | int | float | str | None)
    }


def _forget_old_weights() -> None:
    """Have autocast look again: until its block ends, it keeps what it has made of weights."""
    torch.clear_autocast_cache()


@torch.no_grad()
def _write(target: Tensor, value: Tensor) -> None:
    """Give a buffer what another tensor holds; one that holds it is left alone."""
    target, value = local_of(target), local_of(value)
    if target.layout == value.layout == torch.strided:
        # It may be a constant in memory that cannot be written to.
        if target.is_cpu and value.is_cpu and _same_bits(target, value):
            return
        # Of one that is expanded, what lies in the same memory is written once.
        for axis, stride in enumerate(target.stride()):
            if not stride and target.shape[axis] > 1:
                target, value = target.narrow(axis, 0, 1), value.narrow(axis, 0, 1)
    with torch.inference_mode() if target.is_inference() else nullcontext():
        target.copy_(value)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors in host memory have the same bits, where that can be told."""
    bits = _BITS.get(one.dtype.itemsize)
    if bits is None or one.is_quantized or one.dtype != other.dtype:
        return False
    return torch.equal(one.view(bits), other.view(bits))


def _refuse_without_effect(model: nn.Module) -> None:
    """Raise if the model computes with copies of its parameters, made before."""
    for name, module in model.named_modules():
        # As peft has it while adapters are merged, and loralib, which merges them by eval().
        if getattr(module, "merged", False) is True or (
            getattr(module, "merge_weights", False) is True and hasattr(module, "lora_A")
        ):
            raise ModelError(
                f"the adapter {name or type(module).__name__} is merged into its layer, or will be "
                "by eval(), so that other weights of it have no effect: unmerge it, and make it "
                "without merging"
            )
        if parametrize._cache_enabled and parametrize.is_parametrized(module):
            raise ModelError(
                f"{name or 'the model'} is parametrised, and inside parametrize.cached() its "
                "weights are those of before: leave that block first"
            )


def _refuse_idle_adapters(model: nn.Module, parameters: Sequence[Tensor]) -> None:
    """Raise if the parameters are those of adapters of peft that the model does not use now."""
    chosen = set(map(id, parameters))
    idle: list[str] = []
    is_used = False
    for name, module in model.named_modules():
        active: Any = getattr(module, "active_adapters", None)
        disabled: Any = getattr(module, "disable_adapters", None)
        if not isinstance(active, list) or not isinstance(disabled, bool):
            continue  # a model of transformers has methods of these names
        if not (adapters := _adapters_of(module, chosen)):
            continue
        if disabled:
            raise ModelError(
                f"the adapters of {name or 'the model'} are disabled, so that other weights of "
                "them have no effect: leave disable_adapter() first"
            )
        if adapters.isdisjoint(active):
            idle.append(f"{', '.join(sorted(adapters))} of {name or 'the model'}")
        else:
            is_used = True
    if idle and not is_used:  # where one is used, the others are for another prediction
        raise ModelError(
            f"the adapter {idle[0]} is not active, and neither is another one that was collected, "
            "so that other weights of it have no effect: call set_adapter first"
        )


def _adapters_of(layer: nn.Module, chosen: set[int]) -> set[str]:
    """The adapters of a layer that have one of the parameters."""
    return {
        name
        for held in layer.children()
        if isinstance(held, nn.ModuleDict | nn.ParameterDict)
        for name, adapter in held.items()
        if any(
            id(parameter) in chosen
            for parameter in (adapter.parameters() if isinstance(adapter, nn.Module) else [adapter])
        )
    }

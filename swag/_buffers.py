"""What a model computes with beside its weights: buffers, and which layers keep theirs.

Running statistics, singular vectors and the like are no parameters, and a draw of the weights says
nothing about them. Those of the last iterate are stored with it, so that another process predicts
what this one does. Normalisation layers that were in evaluation mode while the rest of the model
trained are frozen: theirs are not recomputed for other weights.

As bytes: the length of a description in eight bytes, little-endian, the description as JSON
(`swag._state`), then the bytes of the tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from swag._names import own_names
from swag._state import STORED_DTYPES, pack, unpack
from swag.errors import ModelError, StoreError

__all__ = [
    "Buffers",
    "converge_spectral_norms",
    "frozen_in",
    "has_spectral_norms",
    "normalisations",
    "refuse_buffers",
]

_POWER_ITERATIONS = 100


@dataclass(frozen=True)
class Buffers:
    """The persistent buffers of a model at one instant, and its frozen layers.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
    >>> buffers = Buffers.of(model)
    >>> sorted(buffers.tensors), buffers.frozen
    (['1.num_batches_tracked', '1.running_mean', '1.running_var'], ('1',))
    >>> Buffers.from_bytes(buffers.to_bytes()).frozen
    ('1',)
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """By name, in host memory."""
    frozen: tuple[str, ...] = ()
    """Names of normalisation layers whose statistics stay as they are."""

    @classmethod
    def of(cls, model: nn.Module, copy: Callable[[Tensor], Tensor] | None = None) -> Self:
        """Copy those of a model.

        Parameters
        ----------
        model
            Has them.
        copy
            Returns host memory that has what a tensor holds, or will have it.

        Raises
        ------
        ModelError
            One is sparse, or of a dtype that cannot be stored.
        """
        copy = copy or _copied
        try:
            tensors = {name: copy(buffer.detach()) for name, buffer in _persistent(model)}
        except RuntimeError:
            refuse_buffers(model)  # of one that was registered since collection began
            raise
        return cls(tensors, frozen_in(model))

    def __bool__(self) -> bool:
        return bool(self.tensors or self.frozen)

    def to_bytes(self) -> NDArray[np.uint8]:
        """As the store holds them."""
        try:
            description, data = pack({"tensors": dict(self.tensors), "frozen": list(self.frozen)})
        except TypeError as error:
            raise ModelError(f"a buffer of the model cannot be stored: {error}") from error
        text = json.dumps(description).encode()
        head = len(text).to_bytes(8, "little") + text
        return np.concatenate([np.frombuffer(head, np.uint8), data])

    @classmethod
    def from_bytes(cls, stored: NDArray[np.uint8]) -> Self:
        """Those that `to_bytes` gave.

        Raises
        ------
        StoreError
            They are damaged.
        """
        if stored.dtype != np.uint8 or stored.ndim != 1:
            raise StoreError(f"the buffers of the posterior are {stored.dtype}, {stored.shape}")
        end = 8 + int.from_bytes(stored[:8].tobytes(), "little")
        try:
            state: Any = unpack(json.loads(stored[8:end].tobytes()), stored[end:])
            tensors, frozen = dict(state["tensors"]), tuple(map(str, state["frozen"]))
            if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
                raise TypeError("one is no tensor")
            return cls(tensors, frozen)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(f"the buffers of the posterior are damaged: {error}") from error

    def find(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Pairs of a buffer of the model and what it held at the iterate.

        Raises
        ------
        ModelError
            The model lacks one, or has it in another shape.
        """
        own = own_names(model)
        there = {own(name): b for name, b in model.named_buffers(remove_duplicate=False)}
        found = []
        for name, value in self.tensors.items():
            buffer = there.get(name)
            if buffer is None or buffer.shape != value.shape:
                what = "is missing" if buffer is None else f"has shape {tuple(buffer.shape)}"
                raise ModelError(
                    f"the model is not the one collected: the buffer {name} {what}, not "
                    f"{tuple(value.shape)}"
                )
            found.append((buffer.detach(), value))
        return found


def frozen_in(model: nn.Module) -> tuple[str, ...]:
    """The names of normalisation layers in evaluation mode, in a model that trains."""
    # In a model that is in evaluation mode as a whole, nothing says which layers are frozen.
    trains = any(module.training for module in model.modules())
    return tuple(name for name, layer in normalisations(model) if trains and not layer.training)


def refuse_buffers(model: nn.Module) -> None:
    """Raise if a model has a buffer that cannot be stored.

    Raises
    ------
    ModelError
        It has; the message names it.
    """
    for name, buffer in _persistent(model):
        what = None
        if buffer.layout != torch.strided:
            what = f"has the layout {buffer.layout}"
        elif buffer.dtype not in STORED_DTYPES:
            what = f"is of {buffer.dtype}"
        if what is not None:
            raise ModelError(
                f"the buffer {name} {what}, which cannot be stored: register it with "
                "persistent=False if it stays as it is, or keep it as a dense tensor"
            )


def normalisations(model: nn.Module) -> Iterator[tuple[str, _NormBase]]:
    """The layers of a model whose output depends on statistics of its training data, by name."""
    own = own_names(model)
    for name, module in model.named_modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            yield own(name), module


def has_spectral_norms(model: nn.Module) -> bool:
    """Whether buffers follow the weights of a model, as `converge_spectral_norms` has them do."""
    return any(
        isinstance(part, _SpectralNorm)
        or any(isinstance(hook, SpectralNorm) for hook in part._forward_pre_hooks.values())
        for part in model.modules()
    )


@torch.no_grad()
def converge_spectral_norms(model: nn.Module) -> None:
    """Let the singular vectors of spectral normalisation follow the weights; buffers change.

    In training they do by one power iteration for each step. Weights that no step has led to need
    as many as it takes.
    """
    for module in model.modules():
        if parametrize.is_parametrized(module):
            lists: Any = module.parametrizations
            for parametrizations in lists.values():
                for part in parametrizations:
                    if isinstance(part, _SpectralNorm) and hasattr(part, "_u"):
                        _converge(part._u, part, parametrizations)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                vector: Any = getattr(module, f"{hook.name}_u")
                _converge(vector, module, _Old(hook, module))


def _converge(vector: Tensor, switched: nn.Module, compute: Any) -> None:
    training = switched.training
    switched.training = True  # what makes it iterate
    try:
        for _ in range(_POWER_ITERATIONS):
            before = vector.clone()
            compute()
            if torch.allclose(vector, before, rtol=0, atol=4 * torch.finfo(vector.dtype).eps):
                break
    finally:
        switched.training = training


@dataclass(frozen=True)
class _Old:
    """`torch.nn.utils.spectral_norm` of a module, as something that can be called."""

    hook: SpectralNorm
    module: nn.Module

    def __call__(self) -> None:
        self.hook.compute_weight(self.module, do_power_iteration=True)


def _copied(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor)


def _persistent(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that a state dict has."""
    own = own_names(model)
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield own(f"{prefix}.{name}" if prefix else name), buffer

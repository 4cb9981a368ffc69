"""The networks of some draws, run on batches: several at a time where the model allows it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from swag._forward import Forward, copied, device_of, outputs_of, size_of
from swag._target import Statistics, Target

__all__ = ["Networks", "Source"]

Take = Callable[[Any], tuple[Tensor, ...]]
Found = tuple[int, int, Tensor, tuple[Tensor, ...]]

_ACTIVATIONS = 16
"""What a network holds at a time while it runs, as a multiple of its inputs: a guess."""
_LEAST_TOLERANCE = 1e-4


class Source(Protocol):
    """Weights for a model, one vector after another."""

    def __len__(self) -> int:
        """How many there are."""

    def once(self) -> Iterator[Tensor]:
        """The vectors, shape (n,) each."""

    def kept(self) -> Iterable[Tensor]:
        """The same, to be gone through again."""


class Networks:
    """One model with the weights of each draw in turn.

    Several draws go through it at a time by `torch.func.vmap`, which saves most of what a small
    network costs. It is not tried where a draw changes buffers (statistics, singular vectors), nor
    inside a wrapper; and where it raises, or gives something else than a network by itself does,
    they go through one after another: a model may branch on its values, or keep copies of weights.

    Parameters
    ----------
    target
        The model that takes them.
    draws
        The weights.
    take
        The tensors of the model's outputs that are needed.
    forward
        As for `outputs_of`.
    memory_bytes
        For the networks that run at once.
    draws_at_once
        How many these are; as many as find room, by a guess, if None. With 1 nothing is tried.
    again
        Whether `through` is called more than once.
    """

    def __init__(
        self,
        target: Target,
        draws: Source,
        take: Take,
        forward: Forward | None,
        memory_bytes: int,
        draws_at_once: int | None,
        *,
        again: bool,
    ) -> None:
        self._target = target
        self._model = target.model
        self._count = len(draws)
        self._vectors: Iterable[Tensor] = draws.kept() if again else draws.once()
        self._take = take
        self._forward = forward
        self._memory_bytes = memory_bytes
        self._asked = draws_at_once
        self._may_be_batched = target.is_pure and draws_at_once != 1
        self._is_checked = False
        self._keeps_statistics = again and not target.is_pure
        self._statistics: list[Statistics | None] = [None] * self._count

    def __len__(self) -> int:
        return self._count

    def through(self, block: Sequence[Any]) -> Iterator[Found]:
        """Yield network, batch, weights and outputs, for every network and every batch.

        A network sees the batches in their order. The model is in evaluation mode.
        """
        self._model.eval()
        device = device_of(self._model)
        vectors = iter(self._vectors)
        first = 0
        while some := list(islice(vectors, self._at_once(block))):
            together = self._together(some, block, device) if len(some) > 1 else None
            for i, vector in enumerate(some):
                if together is not None:
                    for batch, outputs in enumerate(together):
                        yield first + i, batch, vector, tuple(part[i] for part in outputs)
                else:
                    self._put(first + i, vector)
                    for batch, inputs in enumerate(block):
                        yield first + i, batch, vector, self._alone(inputs, device)
            first += len(some)

    def _at_once(self, block: Sequence[Any]) -> int:
        if not self._may_be_batched:
            return 1
        if self._asked is not None:
            return self._asked
        weights = sum(parameter.nbytes for parameter in self._target.parameters)
        sizes = [size_of(batch) for batch in block]
        # The outputs for all batches are held until the last of these networks is through.
        each = weights + _ACTIVATIONS * max(sizes) + sum(sizes)
        return max(1, self._memory_bytes // max(1, each))

    def _put(self, network: int, vector: Tensor) -> None:
        self._target.put(vector, self._statistics[network])
        if self._keeps_statistics and self._statistics[network] is None:
            self._statistics[network] = self._target.statistics()

    def _alone(self, inputs: Any, device: torch.device) -> tuple[Tensor, ...]:
        return self._take(outputs_of(self._model, inputs, device, self._forward))

    def _together(
        self, vectors: Sequence[Tensor], block: Sequence[Any], device: torch.device
    ) -> list[tuple[Tensor, ...]] | None:
        """The outputs for each batch, draws along the first axis; None where it cannot be done."""
        self._put(0, vectors[0])  # the buffers
        whole = _Whole(self._model, self._forward, self._take, device)
        names = _names_of(self._target.parameters, whole)
        weights = dict(zip(names, self._target.stacked(vectors), strict=True))
        try:
            with warnings.catch_warnings(), _own_parameters(whole):
                warnings.filterwarnings("error", message="There is a performance drop")
                results = [_mapped(whole, weights, copied(batch, device)) for batch in block]
                if not self._is_checked:
                    self._may_be_batched = self._is_right(whole, names, vectors, block[0], results)
                    self._is_checked = True
        except Exception:
            self._may_be_batched = (
                False  # one after another, what is the user's own is raised again
            )
        return results if self._may_be_batched else None

    def _is_right(
        self,
        whole: _Whole,
        names: Sequence[str],
        vectors: Sequence[Tensor],
        batch: Any,
        results: Sequence[tuple[Tensor, ...]],
    ) -> bool:
        """Whether networks that go through together give what one by itself does."""
        # Whatever the model's own parameters hold meanwhile must not matter: it does where the
        # model comes to one in another way, as by a list of its own.
        two = vectors[0], vectors[-1]
        weights = dict(zip(names, self._target.stacked(two), strict=True))
        device = whole.device
        before = _mapped(whole, weights, copied(batch, device))
        self._put(len(vectors) - 1, vectors[-1])
        after = _mapped(whole, weights, copied(batch, device))
        alone = self._alone(batch, device)
        return all(map(_same, before, after)) and all(
            _alike(part[-1], one) for part, one in zip(results[0], alone, strict=True)
        )


class _Whole(nn.Module):
    """A model and the way a batch goes through it, as one module."""

    def __init__(
        self, model: nn.Module, forward: Forward | None, take: Take, device: torch.device
    ) -> None:
        super().__init__()
        self.model = model
        self._how = forward
        self._take = take
        self.device = device

    def forward(self, batch: Any) -> tuple[Tensor, ...]:
        return self._take(outputs_of(self.model, batch, self.device, self._how))


def _names_of(parameters: Sequence[Tensor], whole: nn.Module) -> list[str]:
    """What a module calls them: the names of a posterior are without what was wrapped into it."""
    # Not as a wrapper of a layer has it, which takes its own part off the names.
    named = nn.Module.named_parameters(whole, remove_duplicate=False)
    names: dict[int, str] = {}
    for name, parameter in named:
        names.setdefault(id(parameter), name)
    return [names[id(parameter)] for parameter in parameters]


@contextmanager
def _own_parameters(module: nn.Module) -> Iterator[None]:
    """Put the parameters of a module back that an exception in `functional_call` has left out.

    Buffers that a forward pass has assigned, the next `Target.put` puts back.
    """
    held: list[dict[str, Any]] = [each._parameters for each in module.modules()]
    saved = [dict(own) for own in held]
    try:
        yield
    except BaseException:
        for now, own in zip(held, saved, strict=True):
            now.clear()
            now.update(own)
        raise


def _mapped(whole: nn.Module, weights: dict[str, Tensor], batch: Any) -> tuple[Tensor, ...]:
    def one(some: dict[str, Tensor]) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = torch.func.functional_call(whole, some, (batch,))
        return outputs

    found: tuple[Tensor, ...] = torch.func.vmap(one)(weights)
    return found


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(), other.nan_to_num())


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two outputs differ by rounding alone."""
    if one.shape != other.shape or not one.is_floating_point():
        return False
    tolerance = max(_LEAST_TOLERANCE, 8 * torch.finfo(one.dtype).eps)
    finite = other[other.isfinite()]  # a network that has diverged may say anything
    atol = tolerance * float(finite.abs().max()) if finite.numel() else 0.0
    return bool(torch.allclose(one.double(), other.double(), rtol=0, atol=atol, equal_nan=True))

"""Named parameters of a model as ranges of one flat vector, paired by name.

By position would be wrong: the order of ``model.parameters()`` depends on the order in which a
module's own parameters and its children were registered, and a model read back from a file may
have been built in another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import groupby
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from swag._copying import SHARED_ITEMS, checksum_of, copy_and_sum, sum_of
from swag._held import full_of, local_of, refuse_flattened, take
from swag._names import by_any_name, names_of, own_names
from swag._selecting import Chosen, Parameters, choose, every
from swag.errors import ModelError, StoreError

__all__ = ["DTYPES", "Entry", "ParameterTable", "chosen_of"]

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}
"""What parameters may be made of, by name."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One parameter's place in the vector."""

    name: str
    """As `torch.nn.Module.named_parameters` gives it, without what wrappers add; the first name of
    a shared parameter."""
    shape: tuple[int, ...]
    """Of the parameter."""
    dtype: torch.dtype
    """Of the parameter when it was collected first."""
    start: int
    """Index of its first item in the vector."""

    @property
    def stop(self) -> int:
        """Index after its last item in the vector."""
        return self.start + math.prod(self.shape)


@dataclass(frozen=True)
class ParameterTable:
    """Where each parameter is in the vector.

    Examples
    --------
    >>> table = ParameterTable.of(nn.Linear(3, 2))
    >>> [(entry.name, entry.start, entry.stop) for entry in table.entries]
    [('weight', 0, 6), ('bias', 6, 8)]
    >>> ParameterTable.from_json(table.to_json()) == table
    True
    """

    entries: tuple[Entry, ...]
    """In the order of the vector."""

    @classmethod
    def of(cls, model: nn.Module, chosen: Chosen = every) -> Self:
        """Make the table of the parameters that `model` trains, or of those chosen among them.

        A frozen parameter (``requires_grad=False``) has no place: it does not vary.

        Raises
        ------
        ModelError
            There is nothing to collect; or a parameter is lazy, complex or otherwise not a real
            floating-point number; or this process holds only a part of it.
        """
        refuse_flattened(model)
        entries: list[Entry] = []
        start = 0
        for name, parameter in _trained(model, chosen):
            # PyTorch 2.4 takes every parameter of a class of its own for an UninitializedParameter.
            if nn.parameter.is_lazy(parameter):
                raise ModelError(f"{name} has no shape yet: run the model once, then collect")
            _refuse_part(name, parameter)
            if parameter.dtype not in DTYPES.values():
                raise ModelError(
                    f"{name} is {parameter.dtype}; {', '.join(DTYPES)} can be collected"
                )
            entries.append(Entry(name, tuple(parameter.shape), parameter.dtype, start))
            start = entries[-1].stop
        if not start:
            among = "" if chosen is every else " among those of parameters="
            raise ModelError(
                f"the model has no parameter that requires a gradient{among}: nothing to collect"
            )
        return cls(tuple(entries))

    @classmethod
    def from_json(cls, entries: Any) -> Self:
        """The table that `to_json` wrote.

        Raises
        ------
        StoreError
            It is damaged.
        """
        try:
            table = cls(
                tuple(
                    Entry(
                        str(e["name"]),
                        tuple(_count(n) for n in e["shape"]),
                        DTYPES[e["dtype"]],
                        _count(e["start"]),
                    )
                    for e in entries
                )
            )
        except (TypeError, KeyError, ValueError) as error:
            raise StoreError(f"the table of parameters is damaged: {error!r}") from error
        if not table.entries or not table.size < 1 << 60:
            raise StoreError("the table of parameters is damaged: it holds none, or too many")
        starts = [0, *(entry.stop for entry in table.entries)]
        if [entry.start for entry in table.entries] != starts[:-1]:
            raise StoreError("the table of parameters is damaged: it has gaps")
        return table

    def to_json(self) -> list[dict[str, Any]]:
        """The entries as JSON can hold them."""
        return [
            {
                "name": entry.name,
                "shape": list(entry.shape),
                "dtype": str(entry.dtype).removeprefix("torch."),
                "start": entry.start,
            }
            for entry in self.entries
        ]

    @property
    def size(self) -> int:
        """Length of the vector."""
        return self.entries[-1].stop

    @property
    def dtype(self) -> torch.dtype:
        """What sums are taken in and draws are made of: float32, or float64 if a parameter is."""
        wide = any(entry.dtype == torch.float64 for entry in self.entries)
        return torch.float64 if wide else torch.float32

    @property
    def common_dtype(self) -> torch.dtype:
        """The narrowest dtype that holds every parameter without rounding."""
        return reduce(torch.promote_types, (entry.dtype for entry in self.entries))

    @cached_property
    def _sizes(self) -> list[int]:
        return [entry.stop - entry.start for entry in self.entries]

    def views(self, vector: Tensor) -> list[Tensor]:
        """The parts of a vector, each with its parameter's shape.

        Parameters
        ----------
        vector
            Shape (..., size); axes before the last are kept.
        """
        lead = vector.shape[:-1]
        parts = torch.split(vector, self._sizes, dim=-1)
        return [
            part.view((*lead, *entry.shape))
            for part, entry in zip(parts, self.entries, strict=True)
        ]

    def by_name(self, vector: Tensor) -> dict[str, Tensor]:
        """The same by name."""
        return {e.name: view for e, view in zip(self.entries, self.views(vector), strict=True)}

    @torch.no_grad()
    def join(
        self, weights: Mapping[str, Tensor], dtype: torch.dtype | None = None
    ) -> tuple[torch.Size, Tensor]:
        """Put weights by name, shape (..., *parameter), into vectors in host memory.

        Those that are spread over processes are gathered, for which all of these call it.

        Returns
        -------
        lead : torch.Size
            The leading axes.
        vectors : torch.Tensor
            Shape (vectors, size), of the dtype given, or of the table's.

        Raises
        ------
        ModelError
            A parameter is missing or complex, or its shape does not fit.
        """
        if isinstance(weights, nn.Module):
            raise TypeError(
                "weights are given by parameter: dict(model.named_parameters()), not the model"
            )
        weights = {
            e.name: value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
            for e in self.entries
            if (value := weights.get(e.name)) is not None
        }
        first = self.entries[0]
        _refuse([f"{e.name} is missing" for e in self.entries if e.name not in weights])
        lead = weights[first.name].shape[: weights[first.name].ndim - len(first.shape)]
        vectors = torch.empty(lead.numel(), self.size, dtype=dtype or self.dtype, device="cpu")
        for entry, view in zip(self.entries, self.views(vectors), strict=True):
            value = full_of(weights[entry.name])
            shape, fitting = value.shape, lead + entry.shape
            if shape != fitting:
                _refuse([f"{entry.name} has shape {tuple(shape)}, not {tuple(fitting)}"])
            if value.is_complex():
                _refuse([f"{entry.name} is {value.dtype}, not {entry.dtype}"])
            view.copy_(value.reshape(view.shape))
        return lead, vectors

    def find(self, model: nn.Module) -> list[nn.Parameter]:
        """The model's parameters in the order of the vector; it may have more.

        Raises
        ------
        ModelError
            A parameter is missing or has another shape.
        """
        there = self._all_of(model)
        return [there[entry.name] for entry in self.entries]

    def find_all(self, model: nn.Module, chosen: Chosen = every) -> list[nn.Parameter]:
        """The same, and the model trains no other parameter of those chosen.

        Raises
        ------
        ModelError
            As `find`, or a parameter that is trained has no place in the vector, or one is of a
            dtype that would be rounded to that which it had.
        """
        there = self._all_of(model)
        _refuse(self._new(there, chosen), " (trained now, and not when collection began)")
        _refuse(
            [
                f"{entry.name} is {now}, and was {entry.dtype}"
                for entry in self.entries
                if torch.promote_types(now := there[entry.name].dtype, entry.dtype) != entry.dtype
            ]
        )
        return [there[entry.name] for entry in self.entries]

    def _all_of(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The model's parameters by name, among which are those of the vector."""
        there = by_any_name(model)
        if unlike := self._unlike(there):
            refuse_flattened(model)
            _refuse(unlike)
        return there

    def differences(self, model: nn.Module, chosen: Chosen = every) -> list[str]:
        """What the model lacks, has in another shape, or trains without a place, in words.

        What is not trained any more is no difference, but what is not chosen is one.
        """
        there = by_any_name(model)
        names = names_of(there)
        left_out = [
            f"{entry.name} is not among those of parameters="
            for entry in self.entries
            if (p := there.get(entry.name)) is not None
            and not any(chosen(each, p) for each in names[id(p)])
        ]
        return self._unlike(there) + self._new(there, chosen) + left_out

    def _new(self, there: dict[str, nn.Parameter], chosen: Chosen) -> list[str]:
        known = {id(there[entry.name]) for entry in self.entries if entry.name in there}
        found = []
        for name, parameter in there.items():
            # The first name of a shared parameter is the one that counts.
            if id(parameter) not in known and parameter.requires_grad and chosen(name, parameter):
                found.append(f"{name} is new")
            known.add(id(parameter))
        return found

    def frozen(self, parameters: Sequence[nn.Parameter]) -> list[str]:
        """Names of those that are not trained any more, while others are."""
        found = [
            entry.name
            for entry, parameter in zip(self.entries, parameters, strict=True)
            if not parameter.requires_grad
        ]
        return found if len(found) < len(self.entries) else []

    def _unlike(self, there: dict[str, nn.Parameter]) -> list[str]:
        found: list[str] = []
        for entry in self.entries:
            parameter = there.get(entry.name)
            if parameter is None:
                found.append(f"{entry.name} is missing")
            elif tuple(parameter.shape) != entry.shape:
                shape = tuple(parameter.shape)
                found.append(f"{entry.name} has shape {shape}, not {entry.shape}")
        return found

    def nonfinite(self, column: Tensor, sums: Tensor) -> list[str]:
        """Names of the parameters whose part of a column has a NaN or an infinity.

        Parameters
        ----------
        column, sums
            As `collect` made them.
        """
        suspects = torch.nonzero(~sums.isfinite().all(dim=0)).flatten().tolist()
        if not suspects:
            return []
        views = self.views(column)  # a sum of finite numbers may be too large
        return [self.entries[i].name for i in suspects if not views[i].isfinite().all()]

    @torch.no_grad()
    def collect(
        self,
        parameters: Sequence[Tensor],
        out: Tensor,
    ) -> Tensor:
        """Copy parameters into a vector, in one pass over memory, on this thread alone.

        Parameters
        ----------
        parameters
            In the order of the table, on any device.
        out
            Shape (size,), in host memory. Where its dtype is narrower than a parameter's, values
            are rounded to it once, to the nearest.

        Returns
        -------
        torch.Tensor
            Sums of each parameter's part, float64, taken while it is in the processor's cache: they
            tell whether all is finite, and whether two vectors differ. Shape (1, parameters); where
            values are rounded, further rows tell those apart that were different before.
        """
        rounds = torch.promote_types(out.dtype, self.common_dtype) != out.dtype
        count = len(self.entries)
        sums = torch.zeros(3 if rounds else 1, count, dtype=torch.float64, device="cpu")
        if not rounds and out.dtype in (torch.float32, torch.float64) and _are_here(parameters):
            for first, last in self._stretches:
                if last > first and all(p.dtype == out.dtype for p in parameters[first : last + 1]):
                    self._collect_small(parameters, first, last, out, sums)
                else:
                    self._collect_each(parameters, first, last, out, sums)
            return sums
        for device, first, last in _runs(parameters):
            if device.type == "cpu":
                self._collect_each(parameters, first, last, out, sums)
                continue
            inside = range(first, last + 1)
            # Side by side over there: one transfer takes them home, not one for each parameter.
            parts = [parameters[i].detach().reshape(-1).to(out.dtype) for i in inside]
            out[self.entries[first].start : self.entries[last].stop].copy_(torch.cat(parts))
            for i in inside:
                sums[0, i] = sum_of(out[self.entries[i].start : self.entries[i].stop])
            if rounds:
                # Their squares too: a step changes weights of a softmax layer by what sums to zero.
                wide = [parameters[i].detach() for i in inside]
                for row, told in (
                    (1, [each.sum(dtype=torch.float64) for each in wide]),
                    (2, [torch.linalg.vector_norm(each, dtype=torch.float64) for each in wide]),
                ):
                    sums[row, first : last + 1] = torch.stack(told).cpu()
        return sums

    def _collect_each(
        self,
        parameters: Sequence[Tensor],
        first: int,
        last: int,
        out: Tensor,
        sums: Tensor,
    ) -> None:
        """Copy parameters that are in host memory, and add them up, one after another."""
        for i in range(first, last + 1):
            entry = self.entries[i]
            part = out[entry.start : entry.stop].view(entry.shape)
            sums[0, i] = copy_and_sum(part, parameters[i])
            if len(sums) > 1:
                sums[1, i] = checksum_of(parameters[i])

    def _collect_small(
        self, parameters: Sequence[Tensor], first: int, last: int, out: Tensor, sums: Tensor
    ) -> None:
        """The same of several that are small, of the vector's dtype, at once."""
        start = self.entries[first].start
        part = out[start : self.entries[last].stop]
        torch.cat([parameter.reshape(-1) for parameter in parameters[first : last + 1]], out=part)
        # Of an empty one there is no sum: it would be an item of the next.
        filled = [i for i in range(first, last + 1) if self._sizes[i]]
        sums[0, first : last + 1] = 0
        if filled:
            starts = [self.entries[i].start - start for i in filled]
            with np.errstate(over="ignore", invalid="ignore"):
                added = np.add.reduceat(part.numpy(), starts)
            sums[0, filled] = torch.from_numpy(added).to(sums.dtype)

    @cached_property
    def _stretches(self) -> list[tuple[int, int]]:
        """First and last of parameters that are together as small as what one thread copies."""
        found: list[tuple[int, int]] = []
        for i, entry in enumerate(self.entries):
            if found and entry.stop - self.entries[found[-1][0]].start <= SHARED_ITEMS:
                found[-1] = found[-1][0], i
            else:
                found.append((i, i))
        return found

    @torch.no_grad()
    def scatter(self, vector: Tensor, parameters: Sequence[Tensor]) -> None:
        """Copy a vector in host memory into parameters, on their devices, in their dtypes.

        Of a parameter that is spread over processes, the items that are here.
        """
        for device, first, last in _runs(parameters):
            start, stop = self.entries[first].start, self.entries[last].stop
            # One transfer for each device, not one for each parameter.
            moved = vector[start:stop].to(device)
            parts = torch.split(moved, self._sizes[first : last + 1])
            here = parameters[first : last + 1]
            targets = [local_of(parameter).detach() for parameter in here]
            shaped = [
                take(parameter, part.view(parameter.shape)).reshape(target.shape)
                for part, parameter, target in zip(parts, here, targets, strict=True)
            ]
            torch._foreach_copy_(targets, shaped)


def _are_here(parameters: Sequence[Tensor]) -> bool:
    """Whether all are in host memory."""
    return all(parameter.device.type == "cpu" for parameter in parameters)


def chosen_of(parameters: Parameters | None, model: nn.Module) -> Chosen:
    """What ``parameters=`` means for a model; see `swag._selecting.choose`."""
    return choose(parameters, list(by_any_name(model).items()))


def _trained(model: nn.Module, chosen: Chosen) -> Iterator[tuple[str, nn.Parameter]]:
    own, names = own_names(model), names_of(by_any_name(model))
    for name, p in model.named_parameters():
        # Whoever asks for a shared one may call it by any of its names.
        if p.requires_grad and any(chosen(each, p) for each in names[id(p)]):
            yield own(name), p


def _refuse_part(name: str, parameter: nn.Parameter) -> None:
    """Raise if the values of a parameter are elsewhere, in whole or in part."""
    why = None
    whole = getattr(parameter, "ds_shape", None)
    if parameter.shape == (0,) or (whole is not None and tuple(whole) != tuple(parameter.shape)):
        why = (
            "is empty here, as ZeRO-3 leaves what it has sharded: make the posterior and collect "
            "inside deepspeed.zero.GatheredParameters(model.parameters()); a parameter that is "
            "meant to be empty takes requires_grad_(False)"
        )
    elif parameter.is_meta:
        why = "is on the meta device, without values: materialise the model first"
    elif parameter.layout != torch.strided:
        why = f"has the layout {parameter.layout}: only dense parameters can be collected"
    if why is not None:
        raise ModelError(f"{name} {why}")


def _refuse(differences: list[str], told: str = "") -> None:
    if differences:
        shown = "; ".join(differences[:5])
        if len(differences) > 5:
            shown += f"; and {len(differences) - 5} more"
        hint = ": begin another posterior, or leave them out by parameters=" if told else ""
        raise ModelError(f"the model is not the one collected: {shown}{told}{hint}")


def _runs(parameters: Sequence[Tensor]) -> Iterator[tuple[torch.device, int, int]]:
    """Stretches of parameters on one device, with the first and the last index of each."""
    for device, run in groupby(range(len(parameters)), lambda i: parameters[i].device):
        indices = list(run)
        yield device, indices[0], indices[-1]


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.40} is no count")
    return value

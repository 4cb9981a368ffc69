"""What the attributes of a store say: what never changes, and how far collection has come."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch

from swag._parameters import DTYPES, ParameterTable
from swag.errors import StoreError

__all__ = ["Configuration", "Progress", "Skipped", "refuse_other_format"]

_FORMAT = 5
_FEW, _MOST = 25, 100
"""Collections from one checkpoint to the next, where nobody says how many. Each writes as much as
two iterates, and their old bytes."""


def refuse_other_format(found: object, known: int) -> None:
    """Raise unless a store has the format that is known here."""
    if found != known:
        raise StoreError(
            f"the store has format {found}, and this version of swag reads format {known} alone: "
            'open it with the version that wrote it, or give mode="w" to replace it'
        )


@dataclass(frozen=True, slots=True)
class Configuration:
    """What never changes in a store."""

    table: ParameterTable
    """Names, shapes and places of the parameters."""
    max_rank: int | None
    """Iterates kept: the last so many, or None for all."""
    checkpoint_every: int
    """Collections from one checkpoint to the next."""
    dtype: torch.dtype
    """Of the trajectory."""
    any_interval: bool = field(default=False, compare=False)
    """Whether a store with other checkpoints will do as well."""

    @classmethod
    def of(
        cls,
        table: ParameterTable,
        max_rank: int | None,
        checkpoint_every: int | None,
        dtype: torch.dtype | None,
        spare_bytes: int,
    ) -> Self:
        """That of a posterior of some parameters; the dtype that holds them exactly, if None.

        With `checkpoint_every` None, the spare columns of a ring find room in `spare_bytes`, if
        they are not too few for that.

        Raises
        ------
        ValueError
            The dtype is wider than that.
        """
        exact = table.common_dtype
        if dtype is not None and dtype.itemsize > exact.itemsize:
            raise ValueError(f"dtype={dtype} is wider than {exact}, which holds every parameter")
        kept, every = dtype or exact, checkpoint_every
        if every is None:
            most = spare_bytes // (2 * table.size * kept.itemsize or 1)
            every = min(max(most, _FEW), _MOST) if max_rank else _MOST
        return cls(table, max_rank, every, kept, checkpoint_every is None)

    def of_part(self, table: ParameterTable) -> Configuration:
        """The same of what one process holds of the parameters."""
        return replace(self, table=table)

    def differences(self, other: Configuration) -> list[str]:
        """What is different, apart from the parameters, in words."""
        return [
            f"{name} is {mine}, not {theirs}"
            for name in ("max_rank", "checkpoint_every", "dtype")
            if not (self.any_interval and name == "checkpoint_every")
            and (mine := getattr(self, name)) != (theirs := getattr(other, name))
        ]

    @property
    def narrow(self) -> bool:
        """Whether the trajectory rounds weights."""
        return torch.promote_types(self.dtype, self.table.common_dtype) != self.dtype

    @property
    def dtype_name(self) -> str:
        """As NumPy and the store call it."""
        return str(self.dtype).removeprefix("torch.")

    def to_json(self) -> dict[str, Any]:
        """As the attribute holds it."""
        return {
            "format": _FORMAT,
            "max_rank": self.max_rank,
            "checkpoint_every": self.checkpoint_every,
            "dtype": self.dtype_name,
            "parameters": self.table.to_json(),
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read the attribute back.

        Raises
        ------
        StoreError
            It is of a format that is not known here, or damaged.
        """
        if not isinstance(value, dict) or "format" not in value:
            raise StoreError("the store's description is damaged")
        refuse_other_format(value["format"], _FORMAT)
        try:
            table = ParameterTable.from_json(value["parameters"])
            max_rank, every = value["max_rank"], value["checkpoint_every"]
            dtype = value["dtype"]
        except KeyError as error:
            raise StoreError(f"the store's description is damaged: it lacks {error}") from error
        ranks = () if max_rank is None else (max_rank + 1 if type(max_rank) is int else max_rank,)
        if any(type(number) is not int or not 0 < number < 1 << 53 for number in (*ranks, every)):
            raise StoreError(
                f"the store's description is damaged: max_rank={max_rank!r:.40}, "
                f"checkpoint_every={every!r:.40}"
            )
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise StoreError(f"the store's description is damaged: dtype={dtype!r:.40}")
        return cls(table, max_rank, every, DTYPES[dtype])


@dataclass(frozen=True, slots=True)
class Skipped:
    """Weights that were offered and are no iterates."""

    nonfinite: int = 0
    """For a NaN or an infinity in them."""
    repeated: int = 0
    """For being the iterate before, bit for bit."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a posterior has come."""

    collected: int
    """Iterates."""
    checkpointed: int
    """Iterates at the last checkpoint."""
    in_moments: int
    """Iterates in the moments that are stored; 0 also where these are none."""
    skipped: Skipped
    """What was left out."""
    skipped_before: Skipped
    """The same at the checkpoint."""
    rewound: int
    """How often iterates were cut off or numbered anew: what was read of them before may be of
    others by now."""

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read the attribute back.

        Raises
        ------
        ValueError, TypeError, KeyError
            It is damaged.
        """
        skipped, before = value["skipped"], value["skipped_before"]
        in_moments = value["in_moments"]
        numbers = [value["collected"], value["checkpointed"]]
        numbers += [0 if in_moments is None else in_moments, value["rewound"], *skipped, *before]
        if len(numbers) != 8 or any(
            type(number) is not int or not 0 <= number < 1 << 53 for number in numbers
        ):
            raise ValueError(f"{numbers!r:.80} are no counts")
        if not numbers[0] >= numbers[1] >= numbers[2]:
            raise ValueError(
                f"of {numbers[0]} iterates {numbers[1]} are checkpointed, {numbers[2]} of them in "
                "the moments"
            )
        collected, checkpointed, in_moments, rewound = numbers[:4]
        return cls(
            collected, checkpointed, in_moments, Skipped(*skipped), Skipped(*before), rewound
        )

    def to_json(self) -> dict[str, Any]:
        """As the attribute holds it."""
        return {
            "collected": self.collected,
            "checkpointed": self.checkpointed,
            "in_moments": self.in_moments,
            "skipped": [self.skipped.nonfinite, self.skipped.repeated],
            "skipped_before": [self.skipped_before.nonfinite, self.skipped_before.repeated],
            "rewound": self.rewound,
        }

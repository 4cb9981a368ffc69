"""Everything that decides what a training run computes, as one value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from swag.errors import RecipeError, StoreError

__all__ = ["Recipe"]

_EPOCHS, _BURN_IN, _ANNEAL = 7, 5.0, 1.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to train and how; two runs of one recipe give the same weights, bit for bit.

    The learning rate is `lr` at first, is annealed to `swa_lr` over the last `anneal` epochs of the
    burn-in, and stays there: every iterate collected was made at one constant rate, as SWAG
    supposes.

    Raises
    ------
    RecipeError
        A number is outside its range, or the annealing does not fit into the burn-in.

    Examples
    --------
    >>> recipe = Recipe(model="2fc", epochs=3, burn_in=2)
    >>> recipe.first_collection(steps_per_epoch=600)
    1200
    >>> Recipe.from_json(recipe.to_json()) == recipe
    True
    """

    model: str = "4fc"
    """Name of the model, a key of :data:`swag.models.MODELS`."""
    epochs: int = _EPOCHS
    """Passes over the training images, burn-in included."""
    batch_size: int = 100
    """Images in a minibatch; the last one of an epoch may be smaller."""
    images: int | None = None
    """Train on the first so many images alone, for a quick trial; None for all."""
    lr: float = 0.05
    """Learning rate of SGD until it is annealed."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty of SGD."""
    swa_lr: float = 0.03
    """Learning rate from the end of the burn-in on."""
    anneal: float = _ANNEAL
    """Epochs, the last of the burn-in, over which the rate goes from `lr` to `swa_lr`."""
    anneal_strategy: Literal["cos", "linear"] = "cos"
    """Shape of the annealing."""
    burn_in: float = _BURN_IN
    """Epochs before the first collection."""
    interval: int = 1
    """Minibatches from one collection to the next."""
    rank: int | None = None
    """Iterates kept in the store: None for all, 0 for SWAG-diagonal, else the last so many."""
    seed: int = 0
    """Seed of the first weights and of the order of the minibatches."""
    threads: int | None = None
    """Threads of PyTorch; None for its own choice. Another number may round differently."""

    def __post_init__(self) -> None:
        bounds: list[tuple[str, bool, str]] = [
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("images", self.images is None or self.images >= 1, "at least 1, or none for all"),
            ("lr", self.lr > 0, "positive"),
            ("momentum", 0 <= self.momentum < 1, "from 0 to below 1"),
            ("weight_decay", self.weight_decay >= 0, "zero or more"),
            ("swa_lr", self.swa_lr > 0, "positive"),
            (
                "anneal",
                0 <= self.anneal <= self.burn_in,
                f"from 0 to the burn-in, {self.burn_in:g} epochs",
            ),
            (
                "burn_in",
                0 <= self.burn_in < self.epochs,
                f"from 0 to below all the epochs, {self.epochs}",
            ),
            ("interval", self.interval >= 1, "at least 1"),
            ("rank", self.rank is None or self.rank >= 0, "zero or more, or none for all"),
            ("threads", self.threads is None or self.threads >= 1, "at least 1, or none"),
            ("seed", 0 <= self.seed < 2**63, "from 0 to below 2**63"),
            ("anneal_strategy", self.anneal_strategy in ("cos", "linear"), "cos or linear"),
        ]
        for name, holds, wanted in bounds:
            if not holds:
                raise RecipeError(name, wanted, getattr(self, name))

    @classmethod
    def of(
        cls, *, burn_in: float | None = None, anneal: float | None = None, **fields: Any
    ) -> Self:
        """A recipe whose burn-in and annealing fit into its epochs, where they are not given.

        Examples
        --------
        >>> short = Recipe.of(epochs=1)
        >>> short.burn_in, short.anneal
        (0.71, 0.71)
        >>> Recipe.of() == Recipe()
        True
        """
        epochs = fields.get("epochs", _EPOCHS)
        if burn_in is None:
            burn_in = min(_BURN_IN, round(epochs * _BURN_IN / _EPOCHS, 2))
        if anneal is None:
            anneal = min(_ANNEAL, burn_in)
        return cls(burn_in=burn_in, anneal=anneal, **fields)

    def first_collection(self, steps_per_epoch: int) -> int:
        """Index of the minibatch, from 0, after which the first iterate is collected."""
        return round(self.burn_in * steps_per_epoch)

    def to_json(self) -> dict[str, Any]:
        """The fields by name, as JSON can hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_json` wrote.

        Raises
        ------
        StoreError
            The fields are not those of a recipe.
        """
        try:
            return cls(**fields)
        except (TypeError, ValueError) as error:
            raise StoreError(
                f"the store describes its training in a way unknown here: {error}"
            ) from (error)

    def differences(self, other: Recipe) -> list[str]:
        """What differs, one line a field: ``"lr: 0.05 here, 0.1 there"``."""
        mine, theirs = self.to_json(), other.to_json()
        return [f"{k}: {v!r} here, {theirs[k]!r} there" for k, v in mine.items() if v != theirs[k]]

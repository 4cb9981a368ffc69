"""What is found in a trajectory beside its Gaussian; a part of `swag.Posterior`."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from swag._distribution import Distribution
from swag.burn_in import BurnIn, suggest
from swag.sampling import Center

if TYPE_CHECKING:
    from swag.posterior import StoredPosterior

__all__ = ["Analysis"]


class Analysis(Distribution):
    """The questions that a posterior answers about its trajectory."""

    @abstractmethod
    def window(
        self,
        start: int = 0,
        every: int = 1,
        rank: int | None = None,
        center: Center = "running",
    ) -> StoredPosterior:
        """As `swag.Posterior.window` says."""

    def suggest_burn_in(self) -> BurnIn:
        """Find out from the trajectory where its burn-in ends, and whether it does.

        Looks at all iterates in the store, not only at those of this posterior, and needs nothing
        else: the store may have been finished long ago.

        Returns
        -------
        BurnIn
            With `start`, the first iterate to use, which is None where the iterates have not
            settled; the `checks` that say so; and `window`, the posterior from there on.

        Raises
        ------
        WindowError
            Fewer than 80 iterates are held.

        Examples
        --------
        >>> import torch, swag
        >>> model = torch.nn.Linear(50, 1, bias=False)
        >>> generator = torch.Generator().manual_seed(0)
        >>> posterior = swag.SWAG(model)
        >>> for step in range(200):
        ...     with torch.no_grad():  # stands for a step of training
        ...         _ = model.weight.normal_(generator=generator).add_(100 * 0.5**step)
        ...     posterior.update_parameters(model)
        >>> found = posterior.suggest_burn_in()
        >>> 5 < found.start < 20, found.window().n_averaged == 200 - found.start
        (True, True)
        """
        return suggest(self._store, self.window)

"""The checkpoint before the last, where only checkpoints are kept.

Of a part of a posterior with ``max_rank=0`` there is nothing to go back by but stored moments, and
after a crash other parts may not have come to the last checkpoint. So a part keeps two:

=========================== ======== ================================================
name                        shape    contents
=========================== ======== ================================================
``mean.earlier``            (n,)     as ``mean`` at the checkpoint before, float32
``sum_of_squares.earlier``  (n,)     as ``sum_of_squares`` there, float32
=========================== ======== ================================================

and the attribute ``swag.earlier``, which is what ``swag.progress`` was.
"""

from __future__ import annotations

import pmarray
from swag._moments import Moments
from swag._records import Progress
from swag.errors import StoreError

__all__ = ["NAMES", "Earlier"]

NAMES = ("mean.earlier", "sum_of_squares.earlier")
_PROGRESS = "swag.earlier"


class Earlier:
    """The checkpoint before the last, in the group of a part.

    Parameters
    ----------
    group
        Has the arrays.
    """

    def __init__(self, group: pmarray.Group) -> None:
        self._group = group
        self._vectors = tuple(group[name] for name in NAMES)

    @classmethod
    def of(cls, group: pmarray.Group) -> Earlier | None:
        """The one of a group, if it keeps any."""
        return cls(group) if all(name in group for name in NAMES) else None

    @staticmethod
    def make(group: pmarray.Group, size: int, none: Progress) -> None:
        """Make room for it, in a transaction."""
        for name in NAMES:
            group.create(name, (size,), "float32")
        group.attrs[_PROGRESS] = none.to_json()

    def keep(self, progress: Progress, mean: pmarray.PMArray, squares: pmarray.PMArray) -> None:
        """Keep what is about to be replaced; in the transaction that does."""
        for mine, last in zip(self._vectors, (mean, squares), strict=True):
            mine[:] = last[:]
        self._group.attrs[_PROGRESS] = progress.to_json()

    def progress(self) -> Progress:
        """How far collection had come.

        Raises
        ------
        StoreError
            It cannot be read.
        """
        try:
            return Progress.from_json(self._group.attrs.get(_PROGRESS))
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"the posterior in {self._group.url} is damaged: its earlier checkpoint cannot be "
                f"read: {error}"
            ) from error

    def moments(self) -> Moments:
        """The moments that were stored."""
        mean, squares = (vector[:] for vector in self._vectors)
        return Moments(self.progress().in_moments, mean, squares)

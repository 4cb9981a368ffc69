"""Reading the parts of a posterior as if they were one store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from swag._buffers import Buffers
from swag._iterates import Iterates
from swag._moments import Moments
from swag._records import Progress
from swag._sharding.layout import Layout
from swag._sharding.manifest import PART, Manifest, Place, part_place
from swag._store import Store
from swag._trajectory import as_tensor
from swag.errors import StoreError, WindowError

__all__ = ["JoinedIterates"]


class JoinedIterates(Iterates):
    """The iterates that every part has.

    Parameters
    ----------
    location
        Where the parts are.
    manifest
        Says which they are.
    parts
        Open, in the order of the manifest; closed by `close`.

    Raises
    ------
    StoreError
        The parts are not of one posterior.
    """

    def __init__(self, location: Place, manifest: Manifest, parts: Sequence[Store]) -> None:
        self._location, self._parts, self._layout = location, parts, manifest.layout
        super().__init__(replace(parts[0].configuration, table=manifest.layout.table))
        for number, part in enumerate(parts):
            own = self.configuration.of_part(manifest.layout.part_table(number))
            if part.group.attrs.get(PART) != [manifest.run, number] or part.configuration != own:
                raise StoreError(
                    f"{part.url} is not a part of the posterior that the manifest in {self.url} "
                    "is of: the parts of two runs are mixed up"
                )

    @classmethod
    def open(cls, location: Place, manifest: Manifest) -> Self:
        """Open all parts to read them.

        Raises
        ------
        StoreError
            A part is missing or damaged, or of another posterior.
        """
        parts: list[Store] = []
        try:
            numbers = range(len(manifest.layout.boxes))
            parts.extend(Store.open(part_place(location, number)) for number in numbers)
            return cls(location, manifest, parts)
        except BaseException:
            for part in parts:
                part.close()
            raise

    @property
    def url(self) -> str:
        """Where the parts are."""
        return str(self._location)

    def progress(self) -> Progress:
        """How far every part has come."""
        all_of_them = [part.progress() for part in self._parts]
        last = min(all_of_them, key=lambda progress: progress.collected)
        return Progress(
            collected=last.collected,
            checkpointed=min(progress.checkpointed for progress in all_of_them),
            in_moments=min(progress.in_moments for progress in all_of_them),
            skipped=last.skipped,
            skipped_before=last.skipped_before,
            rewound=sum(progress.rewound for progress in all_of_them),
        )

    def furthest(self) -> int:
        """Iterates of the part that has most."""
        return max(part.progress().collected for part in self._parts)

    def last_checkpoint(self) -> int:
        """Iterates at the last checkpoint of the part whose is the latest."""
        return max(part.progress().checkpointed for part in self._parts)

    @property
    def rows(self) -> JoinedRows | None:
        """The trajectory, put together as it is read."""
        if any(part.rows is None for part in self._parts):
            return None
        return JoinedRows(self._layout, self._parts)

    def read_anchor(self) -> Tensor:
        """The first iterate, shape (n,), of the table's dtype."""
        anchors = [part.read_anchor().numpy() for part in self._parts]
        return as_tensor(self._layout.joined(anchors, np.dtype(_name(self.table.dtype))))

    def stored_moments(self, collected: int) -> Moments:
        """Moments of all iterates, if each part has some that it stored; else of none.

        Raises
        ------
        WindowError
            Nothing else is kept, and a part has overwritten those of so many.
        """
        found = [part.stored_moments(collected) for part in self._parts]
        if any(moments.count == 0 for moments in found):
            if collected and self.rows is None:
                raise WindowError(
                    f"the parts in {self.url} have gone on while they were opened: load them again"
                )
            return Moments.none(self.table.size)
        rolled = [part.moments(collected).moments() for part in self._parts]
        return Moments(
            collected,
            self._joined_sums([moments.mean for moments in rolled]),
            self._joined_sums([moments.sum_of_squares for moments in rolled]),
        )

    def _joined_sums(self, vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        return self._layout.joined(vectors, np.dtype(np.float32)).astype(np.float32, copy=False)

    def read_buffers(self) -> Buffers:
        """The buffers of the first process at the last iterate of its part."""
        return self._parts[0].read_buffers()

    def close(self) -> None:
        """Close the parts."""
        for part in self._parts:
            part.close()


@dataclass(frozen=True)
class JoinedRows:
    """The trajectory of the whole, read from the parts."""

    layout: Layout
    parts: Sequence[Store]

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of the weights."""
        return self.parts[0].numpy_dtype

    def __getitem__(self, index: tuple[slice, slice], /) -> NDArray[np.generic]:
        """Rows of some columns, column-major."""
        rows, columns = index
        start, stop, _ = rows.indices(self.layout.table.size)
        block: NDArray[np.generic] | None = None
        for number, part in enumerate(self.parts):
            pieces = list(self.layout.pieces(number, start, stop))
            # A part's vector is in the order of the whole one: these lie side by side.
            low = pieces[0].source.start if pieces else 0
            high = pieces[-1].source.stop if pieces else 0
            assert part.rows is not None
            here = part.rows[low:high, columns].T
            if block is None:
                block = np.empty((here.shape[0], stop - start), self.dtype)
            for piece in pieces:
                source = slice(piece.source.start - low, piece.source.stop - low)
                block[:, piece.target] = here[:, source]
        assert block is not None
        return block.T

    def read_each(
        self, indices: Iterable[tuple[slice, slice]], /, *, memory: int
    ) -> Iterator[NDArray[np.generic]]:
        """The same for one index after another."""
        return (self[index] for index in indices)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

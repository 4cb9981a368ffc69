"""What a posterior keeps in its group.

=================== =============== ====================================================
name                shape           contents
=================== =============== ====================================================
``trajectory``      (n, columns)    the weights of the iterates, column-major
``anchor``          (n,)            the first of them, which a ring would lose
``mean``            (n,)            running mean less the anchor, float32
``sum_of_squares``  (n,)            sum of squared deviations, float32
``buffers``         (bytes,)        the model's buffers at the last iterate (`swag._buffers`)
``trajectory``      (71, columns)   a few numbers for each iterate (`swag._statistics`), if any
``.statistics``
=================== =============== ====================================================

The trajectory and the anchor have the dtype of the network, or the narrowest that holds all of its
parameters without rounding, unless a narrower one was asked for.

Iterate t, from 0, is column t of the trajectory; where only the last K are kept, it is column
``t % (K + 2C)``, C being the number of collections from one checkpoint to the next. C spare columns
make the moments recoverable: a checkpoint that is due stores those of all iterates but its own, and
they are rolled forward with the columns since, none of which is overwritten before the next
checkpoint is durable. The others make overwriting cheap: a checkpoint forgets the columns that it
makes superfluous (`PMArray.forget`), to which the next C iterates go; whoever reads the last K
meanwhile has time for it. With K = 0 there is no trajectory, and a checkpoint is where a reopened
store goes on. Where every iterate is kept, the moments can be computed at any time, and a
checkpoint stores those that somebody has asked for.

Every collection is one transaction: its column and the counters, and, where a checkpoint is due,
the moments and whatever the caller adds to it. Nobody keeps a count of his own: what is collected
is what the group says, so that no interrupt and no rollback can set the two at odds.

The attribute ``swag`` holds what never changes: the format's version, the table of parameters, K,
C, and the trajectory's dtype. The attribute ``swag.progress`` holds what does: the iterates
``collected``; the iterates at the last checkpoint, ``checkpointed``; the iterates in the moments,
``in_moments`` (null while they are being written, which can only be seen where a program kept a
transaction of its own in which it was interrupted); and how many weights were ``skipped``, now and
at the checkpoint, since they were not finite, or the last iterate again; and how often iterates
were ``rewound``: cut off, or numbered anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
from torch import Tensor

import pmarray
from pmarray.errors import GroupNotFoundError
from swag._buffers import Buffers
from swag._earlier import NAMES, Earlier
from swag._following import Following
from swag._iterates import Iterates
from swag._joining import Joining
from swag._location import CONSTANT, Location, Mode, cache_for, open_group
from swag._moments import Moments
from swag._parameters import ParameterTable
from swag._records import Configuration, Progress, Skipped
from swag._statistics import NAME, Statistics
from swag._trajectory import Trajectory, as_tensor
from swag.errors import StoreError, StoreExistsError, WindowError

__all__ = ["Moments", "Store"]

_PROGRESS = "swag.progress"
_ARRAYS = ("anchor", "mean", "sum_of_squares", "trajectory", "buffers", NAME, *NAMES)


class Store(Iterates):
    """A posterior's arrays and counters in a group.

    Parameters
    ----------
    group
        Holds them.
    owned
        Whether `close` closes the group.
    configuration
        Of the store.

    Raises
    ------
    StoreError
        An array is missing, or has another shape than the rest.
    """

    statistics: Statistics

    def __init__(
        self,
        group: pmarray.Group,
        configuration: Configuration,
        *,
        owned: bool,
        writes: bool = False,
    ) -> None:
        super().__init__(configuration)
        self.group = group
        self.owned = owned
        """Whether the group was opened here, and is closed here; nobody else has it then."""
        self.writes = writes
        """Whether this has the lock, and has seen what the last writer left (`become_writer`)."""
        self._only_new = False
        """Whether nobody else may have collected anything."""
        self._following = Following(group, moves=owned)
        self._take_arrays()

    def _take_arrays(self) -> None:
        group = self.group
        self.statistics = Statistics(group, self._following)
        self._earlier = Earlier.of(group)
        try:
            self._anchor = group["anchor"]
            self._mean = group["mean"]
            self._squares = group["sum_of_squares"]
            self.trajectory = group["trajectory"] if self.configuration.max_rank != 0 else None
        except KeyError as error:
            raise self._damaged(str(error)) from error
        n = self.table.size
        dtype = self.configuration.dtype_name
        expected = [(self._anchor, dtype), (self._mean, "float32"), (self._squares, "float32")]
        for vector, kind in expected:
            if vector.shape != (n,) or vector.dtype.name != kind:
                raise self._damaged(
                    f"{vector.name} is {vector.dtype}, {vector.shape}, not {kind}, {(n,)}"
                )
        trajectory = self.trajectory
        if trajectory is not None and (
            trajectory.shape[:1] != (n,) or trajectory.dtype.name != dtype
        ):
            raise self._damaged(f"its trajectory is {trajectory.dtype}, {trajectory.shape}")
        self._refuse_lost(self.progress())  # both raise if that cannot be

    def become_writer(self, begun: Joining) -> None:
        """Take the lock by an empty transaction, and what the last writer has left since opening.

        Raises
        ------
        StoreExistsError
            Somebody has collected since, and this posterior was to be a new one.
        StoreError
            There is another posterior now.
        pmarray.errors.GroupLockedError
            Somebody is writing.
        """
        with begun:
            pass
        there = self.group.attrs.get(CONSTANT)
        if there is None or Configuration.from_json(there) != self.configuration:
            what = "another posterior than when this was opened: open it again"
            raise StoreError(f"{self.group.url} holds {what}")
        self._take_arrays()
        if self._only_new and (collected := self.progress().collected):
            raise _exists(self.group.url, collected)

    @classmethod
    def create(
        cls,
        location: Location,
        configuration: Configuration,
        mode: Mode,
        differences_of: Callable[[ParameterTable], list[str]],
    ) -> Self:
        """Make a posterior at a location, or open the one there, as `mode` has it.

        Parameters
        ----------
        configuration
            Of what is to be collected.
        differences_of
            Says in words what is different in the model, where there is a posterior already.

        Raises
        ------
        StoreExistsError
            With "w-": there are iterates.
        StoreError
            With "a": they are of another model or configuration; the message says what differs.
        """
        group, owned = open_group(location, "a", configuration)
        try:
            if CONSTANT in group.attrs and mode != "w":
                there = cls(group, Configuration.from_json(group.attrs[CONSTANT]), owned=owned)
                collected = there.progress().collected
                if mode == "w-" and collected:
                    raise _exists(group.url, collected)
                differences = differences_of(there.table)
                differences += configuration.differences(there.configuration)
                if not differences:
                    there._only_new = mode == "w-"
                    return there
                if collected:
                    raise StoreError(
                        f"{group.url} holds a posterior of another kind: {'; '.join(differences)}"
                    )
            cls._make(group, configuration)
            if owned:
                group.flush()  # whatever happens to the first iterates, there is a posterior
            return cls(group, configuration, owned=owned, writes=True)
        except BaseException:
            if owned:
                group.close()
            raise

    @classmethod
    def make_part(
        cls, location: Location, configuration: Configuration, mark: Mapping[str, Any]
    ) -> Self:
        """Make a posterior without iterates, in the place of what is there; durable on return.

        Parameters
        ----------
        mark
            Attributes of the group, written with it.
        """
        group, owned = open_group(location, "a", configuration)
        try:
            cls._make(group, configuration, mark)
            group.flush()
            return cls(group, configuration, owned=owned, writes=True)
        except BaseException:
            group.close()
            raise

    @classmethod
    def open_part(cls, location: Location, configuration: Configuration) -> Self:
        """Open a posterior to go on with it; whose it is has been found out before."""
        group, owned = open_group(location, "r+", configuration)
        try:
            there = cls(group, configuration, owned=owned)
            there.become_writer(Joining(group))
            there.writes = True
            return there
        except BaseException:
            group.close()
            raise

    @staticmethod
    def _make(
        group: pmarray.Group, configuration: Configuration, mark: Mapping[str, Any] | None = None
    ) -> None:
        """Make the arrays of a posterior without iterates, in the place of what is there."""
        n, dtype = configuration.table.size, configuration.dtype_name
        with Joining(group):
            if CONSTANT in group.attrs:
                for name in _ARRAYS:
                    if name in group:
                        del group[name]
            group.create("anchor", (n,), dtype)
            group.create("mean", (n,), "float32")
            group.create("sum_of_squares", (n,), "float32")
            if configuration.max_rank != 0:
                group.create("trajectory", (n, 0), dtype, layout="col")
            none = Progress(0, 0, 0, Skipped(), Skipped(), 0)
            if mark is not None and configuration.max_rank == 0:
                Earlier.make(group, n, none)
            group.attrs.update({**(mark or {}), _PROGRESS: none.to_json()})
            group.attrs[CONSTANT] = configuration.to_json()

    @classmethod
    def open(cls, location: Location) -> Self:
        """Open the posterior at a location to read it.

        Raises
        ------
        StoreError
            There is none, or it is damaged.
        pmarray.errors.GroupNotFoundError
            There is no group.
        """
        try:
            group, owned = open_group(location, "r", None)
        except GroupNotFoundError as error:
            raise GroupNotFoundError(
                f"there is no posterior at {location}: correct the path"
            ) from error
        try:
            if CONSTANT not in group.attrs:
                raise StoreError(f"{group.url} holds no posterior")
            configuration = Configuration.from_json(group.attrs[CONSTANT])
            if owned and cache_for(configuration) != "auto":
                url = group.url
                group.close()
                group, owned = open_group(url, "r", configuration)
            following = Following(group, moves=owned)
            return following.read(lambda: cls(group, configuration, owned=owned))
        except BaseException:
            if owned:
                group.close()
            raise

    def _damaged(self, why: str) -> StoreError:
        return StoreError(f"the posterior in {self.group.url} is damaged: {why}")

    # -- progress -------------------------------------------------------------------------------

    def progress(self) -> Progress:
        """What the group says now.

        Raises
        ------
        StoreError
            That cannot be: there are fewer columns than iterates.
        """
        stored: Any = self.group.attrs.get(_PROGRESS)  # a group that was closed says so itself
        try:
            progress = Progress.from_json(stored)
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(f"its progress cannot be read: {error}") from error
        collected = progress.collected
        if self.trajectory is None:
            if collected != progress.in_moments:
                raise self._damaged(f"of {collected} iterates {progress.in_moments} are stored")
            return progress
        # A column more there may be: one that is being written, or was when its writer stopped.
        columns, ring = self.trajectory.shape[1], self.ring
        if columns < (collected if ring is None else min(collected, ring)):
            raise self._damaged(f"{collected} iterates are counted, and {columns} columns are held")
        # None: they are being replaced, by a thread that is in the middle of a checkpoint.
        if stored["in_moments"] is not None:
            self._refuse_lost(progress)
        return progress

    def _refuse_lost(self, progress: Progress) -> None:
        """Raise unless there are moments of all iterates of a ring that are overwritten."""
        if self.ring is not None and progress.collected - progress.in_moments > self.ring:
            raise self._damaged(f"only {self.ring} columns are held since its last checkpoint")

    def record(self, collected: int, skipped: Skipped) -> None:
        """Note that so many iterates are collected; in the transaction that adds the last."""
        there = self.progress()
        self._note(replace(there, collected=collected, skipped=skipped))

    def checkpoint(self, collected: int, moments: Moments, skipped: Skipped) -> None:
        """Store the moments, and that this is a point to go on from; in a transaction.

        The moments are those of the first iterates: of all, of all but the last, or, where all are
        kept, of a few.
        """
        attribute, there = self.group.attrs[_PROGRESS], self.progress()
        if attribute["in_moments"] != moments.count:
            if self._earlier is not None:
                self._earlier.keep(there, self._mean, self._squares)
            # First the mark, then the bytes: torn, they must not be taken for moments.
            self.group.attrs[_PROGRESS] = {**attribute, "in_moments": None}
            self._mean[:] = moments.mean
            self._squares[:] = moments.sum_of_squares
        if self.ring is not None:
            first = collected - self.ring
            self._forget(range(max(0, first), first + self.configuration.checkpoint_every))
        self._note(Progress(collected, collected, moments.count, skipped, skipped, there.rewound))

    def rewind(self, to: int | None, begun: Joining) -> None:
        """Cut off what came since the last checkpoint, or after so many iterates; as `begun`.

        Raises
        ------
        WindowError
            The moments of so many cannot be had any more.
        """
        progress = self.progress()
        count = progress.checkpointed if to is None else to
        if not 0 <= count <= progress.collected:
            raise WindowError(f"{progress.collected} iterates are there: none to go back to {to}")
        is_behind = 0 < count < progress.in_moments
        if is_behind and self._earlier is not None and self._earlier.progress().collected == count:
            self._go_back(self._earlier, begun)
            return
        if is_behind and self.configuration.max_rank is not None:
            raise WindowError(
                f"the last checkpoint has {progress.in_moments} iterates, and with max_rank="
                f"{self.configuration.max_rank} there is no way back to {count}, as the earlier "
                "ones are not kept"
            )
        if progress.collected == count and progress.skipped == progress.skipped_before:
            return
        with begun:
            self.cut(count)
            self._forget(range(count, progress.collected))
            self._note(
                replace(
                    progress,
                    collected=count,
                    checkpointed=min(count, progress.checkpointed),
                    in_moments=progress.in_moments if progress.in_moments <= count else 0,
                    skipped=progress.skipped_before,
                    rewound=progress.rewound + 1,
                )
            )

    def _go_back(self, earlier: Earlier, begun: Joining) -> None:
        """Make the earlier checkpoint the last one."""
        moments = earlier.moments()
        rewound = self.progress().rewound + 1
        with begun:
            self._mean[:] = moments.mean
            self._squares[:] = moments.sum_of_squares
            self._note(replace(earlier.progress(), rewound=rewound))

    def cut(self, collected: int) -> None:
        """Cut off a column that came to nothing."""
        self.statistics.cut(collected)
        trajectory = self.trajectory
        if trajectory is not None and self.ring is None and trajectory.shape[1] > collected:
            trajectory.resize((trajectory.shape[0], collected))

    def _forget(self, iterates: range) -> None:
        """Give up the columns of some iterates of a ring, in a transaction."""
        if self.trajectory is None or self.ring is None or not iterates:
            return
        first, last = self.slot(iterates[0]), self.slot(iterates[-1]) + 1
        stretches = [(first, last)] if first < last else [(first, self.ring), (0, last)]
        if len(iterates) >= self.ring:
            stretches = [(0, self.ring)]
        for start, stop in stretches:
            self.trajectory.forget((slice(None), slice(start, stop)))

    def _note(self, progress: Progress) -> None:
        self.group.attrs[_PROGRESS] = progress.to_json()

    @property
    def url(self) -> str:
        """Of the group."""
        return self.group.url

    @property
    def rows(self) -> Trajectory | None:
        """The trajectory."""
        return None if self.trajectory is None else self._following.rows(self.trajectory)

    @property
    def numpy_dtype(self) -> np.dtype[np.generic]:
        """Of the trajectory."""
        return self._anchor.dtype

    @property
    def column_bytes(self) -> int:
        """What an iterate takes."""
        return self.configuration.dtype.itemsize * self.table.size

    # -- anchor, moments and buffers ------------------------------------------------------------

    def read_anchor(self) -> Tensor:
        """The first iterate, shape (n,), of the table's dtype."""
        anchor = self._following.read(lambda: self._anchor[:])
        return as_tensor(np.asarray(anchor)).to(self.table.dtype)

    def write_anchor(self, anchor: Tensor) -> None:
        """Store the first iterate, which the trajectory's dtype holds exactly."""
        self._anchor[:] = anchor.numpy()

    def stored_moments(self, collected: int) -> Moments:
        """The moments that are stored, if they are of at most so many iterates; else of none."""
        return self._following.read(lambda: self._stored_moments(collected))

    def _stored_moments(self, collected: int) -> Moments:
        none, count = Moments.none(self.table.size), -1
        while count != (count := self.progress().in_moments):  # until none came in between
            moments = none
            if 0 < count <= collected:  # else two vectors as large as the model are of no use
                moments = Moments(count, self._mean[:], self._squares[:])
        if count > collected and self._earlier is not None:
            moments = self._earlier.moments()
        return moments if 0 < moments.count <= collected else none

    def read_buffers(self) -> Buffers:
        """The model's buffers at the last iterate."""
        if "buffers" not in self.group:
            return Buffers()
        data = self._following.read(lambda: self.group["buffers"][:])
        return Buffers.from_bytes(np.asarray(data))

    def write_buffers(self, buffers: Buffers) -> None:
        """Store them, where they differ from what is there; in a transaction."""
        there = "buffers" in self.group
        if not buffers and not there:
            return
        data = buffers.to_bytes()
        if not there:
            self.group.create("buffers", data.shape, "uint8")
        array = self.group["buffers"]
        if array.shape != data.shape:
            array.resize(data.shape)
        elif there and np.array_equal(array[:], data):
            return
        array[:] = data

    def close(self) -> None:
        """Close the group, if it was opened here."""
        if self.owned:
            self.group.close()


def _exists(url: str, collected: int) -> StoreExistsError:
    return StoreExistsError(
        f"{url} holds a posterior of {collected} iterates already: give"
        ' mode="a" to go on with it, or mode="w" to replace it'
    )

"""How collecting becomes durable, goes back, and ends."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Self

import pmarray
from pmarray.errors import ClosedError
from swag._collecting import Collecting
from swag._moments import Moments
from swag._records import Progress
from swag._schedule import Schedule
from swag._screening import Screen
from swag._sharding.parts import Part
from swag._space import is_full
from swag._store import Store

__all__ = ["LOGGER", "Ending"]

LOGGER = logging.getLogger("swag")


class Ending(Collecting):
    """A posterior that grows, until it is closed.

    Parameters
    ----------
    store, screen, on_checkpoint, part
        As for `Collecting`.
    schedule
        Which calls collect.
    """

    def __init__(
        self,
        store: Store,
        screen: Screen,
        on_checkpoint: Callable[[pmarray.Group], object] | None,
        part: Part | None,
        schedule: Schedule,
    ) -> None:
        super().__init__(store, screen, on_checkpoint, part)
        self._schedule = schedule
        self._calls = self._calls_before()
        self._full = False
        """Whether the disk was full, and training goes on without collecting."""

    def _calls_before(self) -> int:
        """Calls of `update_parameters` until the last that was due, whatever was made of it."""
        skipped = self._screen.skipped
        due = self._sync().collected + skipped.nonfinite + skipped.repeated
        return self._schedule.start + (due - 1) * self._schedule.every + 1 if due else 0

    def _take_over(self) -> None:
        """Be the writer, and go on from what another one has collected since this was opened."""
        if not self._store.writes:
            self._end_what_was_begun()
            self._store.become_writer(self._joining())
            self._begun = None
            if self._store.progress() != self._loaded:
                self._load()
                self._calls = self._calls_before()
            self._store.writes = True

    @property
    def closed(self) -> bool:
        """Whether collection has ended."""
        return self._ended is not None

    def _refuse_closed(self) -> None:
        if self.closed:
            raise ClosedError("collection has ended: the posterior is closed")

    def flush(self) -> None:
        """Take a checkpoint, and return when it is durable."""
        with self._turn:
            self._refuse_closed()
            self._screen.tell()
            progress, moments = self._unsaved()
            if progress is not None and not self._store.writes:
                self._take_over()
                progress, moments = self._unsaved()
            if progress is not None:
                if not self._keeps_all:
                    self._make_durable_in_all_parts()
                with self._joining():
                    if self._store.trajectory is None:
                        self._store_diagonal(progress, moments, self._buffers)
                    else:
                        self._checkpoint(progress.collected, moments)
                self._begun = None
            self._everywhere(self._store.group.flush)

    def _unsaved(self) -> tuple[Progress | None, Moments]:
        """How far collection has come, or None if the last checkpoint says so; and the moments."""
        progress, moments = (
            (self._sync(), self._summing.moments) if self._keeps_all else self._caught_up()
        )
        is_saved = (
            progress.collected == progress.checkpointed
            and moments.count == progress.in_moments
            and self._screen.skipped == progress.skipped_before
        )
        return None if is_saved else progress, moments

    def rewind(self, to: int | None = None) -> int:
        """Go back to the last checkpoint, or to so many iterates, forgetting what came after.

        For going on with a training that was interrupted, from the state that `on_checkpoint`
        stored, or from a file of your own that says how many iterates there were.

        Parameters
        ----------
        to
            Iterates that remain; those of the last checkpoint if None. The counts of weights that
            were not collected go back to the last checkpoint's.

        Returns
        -------
        int
            Iterates that remain.

        Raises
        ------
        WindowError
            There are not so many; or, with `max_rank`, the last checkpoint has more.
        """
        with self._turn:
            self._refuse_closed()
            self._take_over()
            progress = self._sync()
            if self._part is not None:
                agreement = self._part.agreement
                least = agreement.least(progress.checkpointed if to is None else to)
                # Of a ring, no part goes behind its moments; every part has come as far as these.
                to = max(least, -agreement.least(-progress.in_moments)) if to is None else least

            def cut() -> None:
                self._store.rewind(to, self._joining())
                self._begun = None
                if self._part is not None:
                    self._store.group.flush()  # before any process collects others in their place

            self._everywhere(cut)
            self._load()
            self._calls = self._calls_before()
            return self._sync().collected

    def close(self) -> None:
        """Flush and end collection; the group is closed too, unless it was given open.

        A ``with`` block that is left by an exception ends without a checkpoint, since training may
        have been interrupted in the middle of a step; iterates that were collected are kept.

        Raises
        ------
        pmarray.errors.PMArrayError, OSError
            As `update_parameters`; threads and files are released all the same.
        """
        self._close(checkpoint=True)

    def _close(self, *, checkpoint: bool) -> None:
        try:
            with self._turn:
                self._end(checkpoint=checkpoint)
        except (OSError, MemoryError) as error:
            if not self._full or not is_full(error, self._store.url):
                raise
        LOGGER.info("collected into %s; ended", self._store.url)

    def _end(self, *, checkpoint: bool) -> None:
        if self._part is not None and not checkpoint:
            self._part.agreement.give_up()
        try:
            if not self._store.writes:
                self._ended = self._loaded  # nothing was collected here, and others may have since
            if not self.closed:
                if checkpoint:
                    self.flush()
                self._ended = self._sync() if self._keeps_all else self._caught_up()[0]
        finally:
            # Again at a second call, should an interrupt come in between.
            if self._ended is None:
                count = max(0, self._summing.moments.count)  # below zero: torn
                skipped = self._screen.skipped
                self._ended = Progress(count, count, count, skipped, skipped, 0)
            self._attached.detach()
            self._worker.stop()
            self._summing.stop()
            self._end_what_was_begun()
            self._store.close()
            if self._part is not None:
                self._part.agreement.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close(checkpoint=kind is None)

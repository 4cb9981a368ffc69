"""How transactions reach the medium: the protocol, and the engine that carries it out.

The engine runs on the group's one writer thread, which handles everything in the order in which
it was handed over, so that one transaction is finished before the next begins.

Committing a transaction
------------------------
1. The caller has sealed it: its dirty bytes are in flight, and bytes in flight do not change.
2. Before-images of the committed bytes that it will overwrite are read from the medium, which
   holds the values that its predecessor left, and written to the journal, in whole blocks. Bytes
   of blocks that hold no committed byte need none: an append writes its data once. Nor do blocks
   that are dead (`PMArray.forget`) in the last *durable* commit; those that are dead in one that
   is only sealed do. If there are any images, the journal is made durable.
3. The data are written, and every file they went to is made durable.
4. One COMMIT record, with the metadata as of this transaction, is written to the journal, and the
   journal is made durable. This is the commit point.

Several sealed transactions that wait in the queue are merged: one pass through steps 2 to 4, with
the number and the metadata of the last, commits them all. A crash loses a suffix of them.

*Committed* means: at or before the last COMMIT that is known to be durable. While a transaction
that shrinks an array is not durable, the bytes it cuts off still count.

A transaction that outgrows the cache *spills*: some of its dirty chunks are written before it is
sealed, their before-images first, by steps 2 and 3 without the last barrier. Step 3 of its commit
makes their files durable with the rest. Chunks that hold no committed byte may leave at any time.

Rolling back, and recovering after a crash
------------------------------------------
a. The journal is made durable, so that nothing is trusted that a second crash could take away.
b. Before-images of transactions above the last COMMIT are put back, highest number first, within
   a transaction the last first, so that the oldest value of every byte is the one that stays.
c. The files they went to are made durable.
d. The metadata file is replaced by a *checkpoint*: the metadata of the last COMMIT, its number,
   and a new nonce, which makes every record in the journal stale in the same instant.
   Only then is the journal reused.

Any of these steps may be interrupted and run again: until (d) the journal is as it was.

A new writer takes step d whatever it finds, for two reasons. An interrupted transaction may have
left records behind a gap, which a reader of the journal does not see, but which would stand behind
new records of the same length. And the metadata file that it has read may be the work
of a process that died before the directory was durable: a power cut would bring the older one
back, whose journal must not have been overwritten by then.

Checkpoints
-----------
A checkpoint is also taken when the journal has grown long, when the group is flushed and its
metadata have changed, and after each rollback of a transaction that has reached the journal;
always with no transaction half-way through, so that nothing in the journal is needed any more.

Readers are told
----------------
A counter (`_system.counter`) moves before anything changes that a reader may be looking at: after
step 2, when the journal says what will be overwritten (by images or, of dead bytes, by the COMMIT
of an earlier transaction) and the data have not changed yet; in step d, when the metadata file is
durable and the journal not yet reused; and when a writer has taken the lock.

Failures
--------
An error in step 2 leaves the medium as it was: the transaction can be rolled back by forgetting
it. From step 3 on, and at any barrier, an error poisons the group: nothing is retried, and opening
the group again recovers the last commit. A checkpoint that fails before its rename changes nothing,
and takes back no commit. If the barrier of step 4 fails the outcome is unknown
until then.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import closing
from itertools import chain, groupby

from pmarray._cache.source import Commit, Write
from pmarray._commits.journal import Journal
from pmarray._commits.recovery import (
    OpenTarget,
    Targets,
    check_images,
    missing_journal,
    put_back,
    read_committed,
)
from pmarray._formats.metadata import Checkpoint, GroupMetadata
from pmarray._formats.records import Image
from pmarray.backends._capabilities import Capabilities
from pmarray.errors import OutcomeUnknownError, PoisonedError, StorageError

__all__ = ["Committer"]

# A journal that is fuller than this is retired at the next commit.
_RETIRE_AT = 0.75
_MAX_IDLE_JOURNAL_BYTES = 64 << 20
"""A journal that is longer is shortened when it is empty, for others to have the room."""
_MAX_BUSY_JOURNAL_BYTES = 256 << 20
"""The same where all of it was used since it was last empty: to fill it anew takes as long as to
write it."""


def _nonce() -> int:
    return int.from_bytes(os.urandom(8), "little")


class Committer:
    """The engine of one group's transactions; see the head of this module.

    Parameters
    ----------
    can
        The backend where the group is, locked by the caller.
    checkpoint
        The metadata in force.
    """

    def __init__(self, can: Capabilities, checkpoint: Checkpoint) -> None:
        self._can = can
        self._backend = can.backend
        self.refuse_lost_lock = can.lock.refuse_lost_lock if can.lock else lambda: None
        self._tell_readers = can.counter.advance if can.counter else lambda: None
        self._images = can.images
        self.saved = checkpoint
        """The last checkpoint."""
        self.in_force = checkpoint.metadata
        """What an opener would find: that of the last COMMIT, or of the checkpoint after it."""
        self._moved = False
        """Whether a commit since the last checkpoint has other metadata than that."""
        self.transaction = checkpoint.transaction
        """The number of the last transaction that was begun."""
        self._committed = checkpoint.transaction
        self._journal: Journal | None = None
        self._pending_images = 0
        """The highest number of a transaction that has images in the journal and no COMMIT."""
        self._forgets = False
        """Whether readers have not been told of bytes that are dead."""

    # -- opening --------------------------------------------------------------------------------

    def recover(self, *, force: bool = False) -> list[str]:
        """Bring the medium back to the last commit; steps a to d.

        With `force` also where the journal is damaged, as far as it goes. Returns what is lost.

        Raises
        ------
        DamagedError
            The journal is damaged, and nothing was changed.
        """
        if self.saved.generation == 0:
            self.checkpoint(self.saved.metadata)  # d
            return []
        region = self._backend.open_journal(create=force)
        if region is None:
            raise missing_journal(self.saved)
        # Which `close` releases.
        self._journal = journal = Journal(region, self.saved.nonce, self.saved.generation)
        journal.barrier()  # a
        lost: list[str] = []
        state = read_committed(self.saved, journal, lost=lost if force else None)
        targets = Targets(self._can, state.metadata, lost=lost if force else None)
        try:
            check_images(journal, state, targets, lost=lost if force else None)
            put_back(journal, state.images, targets, lost=lost if force else None)  # b, c
        finally:
            targets.close()
        if lost:
            journal.mend()
        self.transaction = self._committed = state.transaction
        self.checkpoint(state.metadata)  # d
        return lost

    def begin(self) -> int:
        """Return the number of a new transaction; makes the journal when it is the first."""
        if self._journal is None:
            region = self._backend.open_journal(create=True)
            assert region is not None
            try:
                self._journal = Journal(region, self.saved.nonce, self.saved.generation)
                self._journal.make()
                # From generation 1 on, a missing journal is damage; at 0 the journal is not read.
                self.checkpoint(self.saved.metadata)
            except BaseException:
                self._journal = None
                region.close()
                raise
        self.transaction += 1
        return self.transaction

    def must_checkpoint(self, metadata: GroupMetadata) -> bool:
        """Whether an opener would find other metadata, or may have found others in between.

        A reader of a commit in between may be at lines that have been cut since: what becomes of
        those is nobody's to keep once all is durable, so it has to be told.
        """
        return metadata != self.saved.metadata or self._moved

    # -- on the writer thread -------------------------------------------------------------------

    def store(self, writes: list[Write]) -> None:
        """Write adjacent pieces, of no transaction or of one that is not sealed yet."""
        self.refuse_lost_lock()
        number = writes[0].number
        if number is not None:
            self._journal_before(number, writes)  # 2
        writes[0].source.store(writes)

    def commit(self, writes: list[list[Write]], commits: list[Commit]) -> None:
        """Commit `commits`, whose writes, grouped by adjacency, are `writes`; steps 2 to 4."""
        assert self._journal is not None
        self.refuse_lost_lock()
        last = commits[-1]
        marks = {storage: mark for commit in commits for storage, mark in commit.marks.items()}
        deletes = [i for storage, mark in marks.items() for i in storage.images_of_deletes(mark)]
        self._journal_before(last.number, (w for run in writes for w in run), deletes)  # 2
        try:
            for run in writes:  # 3
                run[0].source.store(run)
            for storage, mark in marks.items():
                storage.barrier(mark)
            record = self.saved._replace(metadata=last.metadata, transaction=last.number)
            self._journal.commit(last.number, record.to_record())  # 4
        except PoisonedError:
            raise
        except OSError as error:
            raise PoisonedError(
                error.errno,
                f"a commit failed half-way ({error.strerror}): close the group, repair the "
                "medium and open it again; the last commit will be recovered",
                error.filename,
            ) from error
        try:
            self._journal.barrier()
        except PoisonedError as error:
            raise OutcomeUnknownError(
                error.errno,
                "the commit's own barrier failed: whether it took place is unknown until the "
                "group is opened again",
                error.filename,
            ) from error
        self._committed, self.in_force = last.number, last.metadata
        self._moved = self._moved or last.metadata != self.saved.metadata
        self._forgets = self._forgets or any(commit.forgets for commit in commits)
        for commit in commits:
            for file_id in commit.removed:
                self._backend.remove(file_id)
        for storage, mark in marks.items():
            storage.committed(mark)
        if self._images is not None:
            self._images.committed()
        if self._journal.position > _RETIRE_AT * self._journal.region.capacity:
            self._retire(last.metadata)

    def _retire(self, metadata: GroupMetadata) -> None:
        """Take a checkpoint because the journal is long; the commit before it stands anyway."""
        try:
            self.checkpoint(metadata)
        except PoisonedError:
            raise
        except StorageError:
            pass  # the journal grows instead, and the next commit tries again

    def _journal_before(
        self, number: int, writes: Iterable[Write], others: Iterable[Image] = ()
    ) -> None:
        assert self._journal is not None
        journal = self._journal
        pending, self._pending_images = self._pending_images, number
        images = (
            image
            for source, group in groupby(writes, key=lambda write: write.source)
            for image in source.before_images(group, self.in_force, journal.memory)
        )
        with closing(images):  # where it fails, nothing is read any more when it is over
            found = journal.before(number, chain(images, others))
        if found:
            journal.barrier()
        else:
            self._pending_images = pending
            if not self._forgets:
                return
        self._tell_readers()
        self._forgets = False

    # -- on the caller's thread, while the writer has nothing to do -------------------------------

    def keep(self, number: int, images: list[Image]) -> None:
        """Journal before-images of what the caller is about to change; step 2."""
        self._journal_before(number, (), images)

    def roll_back(self, target: OpenTarget) -> None:
        """Undo what the transaction after the last commit has written; steps a to d."""
        journal = self._journal
        if journal is None or self._pending_images <= self._committed:
            return
        self.refuse_lost_lock()
        journal.barrier()  # a
        state = read_committed(self.saved, journal, end=journal.position)
        check_images(journal, state, target)
        put_back(journal, state.images, target)
        self.checkpoint(state.metadata)

    def checkpoint(self, metadata: GroupMetadata) -> None:
        """Replace the metadata file; afterwards nothing in the journal is needed."""
        self.refuse_lost_lock()
        generation = self.saved.generation + (self._journal is not None)
        nonce = self.saved.nonce if self._journal is None else _nonce()
        checkpoint = Checkpoint(metadata, self._committed, generation, nonce)
        self._backend.save(checkpoint)
        self._tell_readers_or_poison()
        self.saved = checkpoint
        self.in_force, self._moved = metadata, False
        self._pending_images = 0
        if self._journal is not None:
            used = 2 * self._journal.position
            self._journal.restart(nonce, generation)
            self._journal.trim(max(_MAX_IDLE_JOURNAL_BYTES, min(used, _MAX_BUSY_JOURNAL_BYTES)))

    def save_number(self) -> None:
        """Take a checkpoint if only the journal, which is about to go, has the last number.

        Readers tell commits by their numbers: no other commit may get the same one.
        """
        if self.saved.transaction != self._committed:
            self.checkpoint(self.saved.metadata)

    def _tell_readers_or_poison(self) -> None:
        try:
            self._tell_readers()
        except StorageError as error:
            raise PoisonedError(
                error.errno,
                f"readers could not be told of a checkpoint ({error.strerror}): close the group "
                "and open it again",
                error.filename,
            ) from error

    def close(self) -> None:
        """Release the journal."""
        if self._journal is not None:
            self._journal.region.close()

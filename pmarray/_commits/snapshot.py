"""How a handle that does not hold the lock reads: the last commit, and nothing newer.

A writer puts before-images into the journal before it changes the data, so the journal holds the
old version of everything that a reader might find changed. Reading takes no lock:

1. Note the stamp of the metadata file. If it has changed since the snapshot was taken, the journal
   may have been reused: go on if no transaction has been committed since, else the snapshot has
   expired.
2. Read the data.
3. Read what was added to the journal, and let the before-images of everything above the
   snapshot's transaction, committed meanwhile or not, override what was read; where there are
   several of one byte, the oldest.
4. If the stamp has changed since step 1, begin again.

A byte that changed before step 2 has its image in the journal by step 3, unless the journal was
reused, which step 4 notices: reuse follows the replacement of the metadata file.

Where the backend has a counter for it, which moves before any of this can happen, all that is left
of steps 1, 3 and 4 is a load: it was noted before step 1 of an earlier read, and if it is the same
after step 2, no image came after that read and the journal was not reused.

Bytes that a later commit has declared dead may be overwritten without an image. So step 3 looks at
the COMMITs, too: who has read such bytes has read of a snapshot that has expired.

Writes outside any transaction are not covered, and appear when they appear.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial

from pmarray._commits.journal import FIRST, Journal
from pmarray._commits.recovery import (
    CommittedState,
    Targets,
    check_images,
    missing_journal,
    read_committed,
)
from pmarray._formats.metadata import DEAD, Checkpoint, GroupMetadata
from pmarray._formats.records import StoredImage, checksum
from pmarray._geometry.spans import SpanSet
from pmarray._system.uninterrupted import uninterrupted
from pmarray.backends._capabilities import Capabilities
from pmarray.backends._protocols import Region
from pmarray.errors import DamagedError, GroupNotFoundError, SnapshotExpiredError
from pmarray.locks import Lock

__all__ = ["Snapshot", "group_gone"]

_MAY_FORGET = f'"{DEAD}"'.encode()


def group_gone(what: str) -> GroupNotFoundError:
    """The error of a group whose place holds none any more."""
    return GroupNotFoundError(f"{what} was moved or deleted: open it where it is now")


class Snapshot:
    """A group as of the last commit at the time of construction.

    Parameters
    ----------
    can
        The backend of the group.
    checkpoint
        The metadata in force.
    stamp
        What the backend's was before they were loaded; without it they are loaded again.
    thorough
        Whether to look behind the journal's last record for signs of damage, and into all
        before-images.
    """

    def __init__(
        self,
        can: Capabilities,
        checkpoint: Checkpoint,
        *,
        stamp: object = None,
        thorough: bool = True,
    ) -> None:
        self._can = can
        self._backend = backend = can.backend
        self._lock = Lock()
        self.images: defaultdict[int, list[StoredImage]] = defaultdict(list)
        """What overrides the data files, by file, oldest first."""
        self._given_up: defaultdict[int, SpanSet] = defaultdict(SpanSet)
        """Bytes that this snapshot has, and a later commit has not, by file."""
        self._deleted: set[int] = set()
        """In a chunk store, where nothing holds their files open: arrays deleted by later ones."""
        self._journal: Journal | None = None
        self._counter = can.counter.counter() if can.counter else None
        self._noted = -1
        """What the counter said before the last read by steps 1 to 4."""
        while True:
            self._stamp = backend.stamp()
            if stamp is None or stamp != self._stamp:
                checkpoint = backend.load() or checkpoint
            stamp = None
            try:
                state = self._read_journal(checkpoint, thorough=thorough)
            except DamagedError:
                if self._stamp == backend.stamp():
                    raise
                continue
            if self._stamp == backend.stamp():
                break
        self.metadata: GroupMetadata = state.metadata
        self.transaction = state.transaction
        self._adopt(state)

    def _read_journal(self, checkpoint: Checkpoint, *, thorough: bool) -> CommittedState:
        if checkpoint.generation == 0:
            self._change_journal(None)
            return read_committed(checkpoint, None)
        journal = uninterrupted(lambda: self._open_journal(checkpoint))
        journal.adopt(checkpoint.nonce, checkpoint.generation)
        state = read_committed(checkpoint, journal, scan=thorough)
        if thorough:
            targets = Targets(self._can, state.metadata)
            try:
                check_images(journal, state, targets)
            finally:
                targets.close()
        return state

    def _open_journal(self, checkpoint: Checkpoint) -> Journal:
        # Anew: a writer that has ended may have removed it, and the next one have made another.
        region = self._backend.open_journal(create=False)
        if region is None:
            raise missing_journal(checkpoint)
        journal = Journal(region, checkpoint.nonce)
        self._change_journal(journal)
        return journal

    def _change_journal(self, journal: Journal | None) -> None:
        before, self._journal = self._journal, journal
        if before is not None:
            before.region.close()

    def _adopt(self, state: CommittedState) -> None:
        self.images.clear()
        self._given_up.clear()
        self._deleted.clear()
        self._position = state.position
        self._add(state.images)

    def _add(self, images: list[StoredImage] | tuple[StoredImage, ...]) -> None:
        for image in images:
            self.images[image.file_id].append(image)

    def read(self, fetch: Callable[[], None], override: Callable[[], None]) -> None:
        """Read as of this snapshot; steps 1 to 4.

        `fetch` takes what is on the medium, and may run on several threads at a time; `override`
        lets `images` override it.
        """
        counter = self._counter
        if counter is not None:
            noted = self._noted
            try:
                if counter.value == noted:
                    fetch()  # 2
                    with self._lock:
                        override()
                    if counter.is_still(noted):
                        return
            except DamagedError:
                pass  # or what was read of the journal had been reused
        while True:
            counted = -1 if counter is None else counter.value
            with self._lock:
                self.check()  # 1
                stamp = self._stamp
            try:
                fetch()  # 2
                with self._lock:
                    self._catch_up()  # 3
                    override()
            except DamagedError:
                if stamp == self._backend.stamp():
                    raise
                continue
            if stamp == self._backend.stamp():  # 4
                self._noted = counted
                return

    def may_tell(self, file_id: int) -> bool:
        """Whether `is_unmoved` can be expected to be true."""
        counter = self._counter
        return counter is not None and self._is_as_read(file_id) and counter.value == self._noted

    def could_tell(self, file_id: int) -> bool:
        """The same, also where nothing was read yet."""
        if self._counter is not None and self._noted < 0:
            self.read(_nothing, _nothing)
        return self.may_tell(file_id)

    def _is_as_read(self, file_id: int) -> bool:
        return file_id not in self.images and file_id not in self._given_up

    def is_unmoved(self, file_id: int) -> bool:
        """Whether what was read of a data file just now, without asking, is of this snapshot."""
        counter = self._counter
        return counter is not None and self._is_as_read(file_id) and counter.is_still(self._noted)

    def noted_without(self, file_id: int) -> int | None:
        """Return what the counter says as long as a data file can be read without asking.

        None where something of it is overridden, or where there is no counter.
        """
        with self._lock:
            if self._counter is None or self._noted < 0 or not self._is_as_read(file_id):
                return None
            return self._noted

    def is_at(self, counted: int) -> Callable[[], bool]:
        """Return what tells whether the counter says that still."""
        assert self._counter is not None
        return partial(self._counter.is_still, counted)

    def reads(self, file_id: int, start: int, stop: int, fetch: Callable[[], None]) -> bool:
        """Read bytes ``[start, stop)`` of a data file by `fetch`, where they are of this snapshot.

        False where an image may override some, or some may have been given up.
        """
        overridden = False

        def override() -> None:
            nonlocal overridden
            overridden = self._gave_up(file_id, start, stop) or any(
                image.offset < stop and start < image.offset + image.nbytes
                for image in self.images.get(file_id, ())
            )

        self.read(fetch, override)
        return not overridden

    def read_into(self, file_id: int, region: Region, offset: int, out: memoryview) -> None:
        """Fill `out` with bytes of a data file as of this snapshot."""
        self.read(
            lambda: region.read_into(offset, out),
            lambda: self._override(file_id, region, offset, out),
        )

    def is_latest(self) -> bool:
        """Whether no transaction has been committed since."""
        checkpoint = self._backend.load()
        if checkpoint is None:
            return False
        latest = Snapshot(self._can, checkpoint)
        latest.close()
        return latest.metadata == self.metadata

    def check(self) -> None:
        """Raise if the snapshot has expired."""
        while (stamp := self._backend.stamp()) != self._stamp:
            try:
                self._follow()
            except DamagedError:
                if stamp == self._backend.stamp():
                    raise
                continue  # the journal has been reused meanwhile
            self._stamp = stamp

    def _follow(self) -> None:
        # A reader comes here from any read: torn, it would leave files open, or call it damage.
        checkpoint = uninterrupted(self._backend.load)
        if checkpoint is None:
            raise group_gone("what this handle was reading")
        if checkpoint.transaction != self.transaction:
            raise SnapshotExpiredError(
                "what this handle was reading has been replaced by later commits: call refresh() "
                "on the group to read the last one"
            )
        state = self._read_journal(checkpoint, thorough=False)
        self._adopt(state)
        self._look_for_deleted(state.metadata)  # by somebody who writes without transactions
        # Commits since that checkpoint are newer than this snapshot: their images count too.
        if state.transaction != self.transaction:
            self.images.clear()
            self._position = FIRST
            self._catch_up()

    def _catch_up(self) -> None:
        if self._journal is None:
            return
        for record in self._journal.records(self._position):
            self._add(record.images)
            if record.metadata is not None and (
                self._can.chunks is not None or _MAY_FORGET in record.metadata
            ):
                later = Checkpoint.from_bytes(record.metadata, "a journal record").metadata
                self._look_for_deleted(later)
                for array in later.arrays.values():
                    self._give_up(array.file_id, array.dead)
            self._position = record.end

    def _look_for_deleted(self, later: GroupMetadata) -> None:
        if self._can.chunks is not None:
            self._deleted |= self.metadata.file_ids - later.file_ids

    def refuse_deleted(self, file_id: int) -> None:
        """Raise if a later commit has deleted an array of a chunk store: its chunks may be gone.

        To be called by what overrides (`read`).
        """
        if file_id in self._deleted:
            raise SnapshotExpiredError(
                "what this handle was reading has been deleted by a later commit: call refresh() "
                "on the group to read the last one"
            )

    def _give_up(self, file_id: int, spans: tuple[tuple[int, int], ...]) -> None:
        mine = self.metadata.dead_in(file_id)
        for start, stop in spans:
            for gap in mine.gaps(start, stop):
                self._given_up[file_id].add(*gap)

    def _gave_up(self, file_id: int, start: int, stop: int) -> bool:
        return file_id in self._given_up and self._given_up[file_id].intersects(start, stop)

    def fetch(self, image: StoredImage) -> memoryview:
        """Return the bytes of one of `images`."""
        assert self._journal is not None
        return self._journal.fetch(image)

    def _override(self, file_id: int, region: Region, offset: int, out: memoryview) -> None:
        stop = offset + out.nbytes
        if self._gave_up(file_id, offset, stop):
            raise SnapshotExpiredError(
                "what this handle was reading has been forgotten by a later commit: call refresh() "
                "on the group to read the last one"
            )
        if file_id not in self.images or self._journal is None:
            return
        bad = SpanSet()
        for image in reversed(self.images[file_id]):  # the oldest last
            low, high = max(offset, image.offset), min(stop, image.offset + image.nbytes)
            if low < high:
                data, lost = self._image(image, region, low - image.offset, high - image.offset)
                out[low - offset : high - offset] = data[low - image.offset : high - image.offset]
                bad.remove(low, high)
                for start, end in lost:
                    bad.add(image.offset + start, image.offset + end)
        if bad.intersects(offset, stop):
            raise DamagedError(
                "a before-image in the journal is damaged: close the group and open it again, "
                "which says what is lost"
            )

    def _image(
        self, image: StoredImage, region: Region, start: int, stop: int
    ) -> tuple[memoryview, list[tuple[int, int]]]:
        """Return an image that is right from `start` to `stop`, and where it is not.

        Of a record that is being written, or was when its writer died, blocks may be missing: then
        the data have not changed yet, and are fetched in their place.
        """
        data, lost = self.fetch(image), []
        for low, high, crc in image.blocks():
            if low < stop and start < high and checksum(data[low:high]) != crc:
                block = memoryview(bytearray(high - low))
                region.read_into(image.offset + low, block)
                if checksum(block) != crc:
                    block = self.fetch(image)[low:high]  # the writer has finished it meanwhile
                if checksum(block) != crc:
                    block = self._same_block(image.file_id, image.offset + low, crc) or block
                if checksum(block) != crc:
                    lost.append((low, high))
                data[low:high] = block
        return data, lost

    def _same_block(self, file_id: int, offset: int, crc: int) -> memoryview | None:
        """A block that another image of the same place has, whole; as recovery looks for it."""
        for image in self.images[file_id]:
            for low, high, own_crc in image.blocks():
                if (image.offset + low, own_crc) == (offset, crc):
                    block = self.fetch(image)[low:high]
                    if checksum(block) == crc:
                        return block
        return None

    def close(self) -> None:
        """Release the journal and the counter, which has a descriptor."""
        self._counter = None
        self._change_journal(None)


def _nothing() -> None:
    pass

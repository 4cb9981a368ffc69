"""What the metadata file and the journal say together, and undoing what was not committed.

The protocol is at the head of `_commits.committer`, of which steps b and c are carried out here;
what is damage, and what a power cut leaves, is said at that of `_commits.journal`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pmarray._commits.journal import FIRST, Journal
from pmarray._formats.metadata import Checkpoint, GroupMetadata
from pmarray._formats.records import Record, StoredImage, checksum
from pmarray._geometry.layout import BLOCK_BYTES
from pmarray._sizes import format_bytes
from pmarray.backends._capabilities import Capabilities
from pmarray.backends._protocols import ImageTarget, Region
from pmarray.errors import DamagedError

__all__ = [
    "CommittedState",
    "Survey",
    "Targets",
    "check_images",
    "missing_journal",
    "put_back",
    "read_committed",
    "survey",
]


class Target(NamedTuple):
    """Where before-images are put back."""

    images: ImageTarget
    region: Region | None
    """The same as a data file; None of a chunk store, which does not tell what it holds."""

    @classmethod
    def of_region(cls, region: Region) -> Target:
        """Images of a data file go to the file."""
        return cls(region, region)

    def has_place(self, image: StoredImage) -> bool:
        """Whether a data file is as long as an image of it says."""
        return self.region is None or image.offset + image.nbytes <= self.region.capacity

    def holds(self, offset: int, nbytes: int, crc: int) -> bool:
        """Whether a data file still has the bytes that an image was made of."""
        if self.region is None or self.region.capacity < offset + nbytes:
            return False
        data = memoryview(bytearray(nbytes))
        self.region.read_into(offset, data)
        return checksum(data) == crc


OpenTarget = Callable[[int], Target | None]


class CommittedState:
    """What the metadata file and the journal together say."""

    __slots__ = ("images", "metadata", "position", "transaction")

    def __init__(self, metadata: GroupMetadata, transaction: int) -> None:
        self.metadata = metadata
        self.transaction = transaction
        self.images: list[StoredImage] = []
        """Before-images above `transaction`, in the order in which they were written."""
        self.position = FIRST
        """The end of the journal's last whole record."""


# -- reading the journal --------------------------------------------------------------------------


class Survey:
    """What a journal holds, from end to end."""

    __slots__ = ("damage", "durable_to", "records")

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.durable_to = FIRST
        """How much of it is known to have been durable."""
        self.damage: dict[int, str] = {}
        """What is bad, by its place."""

    @property
    def end(self) -> int:
        """Where the next record would begin."""
        return self.records[-1].end if self.records else FIRST


def survey(journal: Journal, *, scan: bool = True) -> Survey:
    """Read a journal, and look for damage.

    Parameters
    ----------
    journal
        With the nonce of the checkpoint in force.
    scan
        Whether to look behind the last record: that others follow may be all that shows that one
        is bad.
    """
    found, position, gaps = Survey(), FIRST, []
    while True:
        record = journal.record_at(position)
        if record is None and scan:
            record = journal.record_after(position, journal.stop)
        if record is None:
            break
        if record.start > position:
            gaps.append((position, record.start))
        found.records.append(record)
        found.durable_to = max(found.durable_to, record.durable_to)
        position = record.end
    newer = journal.newer_generation()
    if newer is not None:
        found.damage[FIRST] = (
            f"the first record is of generation {newer}, the metadata are of {journal.generation}, "
            "and so older"
        )
    for start, stop in gaps:
        if start >= found.durable_to:
            # Nobody vouches for it, and behind it are the remains of what was never durable.
            found.records = [record for record in found.records if record.end <= start]
            break
        found.damage[start] = f"in place of a record are {format_bytes(stop - start)} of others"
    for record in found.records:
        if record.end <= found.durable_to:
            for image in record.images:
                for at, _ in _bad_blocks(journal, image):
                    assert image.position is not None
                    found.damage[image.position + at] = _bad_image(image)
    return found


def _bad_blocks(journal: Journal, image: StoredImage) -> list[tuple[int, int]]:
    return image.bad_in(journal.fetch(image)) if image.checksums else []


def _bad_image(image: StoredImage) -> str:
    return f"a before-image of transaction {image.number} has a wrong checksum"


def read_committed(
    checkpoint: Checkpoint,
    journal: Journal | None,
    *,
    scan: bool = True,
    end: int | None = None,
    lost: list[str] | None = None,
) -> CommittedState:
    """Follow the journal from a checkpoint to the last commit.

    Parameters
    ----------
    checkpoint
        The metadata in force.
    journal
        Of the same group; None where there is none yet.
    scan
        As for `survey`.
    end
        Where the journal ends, for whoever has written it.
    lost
        Takes what is damaged, and reading goes on; without it, damage is raised.

    Raises
    ------
    DamagedError
        The journal is not what it was when it was durable.
    """
    state = CommittedState(checkpoint.metadata, checkpoint.transaction)
    if journal is None:
        return state
    if end is None:
        try:
            journal.check_length()
        except DamagedError as error:
            if lost is None:
                raise DamagedError(f"{error}. {_advice(checkpoint)}") from None
            lost.append(str(error))
    found = survey(journal, scan=scan and end is None)
    while found.damage and lost is None:
        # A writer may have been at work on it: what it has finished meanwhile is not bad.
        again = survey(journal, scan=scan and end is None)
        still = found.damage.keys() & again.damage.keys()
        if still:
            at = min(still)
            raise DamagedError(
                f"the journal is damaged at byte {at}: {again.damage[at]}. {_advice(checkpoint)}"
            )
        found = again
    if end is not None and found.end != end:
        raise DamagedError(f"the journal is damaged at byte {found.end}. {_advice(checkpoint)}")
    committed: bytes | None = None
    for record in found.records:
        if record.metadata is None:
            state.images.extend(record.images)
            continue
        committed, state.transaction = record.metadata, record.number
        state.images = [image for image in state.images if image.number > record.number]
    if committed is not None:
        state.metadata = Checkpoint.from_bytes(committed, "a journal record").metadata
    state.position = found.end
    if lost is not None:
        last = max((one.start for one in found.records if one.metadata is not None), default=0)
        lost += [
            f"the journal is damaged at byte {at}: {what}"
            + (f"; transaction {state.transaction} has been committed since" * (at < last))
            for at, what in sorted(found.damage.items())
        ]
    return state


def missing_journal(checkpoint: Checkpoint) -> DamagedError:
    """Return the error for a journal that is not there."""
    return DamagedError(
        f"the journal is missing, though the metadata count on it. {_advice(checkpoint)}"
    )


def _advice(checkpoint: Checkpoint) -> str:
    return (
        f"Transactions after number {checkpoint.transaction} may be lost, or there in part: "
        f"restore the group from a backup, or {_FORCE}"
    )


_FORCE = "bring back what there is with 'pmarray recover --force URL'"


# -- putting back ---------------------------------------------------------------------------------


class Targets:
    """Opens each data file once, as a place for before-images, and closes them all.

    Parameters
    ----------
    can
        The backend of the group.
    metadata
        As of its last commit.
    lost
        Takes what cannot be opened; without it, that is raised.
    """

    def __init__(
        self, can: Capabilities, metadata: GroupMetadata, *, lost: list[str] | None = None
    ) -> None:
        self._can = can
        self._metadata = metadata
        self._lost = lost
        self._opened: dict[int, Target | None] = {}

    def __call__(self, file_id: int) -> Target | None:
        """Return where images of this file belong; None where the metadata have it not."""
        if file_id not in self._opened:
            self._opened[file_id] = None
            try:
                self._opened[file_id] = self._open(file_id)
            except DamagedError as error:
                if self._lost is None:
                    raise
                self._lost.append(str(error))
        return self._opened[file_id]

    def _open(self, file_id: int) -> Target | None:
        if self._can.chunks is not None:
            return Target(self._can.chunks.images(), None)
        assert self._can.regions is not None
        for array in self._metadata.arrays.values():
            if array.file_id == file_id:
                return Target.of_region(
                    self._can.regions.open(file_id, array.layout.nbytes, aligned=False)
                )
        return None

    def close(self) -> None:
        """Close what was opened."""
        for one in self._opened.values():
            if one is not None:
                one.images.close()


def check_images(
    journal: Journal, state: CommittedState, target: OpenTarget, *, lost: list[str] | None = None
) -> None:
    """Raise `DamagedError`, or tell `lost`, where data cannot be brought back to the last commit.

    That the block of an image is bad does not matter if an older image overrides it, if the data
    have not been overwritten yet, or if another image has the same.
    """
    bad = {
        (image.file_id, image.offset + at): (image, at, crc)
        for image in reversed(state.images)  # so that the oldest of a block stays
        for at, crc in _bad_blocks(journal, image)
    }
    if not bad:
        return
    oldest: dict[tuple[int, int], StoredImage] = {}
    for image in state.images:
        for at in range(0, image.nbytes, BLOCK_BYTES):
            oldest.setdefault((image.file_id, image.offset + at), image)
    names = {array.file_id: name for name, array in state.metadata.arrays.items()}
    for (file_id, offset), (image, at, crc) in bad.items():
        place = target(file_id)
        if (
            oldest[file_id, offset] is not image
            or place is None
            or place.holds(offset, min(BLOCK_BYTES, image.nbytes - at), crc)
            or any((offset, crc) == one for one in _good_blocks(journal, state.images, file_id))
            or at not in dict(_bad_blocks(journal, image))  # a writer was at work on it
        ):
            continue
        what = (
            f"{_bad_image(image)}: array {names[file_id]!r}, from byte {offset} of its items on, "
            f"{min(BLOCK_BYTES, image.nbytes - at)} bytes"
        )
        if lost is None:
            raise DamagedError(
                f"the journal is damaged: {what} cannot be brought back to the last commit. "
                f"Restore the group from a backup, or {_FORCE}"
            )
        lost.append(
            f"{what} stay as transaction {image.number}, which was not committed, left them"
        )


def _good_blocks(
    journal: Journal, images: list[StoredImage], file_id: int
) -> Iterator[tuple[int, int]]:
    """Yield place and checksum of all blocks that the images of a file bring back."""
    for image in images:
        if image.file_id == file_id:
            bad = dict(_bad_blocks(journal, image))
            for start, _, crc in image.blocks():
                if start not in bad:
                    yield image.offset + start, crc


def put_back(
    journal: Journal,
    images: list[StoredImage],
    target: OpenTarget,
    *,
    lost: list[str] | None = None,
) -> None:
    """Undo what is above the last COMMIT; steps b and c.

    Blocks that are bad are left out: see `check_images`. An object of a chunk store that is not
    there any more is raised, or told to `lost`.
    """
    beyond = [
        image
        for image in images
        if (place := target(image.file_id)) is not None and not place.has_place(image)
    ]
    for image in beyond:
        what = (
            f"the journal has {image.nbytes} bytes of data file {image.file_id} at "
            f"{image.offset}, where it has none"
        )
        if lost is None:
            raise DamagedError(f"{what}. Restore the group from a backup, or {_FORCE}")
        lost.append(what)
    images = [image for image in images if image not in beyond] if beyond else images
    ordered = sorted(enumerate(images), key=lambda pair: (pair[1].number, pair[0]))
    touched: dict[int, ImageTarget] = {}
    for _, image in reversed(ordered):  # b
        place = target(image.file_id)
        if place is None:
            continue
        touched[image.file_id] = place.images
        data, start = journal.fetch(image), 0
        for at in [*dict(image.bad_in(data)), image.nbytes]:
            if start < at:
                try:
                    place.images.write(image.offset + start, [data[start:at]])
                except DamagedError as error:
                    if lost is None:
                        raise
                    lost.append(str(error))
            start = at + BLOCK_BYTES
    for images_of_file in touched.values():  # c
        images_of_file.barrier()

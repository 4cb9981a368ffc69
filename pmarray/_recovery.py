"""What the metadata file and the journal say together, and undoing what was not committed.

The protocol is at the head of `_commits`; steps b and c are carried out here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pmarray._journal import Journal, StoredImage
from pmarray._metadata import Checkpoint, GroupMetadata
from pmarray.backends import ImageTarget

__all__ = ["CommittedState", "put_back", "read_committed"]


@dataclass(slots=True)
class CommittedState:
    """What the metadata file and the journal together say."""

    metadata: GroupMetadata
    transaction: int
    generation: int
    images: list[StoredImage] = field(default_factory=list)
    """Before-images above `transaction`, in the order in which they were written."""
    position: int = 0
    """The end of the journal's last whole record."""


def read_committed(checkpoint: Checkpoint, journal: Journal | None) -> CommittedState:
    """Follow the journal from a checkpoint to the last commit."""
    state = CommittedState(checkpoint.metadata, checkpoint.transaction, checkpoint.generation)
    if journal is None:
        return state
    for record in journal.records():
        state.position = record.end
        if record.metadata is None:
            state.images.extend(record.images)
            continue
        state.metadata = Checkpoint.from_bytes(record.metadata, "a journal record").metadata
        state.transaction = record.number
        state.images = [image for image in state.images if image.number > record.number]
    return state


def put_back(
    journal: Journal,
    state: CommittedState,
    open_region: Callable[[int], ImageTarget | None],
    regions: dict[int, ImageTarget | None],
) -> None:
    """Undo what is above the last COMMIT; steps b and c."""
    images = sorted(enumerate(state.images), key=lambda pair: (pair[1].number, pair[0]))
    for _, image in reversed(images):  # b
        if image.file_id not in regions:
            regions[image.file_id] = open_region(image.file_id)
        region = regions[image.file_id]
        if region is not None:
            region.write(image.offset, [journal.fetch(image)])
    for region in regions.values():  # c
        if region is not None:
            region.barrier()

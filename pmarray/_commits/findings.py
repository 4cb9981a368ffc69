"""What a journal says when it is looked over, and forcing a group back in spite of it."""

from __future__ import annotations

from dataclasses import dataclass

from pmarray._commits.committer import Committer
from pmarray._commits.journal import Journal
from pmarray._commits.recovery import (
    CommittedState,
    Targets,
    check_images,
    missing_journal,
    read_committed,
    survey,
)
from pmarray._formats.metadata import Checkpoint, GroupMetadata
from pmarray._sizes import format_bytes
from pmarray.backends._capabilities import Capabilities
from pmarray.backends._protocols import Backend
from pmarray.errors import PMArrayError

__all__ = ["Finding", "force_back", "journal_findings", "journal_state"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `verify` noticed."""

    where: str
    """The file, or the array."""
    message: str
    """What is the matter with it."""
    damaged: bool
    """Whether something is wrong, and not only unfinished or left over."""


def journal_state(backend: Backend, checkpoint: Checkpoint) -> CommittedState:
    """Return what is committed, in spite of damage, and change nothing."""
    region = backend.open_journal(create=False) if checkpoint.generation else None
    if region is None:
        return read_committed(checkpoint, None)
    try:
        return read_committed(
            checkpoint, Journal(region, checkpoint.nonce, checkpoint.generation), lost=[]
        )
    finally:
        region.close()


def journal_findings(
    can: Capabilities, checkpoint: Checkpoint
) -> tuple[GroupMetadata, list[Finding]]:
    """Return the metadata of the last commit, and what there is to say of the journal."""
    if not checkpoint.generation:
        return checkpoint.metadata, []
    region = can.backend.open_journal(create=False)
    if region is None:
        return checkpoint.metadata, [Finding("journal", str(missing_journal(checkpoint)), True)]
    try:
        return _look_over(can, checkpoint, Journal(region, checkpoint.nonce, checkpoint.generation))
    except PMArrayError as error:
        return checkpoint.metadata, [Finding("journal", str(error), damaged=True)]
    finally:
        region.close()


def _look_over(
    can: Capabilities, checkpoint: Checkpoint, journal: Journal
) -> tuple[GroupMetadata, list[Finding]]:
    lost: list[str] = []
    try:
        state = read_committed(checkpoint, journal)
    except PMArrayError:
        state = read_committed(checkpoint, journal, lost=lost)
    targets = Targets(can, state.metadata, lost=lost)
    try:
        check_images(journal, state, targets, lost=lost)
    finally:
        targets.close()
    findings = [Finding("journal", message, damaged=True) for message in lost]
    found = survey(journal)
    for record in found.records:
        if journal.head_is_bad(record):
            durable = record.end <= found.durable_to
            findings.append(
                Finding(
                    "journal",
                    f"one of the two heads at byte {record.start} is bad, and the other serves: "
                    + ("nothing is lost" if durable else "a crash may have left it so"),
                    damaged=durable,
                )
            )
    if journal.bad_slots() == 1:
        findings.append(
            Finding("journal", "one of its two headers is bad, and the other serves", False)
        )
    if state.images:
        size = format_bytes(sum(image.nbytes for image in state.images))
        findings.append(
            Finding(
                "journal",
                f"transaction {state.images[-1].number} did not finish: {size} will be put back "
                "by recover, or by the next writer",
                damaged=False,
            )
        )
    return state.metadata, findings


def force_back(backend: Backend) -> list[str]:
    """Bring a group back as far as its journal goes; return what is lost."""
    backend.lock()
    checkpoint = backend.load()
    assert checkpoint is not None
    committer = Committer(Capabilities.of(backend), checkpoint)
    try:
        return committer.recover(force=True)
    finally:
        committer.close()

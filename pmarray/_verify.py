"""Looking a group over without changing it, and bringing it back to its last commit."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pmarray._commits import read_committed
from pmarray._files import read_file
from pmarray._journal import Journal
from pmarray._metadata import ArrayMetadata
from pmarray._npy import MAX_HEADER_BYTES, parse_header
from pmarray._open import open_group
from pmarray._sizes import format_bytes
from pmarray._url import URL
from pmarray.backends import ChunkBackend, RegionBackend, open_backend
from pmarray.backends.memmap import MemmapBackend
from pmarray.errors import GroupNotFoundError, PMArrayError, TransactionError

__all__ = ["Finding", "Recovery", "recover", "verify"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `verify` noticed."""

    where: str
    """The file, or the array."""
    message: str
    """What is the matter with it."""
    damaged: bool
    """Whether something is wrong, and not only unfinished or left over."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What `recover` did."""

    transaction: int
    """The number of the last commit, as of which the group is now."""
    images: int
    """How many before-images of an interrupted transaction were put back."""


def verify(url: str | os.PathLike[str]) -> list[Finding]:
    """Check metadata, journal, sizes and checksums of a group, and change nothing.

    Metadata and journal records carry checksums; the items themselves do not, so a flipped bit in
    them is not noticed. While a writer is at work the result may be out of date when it arrives.

    Parameters
    ----------
    url
        As for `open_group`.

    Returns
    -------
    list of Finding
        Empty where all is well.

    Examples
    --------
    >>> import pmarray, tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     pmarray.open(f"{place}/run", shape=(10, 2)).close()
    ...     pmarray.verify(f"{place}/run")
    []
    """
    parsed = URL.parse(url)
    backend = open_backend(parsed, writable=False)
    try:
        return _findings(str(parsed), backend)
    finally:
        backend.close()


def _findings(where: str, backend: RegionBackend | ChunkBackend) -> list[Finding]:
    try:
        checkpoint = backend.load()
    except PMArrayError as error:
        return [Finding(where, str(error), damaged=True)]
    if checkpoint is None:
        return [Finding(where, "there is no group here", damaged=True)]
    findings: list[Finding] = []
    metadata = checkpoint.metadata
    if checkpoint.generation:
        region = backend.open_journal(create=False)
        if region is None:
            findings.append(
                Finding(where, "the journal is missing, though the metadata count on it", True)
            )
        else:
            try:
                state = read_committed(checkpoint, Journal(region, checkpoint.generation))
            except PMArrayError as error:
                findings.append(Finding("journal", str(error), damaged=True))
            else:
                metadata = state.metadata
                if state.images:
                    size = format_bytes(sum(image.nbytes for image in state.images))
                    findings.append(
                        Finding(
                            "journal",
                            f"transaction {state.images[-1].number} did not finish: {size} will "
                            "be put back by recover, or by the next writer",
                            damaged=False,
                        )
                    )
            finally:
                region.close()
    for name, array in metadata.arrays.items():
        try:
            if isinstance(backend, ChunkBackend):
                backend.open_chunks(name, array)
            else:
                backend.open(array.file_id, array.layout.nbytes, aligned=False).close()
        except PMArrayError as error:
            findings.append(Finding(name, str(error), damaged=True))
            continue
        if isinstance(backend, MemmapBackend):
            findings += _header_findings(name, array, backend.data_path(array.file_id))
    if isinstance(backend, MemmapBackend):
        keep = {array.file_id for array in metadata.arrays.values()}
        findings += [
            Finding(
                path, "belongs to no array: left by a crash, and removed by the next writer", False
            )
            for path in backend.orphans(keep)
        ]
    return findings


def _header_findings(name: str, array: ArrayMetadata, path: str) -> list[Finding]:
    try:
        header = parse_header(read_file(path, MAX_HEADER_BYTES), path)
    except PMArrayError as error:
        return [Finding(name, f"{error}; the next flush rewrites it", damaged=False)]
    if header.shape != (array.layout.stored_shape if array.shape else ()):
        return [
            Finding(
                name,
                f"the header of {path} says shape {header.shape}, the array has {array.shape}; "
                "the next flush rewrites it",
                damaged=False,
            )
        ]
    return []


def recover(url: str | os.PathLike[str]) -> Recovery:
    """Bring a group back to its last commit, as the next writer would.

    Raises
    ------
    GroupLockedError
        A writer is at work: there is nothing to recover.
    DamagedError
        What the journal or the metadata say cannot be read.
    TransactionError
        The backend has no journal.

    Examples
    --------
    >>> import pmarray, tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     with pmarray.open(f"{place}/run", shape=(10, 2)) as a, a.transaction():
    ...         a[0] = 1
    ...     pmarray.recover(f"{place}/run")
    Recovery(transaction=1, images=0)
    """
    parsed = URL.parse(url)
    backend = open_backend(parsed, writable=True)
    try:
        if not backend.has_journal:
            raise TransactionError(f"{parsed} has no journal, and nothing to recover")
        checkpoint = backend.load()
        if checkpoint is None:
            raise GroupNotFoundError(f"there is no group at {parsed}")
        images = 0
        if checkpoint.generation:
            region = backend.open_journal(create=False)
            if region is not None:
                state = read_committed(checkpoint, Journal(region, checkpoint.generation))
                images = len(state.images)
                region.close()
    finally:
        backend.close()
    with open_group(url, mode="r+") as group:
        transaction = group._recover()
    return Recovery(transaction, images)

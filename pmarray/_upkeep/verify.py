"""Looking a group over without changing it, and bringing it back to its last commit."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pmarray._commits.findings import Finding, force_back, journal_findings, journal_state
from pmarray._formats.metadata import ArrayMetadata
from pmarray._formats.npy import MAX_HEADER_BYTES, parse_header
from pmarray._geometry.grid import ChunkGrid
from pmarray._group.kinds import Kind, kind_of
from pmarray._opening import open_group
from pmarray._system.files import read_file
from pmarray._url import URL
from pmarray.backends._protocols import ChunkBackend, Chunks, Region, RegionBackend
from pmarray.backends._registry import open_backend
from pmarray.errors import GroupNotFoundError, PMArrayError, TransactionError

__all__ = ["Finding", "Recovery", "recover", "verify"]


_PIECE_BYTES = 1 << 20
_COULD_NOT_LOOK = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What `recover` did."""

    transaction: int
    """The number of the last commit, as of which the group is now."""
    images: int
    """How many before-images of an interrupted transaction were put back."""
    lost: tuple[str, ...] = ()
    """What was damaged, and what that means, where `recover` was told to go on all the same."""


def verify(url: str | os.PathLike[str], *, data: bool | None = None) -> list[Finding]:
    """Check metadata, journal, sizes and checksums of a group, and change nothing.

    Metadata and journal records carry checksums, and so do the items where a codec of a chunk
    store adds one. Those of `memmap:` and `shelf:` do not, so a flipped bit in them is not
    noticed. While a writer is at work the result may be out of date when it arrives.

    Parameters
    ----------
    url
        As for `open_group`.
    data
        Whether to read everything: to decode each chunk of a chunk store, or to read each byte of
        a file. None does the former only.

    Returns
    -------
    list of Finding
        Empty where all is well.

    Raises
    ------
    GroupNotFoundError
        There is nothing to check.
    StorageError
        It may not be read, or this process has no descriptors left: nobody knows what it is like.

    Examples
    --------
    >>> import pmarray, tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     pmarray.open(f"{place}/run", shape=(10, 2)).close()
    ...     pmarray.verify(f"{place}/run")
    []
    """
    parsed = URL.parse_group(url)
    backend = open_backend(parsed, writable=False)
    try:
        return _findings(str(parsed), backend, kind_of(str(parsed), backend), data)
    finally:
        backend.close()


def _findings(
    where: str, backend: RegionBackend | ChunkBackend, kind: Kind, data: bool | None
) -> list[Finding]:
    try:
        checkpoint = backend.load()
    except PMArrayError as error:
        return [_damage(where, error)]
    if checkpoint is None:
        raise GroupNotFoundError(f"there is no group at {where}")
    stamp = backend.stamp()
    metadata, findings = journal_findings(kind.can, checkpoint)
    while stamp != backend.stamp():  # a writer has begun the journal anew meanwhile
        stamp, checkpoint = backend.stamp(), backend.load() or checkpoint
        metadata, findings = journal_findings(kind.can, checkpoint)
    for name, array in metadata.arrays.items():
        try:
            medium = kind.medium(name, array)
            if medium.chunks is not None and (data or data is None):
                findings += _chunk_findings(name, array, medium.chunks)
            if medium.region is not None:
                try:
                    if data:
                        _read_all(medium.region, array.layout.nbytes)
                finally:
                    medium.region.close()
        except PMArrayError as error:
            findings.append(_damage(name, error))
            continue
        if (path := kind.npy_path(array.file_id)) is not None:
            findings += _header_findings(name, array, path)
    left = "belongs to no array: left by a crash, " + (
        "and removed by the next writer"
        if kind.can.cleans is not None
        else "or being written now: delete it when nobody is writing"
    )
    findings += [Finding(path, left, damaged=False) for path in kind.orphans(metadata)]
    findings += [Finding(*flaw) for flaw in kind.flaws()]
    return findings


def _damage(where: str, error: PMArrayError) -> Finding:
    """What is wrong with something that is there; raises where nobody could look."""
    if isinstance(error, OSError) and error.errno in _COULD_NOT_LOOK:
        raise error
    return Finding(where, str(error), damaged=True)


def _read_all(region: Region, nbytes: int) -> None:
    piece = memoryview(bytearray(min(nbytes, _PIECE_BYTES)))
    for start in range(0, nbytes, _PIECE_BYTES):
        region.read_into(start, piece[: nbytes - start])


def _chunk_findings(name: str, array: ArrayMetadata, chunks: Chunks) -> Iterator[Finding]:
    """Decode all chunks; one that is not there holds fill values."""
    grid = ChunkGrid(array.layout, chunks.shape or (1,))
    block = np.empty(chunks.shape or (1,), array.dtype)
    for chunk in np.ndindex(grid.shape):
        try:
            chunks.read_into(chunk, block)
        except PMArrayError as error:
            yield _damage(name, error)


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


def recover(url: str | os.PathLike[str], *, force: bool = False) -> Recovery:
    """Bring a group back to its last commit, as the next writer would.

    Parameters
    ----------
    url
        As for `open_group`.
    force
        Whether to go on where the journal is damaged, and to keep what there is. What is then
        lost stands in the result. Copy the directory before, if you can.

    Raises
    ------
    GroupLockedError
        A writer is at work: there is nothing to recover.
    DamagedError
        What the journal or the metadata say cannot be read; nothing was changed.
    TransactionError
        The backend has no journal.

    Examples
    --------
    >>> import pmarray, tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     with pmarray.open(f"{place}/run", shape=(10, 2)) as a, a.transaction():
    ...         a[0] = 1
    ...     pmarray.recover(f"{place}/run")
    Recovery(transaction=1, images=0, lost=())
    """
    parsed = URL.parse_group(url)
    backend = open_backend(parsed, writable=True)
    try:
        if not backend.has_journal:
            raise TransactionError(f"{parsed} has no journal, and nothing to recover")
        checkpoint = backend.load()
        if checkpoint is None:
            raise GroupNotFoundError(f"there is no group at {parsed}")
        images = len(journal_state(backend, checkpoint).images)
        lost = force_back(backend) if force else []
    finally:
        backend.close()
    with open_group(url, mode="r+") as group:
        transaction = group._session.recover()
    if lost:  # the metadata may name what a lost commit had deleted
        lost += [f"{found.where}: {found.message}" for found in verify(url) if found.damaged]
    return Recovery(transaction, images, tuple(lost))

"""Chunks as their store has them: whole ones or parts, of now or as of a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pmarray._commits.snapshot import Snapshot
from pmarray._geometry.spans import SpanSet
from pmarray._system.keptfiles import Parts
from pmarray.backends._protocols import Chunks
from pmarray.errors import DamagedError

__all__ = ["STORE_ID", "StoreReads", "bytes_of"]

AnyArray = NDArray[Any]
Chunk = tuple[int, ...]

STORE_ID = 0
"""Stands in the journal where a data file would: before-images name the object they are of."""
_PART_BYTES = 64 << 10
"""Parts of a chunk begin and end at multiples of this: who wants a row wants the next one too."""
_FAR_PART_BYTES = 1 << 20
"""The same of a store where a request costs as much as to receive so many bytes."""


class StoreReads:
    """Reads the chunks of one array; any method may run on any thread.

    Parameters
    ----------
    chunks
        In their store.
    fill
        What items hold that were never written.
    nbytes
        Of a chunk in memory.
    fresh
        Makes an array of the shape of a chunk.
    snapshot, file_id
        Through which a handle reads that does not hold the lock, and the array's number there.
    is_doomed
        Whether a chunk counts as absent, whatever the store has.
    """

    def __init__(
        self,
        chunks: Chunks,
        fill: Any,
        nbytes: int,
        fresh: Callable[[], AnyArray],
        snapshot: Snapshot | None,
        file_id: int,
        is_doomed: Callable[[Chunk], bool],
    ) -> None:
        self._chunks = chunks
        self._fill = fill
        self._nbytes = nbytes
        self.fresh = fresh
        """Makes an array of the shape of a chunk."""
        self._snapshot = snapshot
        self._file_id = file_id
        self._is_doomed = is_doomed

    def missing(
        self, spans: Sequence[tuple[int, int]], valid: SpanSet | None
    ) -> list[tuple[int, int]]:
        """Return what to fetch of a chunk for the sake of some of its bytes.

        That is all of it where the store has no parts, or where it would be most of it. A part is
        as long as what is cached of the chunk: so a reader in order fetches it in few steps, and
        one who looks here and there not much more than he wants.

        Parameters
        ----------
        spans
            The bytes that are wanted, at least one span; ascending.
        valid
            Those that are cached; None where the chunk is not.
        """
        least = self._chunks.part_nbytes
        if not least:
            # What is cached was written; the cache reads the rest when it is wanted.
            return [(0, self._nbytes)] if valid is None else []
        if valid is not None and (
            valid.covers(spans[0][0], spans[-1][1]) or all(valid.covers(*span) for span in spans)
        ):
            return []
        part = _PART_BYTES if self._chunks.is_near else _FAR_PART_BYTES
        unit = -(-part // least) * least
        while valid is not None and unit < valid.nbytes:
            unit *= 2
        parts = SpanSet.of(
            [
                (start // unit * unit, min(-(-stop // unit) * unit, self._nbytes))
                for start, stop in spans
            ]
        )
        if parts.nbytes > self._nbytes // 2:
            parts.add(0, self._nbytes)
        if valid is None:
            return list(parts)
        return [gap for part in parts for gap in valid.gaps(*part)]

    @property
    def are_near(self) -> bool:
        """Whether any bytes of a chunk come as fast as those of a file."""
        return self._chunks.is_near and self._chunks.part_nbytes == 1

    def read_into(self, chunk: Chunk, out: AnyArray) -> None:
        """Fill `out`, an array of the shape of a chunk."""

        def read() -> None:
            self._chunks.read_into(chunk, out)

        def use(image: int) -> None:
            self._chunks.read_image_into(image, chunk, out)

        if self._is_doomed(chunk):
            out[...] = self._fill
        else:
            self._read([_Piece(chunk, read, use)])

    def read_parts_into(
        self, chunk: Chunk, out: AnyArray, parts: Sequence[tuple[int, int]]
    ) -> None:
        """Fill bytes of `out`, an array of the shape of a chunk, from one to before another."""
        if parts == [(0, self._nbytes)]:
            self.read_into(chunk, out)
            return
        data = bytes_of(out)
        self._read_parts(
            [(chunk, [(start, data[start:stop]) for start, stop in parts])],
            self._chunks.read_parts_into,
        )

    def read_windows(self, windows: Iterable[tuple[Chunk, int, NDArray[np.uint8]]]) -> None:
        """Fill memory with bytes of several chunks, of each from one place on."""
        self._read_parts(
            [(chunk, [(start, out)]) for chunk, start, out in windows],
            self._chunks.read_parts_into,
        )

    def read_windows_at_hand(self, windows: Iterable[tuple[Chunk, int, NDArray[np.uint8]]]) -> bool:
        """The same if that waits for no medium; else False, and the memory holds anything.

        It needs no thread of ours: an exception that arrives meanwhile leaves nothing behind.
        """

        def read(chunk: Chunk, parts: Parts) -> None:
            if not self._chunks.read_parts_at_hand(chunk, parts):
                raise _NotAtHandError

        try:
            self._read_parts([(chunk, [(start, out)]) for chunk, start, out in windows], read)
        except _NotAtHandError:
            return False
        return True

    def _read_parts(
        self, chunks: Iterable[tuple[Chunk, Parts]], from_store: Callable[[Chunk, Parts], None]
    ) -> None:
        pieces = []
        for chunk, parts in chunks:
            if self._is_doomed(chunk):
                for _, out in parts:
                    out.view(self._fill.dtype)[...] = self._fill
            else:
                read = partial(from_store, chunk, parts)
                pieces.append(_Piece(chunk, read, partial(self._use_parts, chunk, parts)))
        self._read(pieces)

    def _use_parts(self, chunk: Chunk, parts: Parts, image: int) -> None:
        whole = self.fresh()
        self._chunks.read_image_into(image, chunk, whole)
        for start, out in parts:
            out[...] = bytes_of(whole)[start : start + out.nbytes]

    def _read(self, pieces: Sequence[_Piece]) -> None:
        """Take what the store has; where a before-image lies over it, use that."""
        snapshot = self._snapshot
        if snapshot is None:
            for piece in pieces:
                piece.read()
            return
        damaged: dict[Chunk, DamagedError] = {}

        def fetch() -> None:
            damaged.clear()
            for piece in pieces:
                try:
                    piece.read()
                except DamagedError as error:
                    # Unless it belongs to an array that may replace this one.
                    damaged[piece.chunk] = error

        def override() -> None:
            snapshot.refuse_deleted(self._file_id)  # a chunk that has gone is no chunk of fill
            images = [
                (bytes(snapshot.fetch(image)), image.offset)
                for image in snapshot.images.get(STORE_ID, ())  # the oldest first
            ]
            for piece in pieces if images or damaged else ():
                key = self._chunks.key(piece.chunk)
                for name, image in images:
                    if name == key or (name.endswith(b"/") and key.startswith(name)):
                        piece.use(image)
                        break
                else:
                    if piece.chunk in damaged:
                        raise damaged[piece.chunk]

        snapshot.read(fetch, override)


class _NotAtHandError(Exception):
    """Something has to be waited for."""


class _Piece(NamedTuple):
    """Something of a chunk, and where it is to go."""

    chunk: Chunk
    read: Callable[[], None]
    """Takes it from the store."""
    use: Callable[[int], None]
    """Takes it from a before-image."""


def bytes_of(block: AnyArray) -> NDArray[np.uint8]:
    """The bytes of a chunk, in the order of its memory."""
    return block.reshape(-1, order="A").view(np.uint8)

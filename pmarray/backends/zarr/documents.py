"""What other programs make of a Zarr hierarchy while a writer of ours is at work in it.

Nothing keeps them out. A ``zarr.json`` of ours that was replaced in the meantime holds what they
did last, say a shape with rows that they have appended, and to replace it once more would take that
back. So a document is only replaced if what stands there was read, or written, by this writer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import google_crc32c

__all__ = ["Documents"]

Contents = int | None
"""The CRC-32C of a document, or None where there is none."""


class Documents:
    """The metadata documents of a hierarchy, as far as one writer knows them.

    Parameters
    ----------
    read
        Returns what objects of the store hold now, in the order of their keys.
    """

    def __init__(self, read: Callable[[Sequence[str]], list[bytes | None]]) -> None:
        self._read = read
        self._known: dict[str, set[Contents]] = {}

    def look(self, keys: Iterable[str]) -> None:
        """Take what is there now for known."""
        for key, contents in self._now(keys):
            self._known[key] = {contents}

    def written(self, key: str, data: bytes) -> None:
        """Note that this writer has replaced a document."""
        self._known[key] = {google_crc32c.value(data)}

    def erased(self, prefix: str) -> None:
        """Note that this writer has deleted, perhaps not for good, all documents below a name."""
        for key, contents in self._known.items():
            if key.startswith(f"{prefix}/"):
                contents.add(None)

    def changed(self, keys: Iterable[str]) -> str | None:
        """Return the first document that holds what this writer does not know."""
        for key, contents in self._now(keys):
            if contents not in self._known.get(key, {None}):
                return key
        return None

    def record(self, documents: Mapping[str, bytes]) -> dict[str, list[Contents]]:
        """Return, for the writer that comes after a crash, what may stand there until then."""
        return {
            key: [*self._known.get(key, {None}), google_crc32c.value(data)]
            for key, data in documents.items()
        }

    def changed_since(self, record: Mapping[str, Sequence[Contents]]) -> str | None:
        """Return the first document that holds neither, nor is gone: a transaction may do that."""
        for key, contents in self._now(record):
            if contents is not None and contents not in record[key]:
                return key
        return None

    def _now(self, keys: Iterable[str]) -> list[tuple[str, Contents]]:
        keys = list(keys)
        found = self._read(keys)
        return [
            (key, None if data is None else google_crc32c.value(data))
            for key, data in zip(keys, found, strict=True)
        ]

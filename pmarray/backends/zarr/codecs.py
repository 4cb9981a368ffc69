"""Whole chunks of a Zarr array to bytes and back.

zarr-python runs codecs on an event loop, on a thread of its own: a chunk that is only copied waits
twice for another thread to wake up. Where all codecs of an array can be called directly, they are,
on the thread that wants the chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zarr.abc.codec import Codec
from zarr.codecs import ShardingCodec
from zarr.core.array_spec import ArrayConfig, ArraySpec
from zarr.core.buffer import Buffer, NDBuffer, default_buffer_prototype
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.core.metadata import ArrayV2Metadata, ArrayV3Metadata
from zarr.core.sync import sync
from zarr.registry import get_pipeline_class

from pmarray._formats.metadata import ArrayMetadata
from pmarray.backends.zarr.bounds import bounded_codecs, is_direct
from pmarray.backends.zarr.shards import Slabs
from pmarray.backends.zarr.translation import chunk_shape_of
from pmarray.errors import DamagedError, StorageError

__all__ = ["ChunkCodecs", "damage_told"]


@contextmanager
def damage_told(name: str) -> Iterator[None]:
    """Say of which chunk it is that a codec cannot make anything."""
    try:
        yield
    except (StorageError, MemoryError):
        raise
    except Exception as error:  # of whatever codec
        raise DamagedError(
            f"chunk {name} cannot be decoded: {error}; restore it from a backup"
        ) from error


class ChunkCodecs:
    """What decodes and encodes whole chunks of an array, and no more than they hold.

    Raises
    ------
    DamagedError
        The codecs make no sense together.
    """

    def __init__(self, metadata: ArrayV2Metadata | ArrayV3Metadata) -> None:
        order = metadata.order if isinstance(metadata, ArrayV2Metadata) else "C"
        config = ArrayConfig.from_dict({"order": order})
        self._spec = ArraySpec(
            shape=chunk_shape_of(metadata),
            dtype=metadata.dtype,
            fill_value=metadata.fill_value,
            config=config,
            prototype=default_buffer_prototype(),
        )
        try:
            self._codecs = bounded_codecs(metadata)
            self._pipeline = get_pipeline_class().from_codecs(self._codecs)
            self._steps = self._direct_steps()
        except (TypeError, ValueError) as error:
            raise DamagedError(f"the codecs of an array make no sense: {error}") from error

    def _direct_steps(self) -> list[tuple[Any, ArraySpec]] | None:
        """Pair each codec with what it is told of a chunk; None where zarr-python runs them."""
        if type(self._pipeline) is not BatchedCodecPipeline:
            return None  # somebody has another one, and wants it to be used
        steps: list[tuple[Codec, ArraySpec]] = []
        spec = self._spec
        for codec in self._pipeline:
            if isinstance(codec, ShardingCodec) or not is_direct(codec):
                return None  # of shards zarr-python decodes several chunks at a time
            steps.append((codec, spec))
            spec = codec.resolve_metadata(spec)
        return steps

    def slabs(self, array: ArrayMetadata) -> Slabs | None:
        """Return what reads parts of shards; None where they are read whole, or are none."""
        return Slabs.of(list(self._codecs), self._spec, array)

    def decode(self, data: Buffer) -> NDBuffer:
        """Return the items of a chunk."""
        if self._steps is None:
            (decoded,) = sync(self._pipeline.decode([(data, self._spec)]))
            assert isinstance(decoded, NDBuffer)
            return decoded
        result: Any = data
        for codec, spec in reversed(self._steps):
            result = codec._decode_sync(result, spec)
        assert isinstance(result, NDBuffer)
        return result

    def encode(self, items: NDBuffer) -> Buffer | None:
        """Return what is stored of a chunk; None where all of it is the fill value."""
        fill = self._spec.fill_value
        # The first item tells of most chunks: zarr-python takes as long for all as for a copy.
        first = items[(slice(1),) * len(items.shape)]
        if first.all_equal(fill) and items.all_equal(fill):
            return None
        if self._steps is None:
            (encoded,) = sync(self._pipeline.encode([(items, self._spec)]))
            return encoded
        result: Any = items
        for codec, spec in self._steps:
            result = None if result is None else codec._encode_sync(result, spec)
        assert result is None or isinstance(result, Buffer)
        return result

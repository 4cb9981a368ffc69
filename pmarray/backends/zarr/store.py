"""``zarr:`` - Zarr format 3, in any store that zarr-python knows.

An array of the group is an array of the Zarr hierarchy, which any Zarr reader opens. What Zarr has
no word for is in its attributes under "pmarray": the layout of an array, the identity of a group.
A column-major array is stored with the transpose codec, so that a chunk of several columns has
them one after another. Hierarchies of other programs, of format 2 too (read only), open as groups.

There is neither a lock nor a transaction, but in a directory (`local`): what was written is in the
store when `flush` returns.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import zarr.api.asynchronous
from zarr import AsyncArray, AsyncGroup
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.metadata import ArrayV2Metadata, ArrayV3Metadata
from zarr.core.sync import sync
from zarr.errors import GroupNotFoundError, NodeNotFoundError

from pmarray._formats.metadata import (
    FOREIGN_IDS,
    ArrayMetadata,
    Checkpoint,
    GroupMetadata,
    check_depth,
    parse_json,
)
from pmarray._formats.names import is_name
from pmarray.backends.files.region import FileRegion
from pmarray.backends.zarr import leftovers
from pmarray.backends.zarr import translation as zarr_format
from pmarray.backends.zarr.chunks import ZarrChunks
from pmarray.backends.zarr.documents import Documents
from pmarray.backends.zarr.listing import Listing, StoreListing
from pmarray.backends.zarr.planning import plan
from pmarray.backends.zarr.threads import keep_working
from pmarray.errors import (
    ConflictError,
    DamagedError,
    ForeignDataError,
    PMArrayError,
)

__all__ = ["ZarrBackend"]

_DOCUMENTS = ("zarr.json", ".zgroup", ".zarray")


class ZarrBackend:
    """One group in any Zarr store."""

    has_journal = False
    commits = False
    shared = True
    """Whether other programs may change the hierarchy while a writer of ours is at work."""
    survives_fork = True
    _may_be_far = True
    """Whether to read a document an array takes long, or, over http, cannot be done."""

    def __init__(self, where: str, store: Store, *, writable: bool) -> None:
        keep_working()
        self.where = where
        self._store = store
        self._writable = writable
        self._paths: dict[int, str] = {}
        """Where the arrays are, by number."""
        self._known: Checkpoint | None = None
        self._published: dict[str, bytes] = {}
        self.refused: dict[str, str] = {}
        """Arrays that no array here can be, by name, and why."""
        self._documents = Documents(self._read)
        self._writing = False
        self._is_old = False
        """Whether it is a group of format 2."""
        self.can_create = True

    # -- metadata -------------------------------------------------------------------------------

    def load(self) -> Checkpoint | None:
        result = self._load_hierarchy()
        self._adopt(result)
        return result

    def _read(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return what objects hold now."""

        async def get() -> list[Any]:
            prototype = default_buffer_prototype()
            return await asyncio.gather(*(self._store.get(key, prototype) for key in keys))

        return [None if buffer is None else buffer.to_bytes() for buffer in sync(get())]

    def _adopt(self, checkpoint: Checkpoint | None) -> None:
        self._known = checkpoint
        if self._writing and self.shared:
            self._documents.look(self._document_keys(checkpoint))
        if checkpoint is not None and self.can_create:
            arrays = checkpoint.metadata.arrays
            self._paths = {array.file_id: name for name, array in arrays.items()}

    def _load_hierarchy(self) -> Checkpoint | None:
        try:
            with zarr_format.quiet():
                # Consolidated metadata may be older than those that they are a copy of.
                copied = self._may_be_far and not self._writable
                node, members, self.refused = sync(_open(self._store, consolidated=copied))
                if isinstance(node, AsyncArray):
                    return self._one_array(node)
        except (FileNotFoundError, NodeNotFoundError, GroupNotFoundError) as error:
            if all(document is None for document in self._read(_DOCUMENTS)):
                return None
            raise DamagedError(f"the Zarr metadata of {self.where} are damaged: {error}") from error
        except (PMArrayError, MemoryError):
            raise
        except Exception as error:  # of zarr-python, over arbitrary metadata
            (found,) = self._read(["zarr.json"])
            kind = zarr_format.unsupported(found)
            if kind is not None:
                raise ForeignDataError(
                    f"{self.where} is of type {kind}, which is not read here"
                ) from error
            raise DamagedError(f"the Zarr metadata of {self.where} are damaged: {error}") from error
        return self._several_arrays(node, members)

    def _several_arrays(self, node: AsyncGroup, members: Mapping[str, Any]) -> Checkpoint:
        self._is_old = node.metadata.zarr_format == 2
        arrays: dict[str, ArrayMetadata] = {}
        for name, array in sorted(members.items()):
            if not is_name(name):
                raise DamagedError(f"an array of {self.where} is called {name!r}")
            try:
                found = zarr_format.from_zarr(array, name)
            except ForeignDataError as error:
                self.refused[name] = str(error)
                continue  # of a type that no array here can have; the others can be used
            if any(found.file_id == other.file_id for other in arrays.values()):
                # Somebody has copied the directory of an array, its number with it.
                found = found._replace(file_id=zarr_format.foreign_id(name))
            arrays[name] = found
        attributes = self._attributes(node)
        identity, next_id, transaction = zarr_format.identity(attributes, self.where)
        largest = max((a.file_id for a in arrays.values() if a.file_id < FOREIGN_IDS), default=0)
        metadata = GroupMetadata(
            uuid=identity,
            next_file_id=max(next_id, largest + 1),
            arrays=arrays,
            attrs=zarr_format.user_attributes(attributes),
        )
        return Checkpoint(metadata, transaction)

    def _one_array(self, node: AsyncArray[Any]) -> Checkpoint:
        self.can_create = False
        self._attributes(node)  # refused where they make no sense
        array = zarr_format.from_zarr(node.metadata, "array")
        self._paths[array.file_id] = ""
        identity = str(uuid.uuid5(uuid.NAMESPACE_URL, self.where))
        return Checkpoint(GroupMetadata(identity, 1, {"array": array}, array.attrs))

    def _attributes(self, node: AsyncArray[Any] | AsyncGroup) -> dict[str, Any]:
        attributes: Any = node.metadata.attributes
        try:
            check_depth(attributes)
            return dict(attributes)
        except (TypeError, ValueError) as error:
            raise DamagedError(f"the attributes of {self.where} make no sense: {error}") from error

    def save(self, checkpoint: Checkpoint, /) -> None:
        contents = self._contents(checkpoint)
        changes = [key for key, data in contents.items() if self._published.get(key) != data]
        self._refuse_changed(changes)
        self._publish(checkpoint, contents)

    def _refuse_changed(self, keys: Iterable[str]) -> None:
        """Raise where another program has replaced what is about to be replaced."""
        key = self._documents.changed(keys) if self.shared else None
        if key is not None:
            raise ConflictError(
                f"another program has changed {key} of {self.where} since this group became its "
                "writer: it was left as it is. Close this group and open it again to go on from "
                "there; only one program may change the hierarchy at a time"
            )

    def _publish(self, checkpoint: Checkpoint, contents: Mapping[str, bytes]) -> None:
        for key, data in contents.items():
            self._put(key, data)
            self._documents.written(key, data)
        self._known = checkpoint
        # Deleted arrays keep their paths until they are removed; those that only the journal knew
        # until now get theirs.
        for name, array in checkpoint.metadata.arrays.items():
            self._paths.setdefault(array.file_id, name)

    def _document_keys(self, checkpoint: Checkpoint | None) -> list[str]:
        """Name the documents that `save` will write."""
        names = checkpoint.metadata.arrays if checkpoint and self.can_create else ()
        return ["zarr.json", *(f"{name}/zarr.json" for name in names)]

    def _contents(self, checkpoint: Checkpoint) -> dict[str, bytes]:
        """Spell the metadata of the hierarchy."""
        metadata = checkpoint.metadata
        result: dict[str, bytes] = {}
        if self.can_create:
            attributes = zarr_format.attributes_with(metadata.attrs, self._ours(checkpoint))
            group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
            result["zarr.json"] = json.dumps(group, indent=1).encode()
        for name, array in metadata.arrays.items():
            path = self._paths.get(array.file_id, name)
            document = zarr_format.to_zarr(array)
            for key, data in zarr_format.documents(document).items():
                result[f"{path}/{key}" if path else key] = data
        return result

    def _ours(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """What the attributes of the group say of us."""
        return {
            "uuid": checkpoint.metadata.uuid,
            "next": checkpoint.metadata.next_file_id,
            "transaction": checkpoint.transaction,
        }

    def has_changes(self) -> bool:
        return False

    def roll_back(self) -> None:
        raise NotImplementedError("this store has no transactions of its own")

    def merged(self) -> Checkpoint | None:
        return None

    def _put(self, key: str, data: bytes) -> None:
        if self._published.get(key) != data:
            buffer = default_buffer_prototype().buffer.from_bytes(data)
            sync(self._store.set(key, buffer))
            self._published[key] = data

    def admit(self, array: ArrayMetadata, /) -> None:
        zarr_format.refuse_items_without_chunks(array)

    def stamp(self) -> object:
        return None

    def open_journal(self, *, create: bool) -> FileRegion | None:
        return None

    def lock(self) -> None:
        arrays = {} if self._known is None else self._known.metadata.arrays
        if self._is_old or any(
            isinstance(zarr_format.to_zarr(array), ArrayV2Metadata) for array in arrays.values()
        ):
            raise ForeignDataError(
                f"{self.where} is of Zarr format 2, which is read only here: copy it, with "
                "pmarray.copy_group or pmarray.copy, and write to the copy"
            )
        self._writing = True

    # -- chunks ---------------------------------------------------------------------------------

    def plan(
        self,
        name: str,
        array: ArrayMetadata,
        chunks: str | int | tuple[int, ...],
        max_nbytes: int,
        options: Mapping[str, Any],
        /,
    ) -> ArrayMetadata:
        if name in self.refused:
            raise ForeignDataError(
                f"{self.refused[name]}; it is not replaced either: choose another name"
            )
        self._refuse_taken(name)
        unknown = set(options) - {"codecs", "shards", "dimension_names"}
        if unknown:
            raise TypeError(
                f"zarr: takes codecs=, shards= and dimension_names=, not {', '.join(unknown)} "
                "(commit= and commit_window= are parameters of open_group)"
            )
        return plan(array, chunks, max_nbytes, name=name, **options)

    def _refuse_taken(self, name: str) -> None:
        """Raise where something stands that is no array of this group: a new one would erase it."""
        if name not in self._paths.values() and (found := self._strangers(name)):
            raise ConflictError(
                f"{self.where} has {', '.join(sorted(found)[:4])} under the name {name!r}, which "
                "is no array of this group and would be deleted: choose another name, or delete "
                "it first"
            )

    def _strangers(self, name: str) -> tuple[str, ...]:
        """Return what is in a directory, but for what a crash of ours has left."""
        listing = self._listing()
        found = listing.entries(name)
        return () if not found or leftovers.is_unfinished(listing, name) else found

    def _listing(self) -> Listing:
        return StoreListing(self._store)

    def create_chunks(self, name: str, array: ArrayMetadata, /) -> ZarrChunks:
        if self.shared and self._documents.changed([f"{name}/zarr.json"]):
            raise ConflictError(
                f"another program has made {name!r} in {self.where}, which would be overwritten: "
                "choose another name, or delete it there"
            )
        self._erase(name)
        self._paths[array.file_id] = name
        return self._chunks(name, array)

    def open_chunks(self, name: str, array: ArrayMetadata, /) -> ZarrChunks:
        return self._chunks(self._paths.setdefault(array.file_id, name), array)

    def _chunks(self, path: str, array: ArrayMetadata) -> ZarrChunks:
        return ZarrChunks(self._store, path, array)

    def _erase(self, path: str) -> None:
        sync(self._store.delete_dir(path))
        self._forget_documents(path)

    def _forget_documents(self, path: str) -> None:
        self._documents.erased(path)
        for key in [key for key in self._published if key.startswith(f"{path}/")]:
            del self._published[key]

    def images_of_name(self, name: str, /, *, had_array: bool) -> list[tuple[int, bytes]]:
        return []

    def images(self) -> Any:
        raise NotImplementedError("only a local directory keeps before-images")

    def images_kept(self) -> None:
        pass

    def barrier(self) -> None:
        pass

    def remove(self, file_id: int, /) -> None:
        path = self._paths.pop(file_id, None)
        if path is not None and path not in self._paths.values():
            self._erase(path)

    def close(self) -> None:
        self._store.close()

    def abandon(self) -> None:
        pass


async def _open(
    store: Store, *, consolidated: bool
) -> tuple[AsyncArray[Any] | AsyncGroup, dict[str, Any], dict[str, str]]:
    """Return an array, or a group and its `_members`."""
    wanted = None if consolidated else False
    node = await zarr.api.asynchronous.open(store=store, mode="r", use_consolidated=wanted)
    return (node, {}, {}) if isinstance(node, AsyncArray) else (node, *await _members(node))


async def _members(node: AsyncGroup) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the metadata of the arrays in a group, by name, and why others are not read.

    zarr-python has the same; but where one is damaged, it leaves the errors of the others to the
    event loop, which prints them.
    """
    consolidated = node.metadata.consolidated_metadata
    if consolidated is not None:
        return {
            name: one
            for name, one in consolidated.metadata.items()
            if isinstance(one, ArrayV2Metadata | ArrayV3Metadata)
        }, {}
    turns = asyncio.Semaphore(zarr.config.get("async.concurrency"))
    is_old = node.metadata.zarr_format == 2

    async def read(name: str) -> Any:
        async with turns:
            place = f"{node.path}/{name}".lstrip("/")
            data = await node.store.get(
                f"{place}/{'.zarray' if is_old else 'zarr.json'}", default_buffer_prototype()
            )
            more = (
                await node.store.get(f"{place}/.zattrs", default_buffer_prototype())
                if is_old and data is not None
                else None
            )
        if data is None:
            return None
        value = parse_json(data.to_bytes())
        if is_old:
            value["attributes"] = {} if more is None else parse_json(more.to_bytes())
        elif value["node_type"] == "group":
            return None
        elif (kind := zarr_format.unsupported(data.to_bytes())) is not None:
            return f"is of type {kind}, which is not read here"
        ours = zarr_format.OURS in value["attributes"] if "attributes" in value else False
        try:
            with zarr_format.quiet():
                return (ArrayV2Metadata if is_old else ArrayV3Metadata).from_dict(value)
        except Exception as error:  # of zarr-python, over arbitrary metadata
            if ours:
                raise
            return f"has metadata that zarr-python does not take, and is not read here: {error}"

    names = [name.rstrip("/") async for name in node.store.list_dir(node.path)]
    found = await asyncio.gather(*(read(name) for name in names), return_exceptions=True)
    for name, one in zip(names, found, strict=True):
        if isinstance(one, PMArrayError | MemoryError):
            raise one
        if isinstance(one, BaseException):
            raise DamagedError(f"the metadata of the array {name!r} are damaged: {one!r}") from one
    read_all = {name: one for name, one in zip(names, found, strict=True) if one is not None}
    refused = {
        name: f"{node.store_path}#{name} {one}"
        for name, one in read_all.items()
        if isinstance(one, str)
    }
    return {name: one for name, one in read_all.items() if name not in refused}, refused

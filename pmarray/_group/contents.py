"""A `Group` as a mapping of names to arrays, and names that share a beginning."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, NoReturn, Self

from pmarray._array.attributes import Attributes
from pmarray._config import config
from pmarray._geometry.layout import parse_shape
from pmarray._streams.sources import as_source, layout_of, shape_of, write_from
from pmarray._url import check_name
from pmarray.array import PMArray
from pmarray.errors import LayoutError

__all__ = ["Contents", "Subgroup"]


class Contents(Mapping[str, PMArray]):
    """What a group has of a mapping, besides ``[]``, ``in``, ``len`` and iteration."""

    attrs: Attributes
    url: str

    @abstractmethod
    def create(self, name: str, *args: Any, **options: Any) -> PMArray: ...

    @abstractmethod
    def __delitem__(self, name: str) -> None: ...

    @abstractmethod
    def transaction(self, *, wait: bool | None = None) -> AbstractContextManager[Any]: ...

    def __setitem__(self, name: str, data: Any) -> None:
        """Create an array with the items of `data`; see `create`."""
        self.create(name, data=data)

    def _create_from(self, name: str, data: Any, **options: Any) -> PMArray:
        """Create an array with the items of `data`, or nothing."""
        x = as_source(data)
        shape = shape_of(x)
        asked = options.pop("shape", None)
        if asked is not None and parse_shape(asked) != shape:
            raise LayoutError(f"data has shape {shape}, and shape={asked!r} is asked for")
        dtype = options.pop("dtype", None)
        if options.get("layout") is None and options.get("order") is None:
            options["layout"] = layout_of(x)
        made = self.create(name, shape, x.dtype if dtype is None else dtype, **options)
        try:
            write_from(x, made, config.work_memory)
        except BaseException:
            del self[name]
            raise
        return made

    def create_group(self, name: str) -> Subgroup:
        """Return a group of those arrays of this one whose names begin with `name` and a dot.

        It is part of this group: one lock, one cache, one transaction. Nothing is stored for it,
        so that it may be made again at any time, and is there as long as it has an array.

        Examples
        --------
        >>> import pmarray
        >>> group = pmarray.open_group("dram:")
        >>> layer = group.create_group("layer1")
        >>> layer["weight"] = [[1.0, 2.0]]
        >>> layer.attrs["frozen"] = True
        >>> list(layer), list(group), group["layer1.weight"].shape
        (['weight'], ['layer1.weight'], (1, 2))
        """
        return Subgroup(self, check_name(name))

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other  # a handle, as a file object is one

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise TypeError(
            "a group is a handle on a medium and has no deep copy: pmarray.copy_group(group, url) "
            "copies it to another place"
        )


class Subgroup(Mapping[str, PMArray]):
    """The arrays and attributes of a group whose names begin alike; see `Group.create_group`."""

    def __init__(self, group: Contents, name: str) -> None:
        self.group = group
        self.name = name
        self.attrs = _Under(group.attrs, f"{name}.")

    def create(self, name: str, *args: Any, **options: Any) -> PMArray:
        """Create an array; see `Group.create`."""
        return self.group.create(self._full(name), *args, **options)

    def create_group(self, name: str) -> Subgroup:
        """Return the group of the arrays whose names go on with `name` and a dot."""
        return Subgroup(self.group, check_name(self._full(name)))

    def transaction(self, *, wait: bool | None = None) -> Any:
        """Begin a transaction of the whole group; see `Group.transaction`."""
        return self.group.transaction(wait=wait)

    def _full(self, name: str) -> str:
        return f"{self.name}.{check_name(name)}"

    def __getitem__(self, name: str) -> PMArray:
        return self.group[self._full(name)]

    def __setitem__(self, name: str, data: Any) -> None:
        self.group[self._full(name)] = data

    def __delitem__(self, name: str) -> None:
        del self.group[self._full(name)]

    def __iter__(self) -> Iterator[str]:
        return _beginning(self.group, f"{self.name}.")

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return True

    def __hash__(self) -> int:
        return hash((self.group, self.name))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Subgroup):
            return NotImplemented
        return self.group is other.group and self.name == other.name

    def __repr__(self) -> str:
        return f"<Subgroup {self.name!r} of {self.group.url} with {len(self)} arrays>"


class _Under(MutableMapping[str, Any]):
    """Those items of a mapping whose keys begin alike, by what follows."""

    def __init__(self, whole: MutableMapping[str, Any], prefix: str) -> None:
        self._whole = whole
        self._prefix = prefix

    def __getitem__(self, key: str) -> Any:
        return self._whole[self._prefix + key]

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(key, str):
            raise TypeError(f"attribute names are strings, not {key!r}")
        self._whole[self._prefix + key] = value

    def __delitem__(self, key: str) -> None:
        del self._whole[self._prefix + key]

    def __iter__(self) -> Iterator[str]:
        return _beginning(self._whole, self._prefix)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return repr(dict(self))


def _beginning(names: Any, prefix: str) -> Iterator[str]:
    return (name.removeprefix(prefix) for name in names if name.startswith(prefix))

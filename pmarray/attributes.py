"""The attributes of a group."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pmarray._metadata import check_depth

if TYPE_CHECKING:
    from pmarray.group import Group

__all__ = ["Attributes"]


class Attributes(MutableMapping[str, Any]):
    """JSON values of a group by name, kept with its arrays.

    Values are copied in and out: changing a list that was read changes nothing stored.

    >>> import pmarray
    >>> attrs = pmarray.open_group("dram:").attrs
    >>> attrs["seed"] = 7
    >>> attrs["model"] = {"widths": [784, 10]}
    >>> attrs["model"]["widths"]
    [784, 10]
    >>> attrs["when"] = object()
    Traceback (most recent call last):
        ...
    TypeError: attribute 'when' is no JSON value: Object of type object is not JSON serializable
    """

    def __init__(self, group: Group) -> None:
        self._group = group

    def __getitem__(self, key: str) -> Any:
        with self._group._turn():
            self._group._admit()
            return json.loads(json.dumps(self._group._metadata.attrs[key]))

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set several attributes at once."""
        values = dict(*args, **kwargs)
        for key, value in values.items():
            if not isinstance(key, str):
                raise TypeError(f"attribute names are strings, not {key!r}")
            try:
                values[key] = json.loads(json.dumps(value))
                check_depth(values[key])
            except (TypeError, ValueError, RecursionError) as error:
                raise TypeError(f"attribute {key!r} is no JSON value: {error}") from error
        self._change(lambda attrs: attrs.update(values))

    def __delitem__(self, key: str) -> None:
        self._change(lambda attrs: attrs.pop(key))

    def _change(self, change: Callable[[dict[str, Any]], object]) -> None:
        # Copied under the lock, and after becoming the writer: what other threads and the last
        # writer have set stays.
        group = self._group
        with group._turn():
            group._admit_writer()
            group._refuse_fixed("it has no attributes")
            attrs = dict(group._metadata.attrs)
            change(attrs)
            group._metadata = replace(group._metadata, attrs=attrs)

    def __iter__(self) -> Iterator[str]:
        with self._group._turn():
            self._group._admit()
            return iter(list(self._group._metadata.attrs))

    def __len__(self) -> int:
        with self._group._turn():
            self._group._admit()
            return len(self._group._metadata.attrs)

    def __repr__(self) -> str:
        return f"Attributes({dict(self)})"

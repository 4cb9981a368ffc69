"""The attributes of a group, and of an array: JSON values by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, NoReturn, Protocol, TypeVar, cast

import numpy as np

from pmarray._formats.metadata import check_depth

__all__ = ["Attributes", "Owner"]

T = TypeVar("T")

_MOST_ITEMS = 10_000


def _refuse(self: Any, *args: Any, **options: Any) -> NoReturn:
    kind = type(self).__mro__[1].__name__
    raise TypeError(
        f"a {kind} that was read from attributes changes nothing stored: assign a changed copy"
    )


class _ReadOnlyList(list[Any]):
    """A list of JSON values; `copy`, a slice and ``+`` give lists to change."""

    __setitem__ = __delitem__ = append = extend = insert = pop = remove = clear = _refuse
    sort = reverse = __imul__ = _refuse

    def __iadd__(self, other: Any) -> list[Any]:  # type: ignore[misc,override]
        return [*self, *other]  # which ``attrs[key] += [...]`` assigns

    def copy(self) -> list[Any]:
        return cast("list[Any]", _changeable(self))

    def __deepcopy__(self, memo: Any) -> list[Any]:
        return self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (self.copy(),)


class _ReadOnlyDict(dict[str, Any]):
    """A dict of JSON values; `copy` and ``|`` give dicts to change."""

    __setitem__ = __delitem__ = update = setdefault = pop = popitem = clear = _refuse

    def __ior__(self, other: Any) -> dict[str, Any]:  # type: ignore[misc,override]
        return {**self, **dict(other)}

    def copy(self) -> dict[str, Any]:
        return cast("dict[str, Any]", _changeable(self))

    def __deepcopy__(self, memo: Any) -> dict[str, Any]:
        return self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self.copy(),)


def _read_only(value: Any) -> Any:
    if isinstance(value, list):
        return _ReadOnlyList(map(_read_only, value))
    if isinstance(value, dict):
        return _ReadOnlyDict((key, _read_only(one)) for key, one in value.items())
    return value


def _changeable(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(_changeable, value))
    if isinstance(value, dict):
        return {key: _changeable(one) for key, one in value.items()}
    return value


class Owner(Protocol):
    """Whose attributes they are: a group or an array."""

    @property
    def _attributes(self) -> Mapping[str, Any]: ...

    def _replace_attributes(self, attrs: dict[str, Any], /) -> None: ...

    def _refuse_fixed(self, why: str, /) -> None: ...

    def _turn(self) -> AbstractContextManager[Any]: ...

    def _admit(self) -> None: ...

    def _admit_writer(self) -> None: ...

    def _do(self, task: Callable[[], T], /) -> T: ...


class Attributes(MutableMapping[str, Any]):
    """JSON values by name: those of a group, `Group.attrs`, or of an array, `PMArray.attrs`.

    They are part of the group's transactions. Values are copied in and out. A list or a dict that
    was read is read-only, for changing it would change nothing that is stored: assign a changed
    copy, which `copy` gives. NumPy's scalars and small arrays are stored as the numbers and lists
    that they hold.

    >>> import numpy as np, pmarray
    >>> attrs = pmarray.open_group("dram:").attrs
    >>> attrs["seed"] = 7
    >>> attrs["model"] = {"widths": [784, 10], "scale": np.float32(0.5)}
    >>> attrs["model"]
    {'widths': [784, 10], 'scale': 0.5}
    >>> attrs["model"]["widths"].append(3)
    Traceback (most recent call last):
        ...
    TypeError: a list that was read from attributes changes nothing stored: assign a changed copy
    >>> attrs["when"] = object()
    Traceback (most recent call last):
        ...
    TypeError: attribute 'when' is no JSON value: Object of type object is not JSON serializable
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    @property
    def _values(self) -> Mapping[str, Any]:
        """What is stored; replaced as a whole, never changed."""
        return self._owner._attributes

    def __getitem__(self, key: str) -> Any:
        with self._owner._turn():
            self._owner._admit()
            return _read_only(self._values[key])

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set several attributes at once."""
        values = dict(*args, **kwargs)
        for key, value in values.items():
            if not isinstance(key, str):
                raise TypeError(f"attribute names are strings, not {key!r}")
            try:
                values[key] = json.loads(json.dumps(value, default=_plain))
                check_depth(values[key])
            except (TypeError, ValueError, RecursionError) as error:
                raise TypeError(f"attribute {key!r} is no JSON value: {error}") from error
        self._change(lambda attrs: attrs.update(values))

    def __delitem__(self, key: str) -> None:
        self._change(lambda attrs: attrs.pop(key))

    def _change(self, change: Callable[[dict[str, Any]], object]) -> None:
        # Copied under the lock, and after becoming the writer: what other threads and the last
        # writer have set stays.
        owner = self._owner
        with owner._turn():
            owner._admit_writer()
            owner._refuse_fixed("no attributes can be set")
            attrs = dict(self._values)
            change(attrs)
            owner._do(lambda: owner._replace_attributes(attrs))

    def _ipython_key_completions_(self) -> list[str]:
        """What a notebook offers behind ``attrs["``."""
        return list(self)

    def __iter__(self) -> Iterator[str]:
        with self._owner._turn():
            self._owner._admit()
            return iter(list(self._values))

    def __len__(self) -> int:
        with self._owner._turn():
            self._owner._admit()
            return len(self._values)

    def __repr__(self) -> str:
        return f"Attributes({dict(self)})"


def _plain(value: Any) -> Any:
    """What a value of NumPy's is in JSON."""
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "biufU":
        if value.size > _MOST_ITEMS:
            raise TypeError(
                f"an array of {value.size} items, and {_MOST_ITEMS} are allowed: make it an array "
                "of the group"
            )
        return value.tolist()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")

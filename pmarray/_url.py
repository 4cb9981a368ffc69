"""The grammar of URLs: ``scheme:path?option=value#name``.

Without a scheme of ours, the name tells the format: what ends in ``.zarr`` is ``zarr:``, a file of
another library is refused by its name, and any other path is ``memmap:``.

In a path ``#`` and ``?`` are written ``%23`` and ``%3F``, and ``%`` before such digits ``%25``.
Everything else stands for itself: a path is as its owner typed it, spaces too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from pmarray.errors import StorageError, URLError

__all__ = ["DEFAULT_NAME", "URL", "check_name", "whole_path"]

DEFAULT_NAME = "array"
"""The array that a URL without ``#name`` means."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(.*)", re.DOTALL)
_RESERVED_IN_PATHS = "%?#"
_MOST_CHARACTERS = 128
_NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.\-]{{0,{_MOST_CHARACTERS - 1}}}")
# Of which some backend would make a file that it has already; refused by all, since an array can be
# copied anywhere. In files an array is `name.npy`.
_RESERVED = frozenset({"zarr.json"})


# Where something is, and not what it is.
_SCHEMES_OF_PATHS = frozenset(["memmap", "zarr", "icechunk", "shelf"])
"""What stands in the URLs of others is for their backends to know."""
_STORES = frozenset(
    {"s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss", "adl", "http", "https", "memory"}
)
_FILES = {
    **dict.fromkeys([".h5", ".hdf5", ".he5"], "open it with h5py"),
    ".nc": "open it with xarray or h5py",
    ".npz": "open it with numpy.load",
    ".mat": "open it with scipy.io.loadmat or h5py",
    ".safetensors": "open it with safetensors",
}


class URL(NamedTuple):
    """A parsed URL.

    >>> URL.parse("memmap:./run?direct=no#trajectory")
    URL(scheme='memmap', path='./run', name='trajectory', options={'direct': 'no'})
    >>> URL.parse("posterior").scheme, URL.parse("./weather.zarr").scheme
    ('memmap', 'zarr')
    """

    scheme: str
    """Which backend, in lower case."""
    path: str
    """What the backend makes of it: a directory, a device, a name."""
    name: str | None = None
    """The array that ``#name`` picks, if any."""
    options: Mapping[str, str] = MappingProxyType({})
    """The ``?option=value`` pairs."""

    @classmethod
    def parse_group(cls, text: str | os.PathLike[str]) -> URL:
        """The same of a URL that names a whole group, and no array of it."""
        url = cls.parse(text)
        if url.name is not None:
            raise URLError(
                f"{text!r} names an array, and a whole group is meant: leave out '#{url.name}' "
                "(pmarray.open opens an array)"
            )
        return url

    @classmethod
    def parse(cls, text: str | os.PathLike[str]) -> URL:
        """Parse `text`; a path object is always a path, whatever characters it has."""
        if isinstance(text, os.PathLike):
            path = os.fspath(text)
            return cls(_format_of(path), path, None, {})
        if not isinstance(text, str) or not text:
            raise URLError(f"not a URL: {text!r} (examples: 'dram:', 'memmap:./run#weights')")
        if "\0" in text:
            raise URLError(f"{text!r} has a NUL in it, which no name of a file has")
        match = _SCHEME.fullmatch(text)
        scheme, rest = (match[1].lower(), match[2]) if match else ("", text)
        rest, _, fragment = rest.partition("#")
        rest, _, query = rest.partition("?")
        name = check_name(_unquoted(fragment)) if fragment else None
        options = _options_of(query) if query else {}
        if scheme == "file":
            path = _path_of_file_url(rest, text)
            return cls(_format_of(path), path, name, options)
        if scheme in _STORES and rest.startswith("//"):
            rest = f"{scheme}:{rest}"
        elif scheme:
            return cls(scheme, _unescaped(rest), name, options)
        return cls(_format_of(rest), _unescaped(rest), name, options)

    def absolute(self) -> URL:
        """The same place, wherever the process works from now on.

        >>> URL.parse("zarr:/data/run").absolute(), URL.parse("dram:x").absolute().path
        (URL(scheme='zarr', path='/data/run', name=None, options={}), 'x')
        """
        path = self.local_path if self.scheme in _SCHEMES_OF_PATHS else None
        if path is None:
            return self
        # No "..", which leads elsewhere behind a symbolic link, is taken out.
        return self._replace(path="/".join(part for part in path.split("/") if part != "."))

    @property
    def local_path(self) -> str | None:
        """The whole path of the directory or file; None where it is something else.

        >>> URL.parse("zarr:/data/run").local_path, URL.parse("zarr:s3://bucket/run").local_path
        ('/data/run', None)
        """
        if self.scheme == "dram" or not self.path or "://" in self.path:
            return None
        return whole_path(self.path)

    def __str__(self) -> str:
        return (
            f"{self.scheme}:{_escaped(self.path)}"
            + (f"?{_query_of(self.options)}" if self.options else "")
            + (f"#{self.name}" if self.name else "")
        )


def whole_path(path: str) -> str:
    """The path from the root, as the process stands now; "~" is the user's directory.

    Raises
    ------
    StorageError
        It is a relative one, and the working directory was deleted.

    >>> whole_path("/data/run")
    '/data/run'
    """
    path = os.path.expanduser(path)
    if os.path.isabs(path):
        return path
    try:
        return os.path.join(os.getcwd(), path)
    except OSError as error:
        raise StorageError(
            error.errno,
            f"{path!r} is a relative path, and the working directory is gone ({error.strerror}): "
            "give a whole path, or change to a directory that is there",
        ) from error


def _path_of_file_url(rest: str, text: str) -> str:
    host, _, path = rest.removeprefix("//").partition("/")
    if host not in ("", "localhost") or not rest.startswith("/"):
        raise URLError(f"{text!r}: file: takes an absolute path, as in 'file:///data/run'")
    return "/" + _unquoted(path)


# To load `urllib.parse` takes as long as a tenth of this package. Most URLs have nothing to decode.


def _unquoted(text: str) -> str:
    from urllib.parse import unquote

    return unquote(text)


def _options_of(query: str) -> dict[str, str]:
    from urllib.parse import parse_qsl

    return dict(parse_qsl(query, keep_blank_values=True))


def _query_of(options: Mapping[str, str]) -> str:
    from urllib.parse import urlencode

    return urlencode(options)


def _format_of(place: str) -> str:
    """The scheme of a place that was given without one, by its name."""
    parts = place.rstrip("/").split("/")
    if any(part.endswith(".zarr") for part in parts) or parts[-1].endswith(".zarr.zip"):
        return "zarr"
    if "://" in place:
        raise URLError(
            f"{place!r} says where, and not in which format: write 'zarr:{place}', or "
            f"'icechunk:{place}'"
        )
    for ending, how in _FILES.items():
        if parts[-1].endswith(ending):
            raise URLError(
                f"{place!r} is a file of another format by its name: {how}, and store its arrays "
                f"with pmarray.from_array ('memmap:{place}' means a directory of this name)"
            )
    return "memmap"


def _escaped(path: str) -> str:
    return re.sub(f"[{_RESERVED_IN_PATHS}]", lambda found: f"%{ord(found[0]):02X}", path)


def _unescaped(path: str) -> str:
    codes = "|".join(f"{ord(one):02X}" for one in _RESERVED_IN_PATHS)
    return re.sub(f"%({codes})", lambda found: chr(int(found[1], 16)), path, flags=re.IGNORECASE)


def check_name(name: str) -> str:
    """Return `name` if an array may be called so.

    >>> check_name("trajectory")
    'trajectory'
    >>> check_name("../up")
    Traceback (most recent call last):
        ...
    pmarray.errors.URLError: an array cannot be called '../up': use letters, digits, '_', '-', '.'
    """
    if isinstance(name, str) and len(name) > _MOST_CHARACTERS:
        raise URLError(
            f"an array cannot be called {name[:20]!r}...: a name has at most {_MOST_CHARACTERS} "
            f"characters, and this one {len(name)}"
        )
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise URLError(f"an array cannot be called {name!r}: use letters, digits, '_', '-', '.'")
    if name in _RESERVED:
        raise URLError(f"an array cannot be called {name!r}: a file of the group has that name")
    return name

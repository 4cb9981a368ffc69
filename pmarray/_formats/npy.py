"""The header of a ``.npy`` file, read and written without ever unpickling anything.

The format is NumPy's own (NEP 1): magic, version, header length, a Python literal, padding,
data. Ours is padded to one block, so that the data start on one.
"""

from __future__ import annotations

import ast
import io
import warnings
from typing import NamedTuple

import numpy as np

from pmarray._dtypes import DType, encode_dtype
from pmarray._formats.metadata import check_extents
from pmarray._geometry.layout import BLOCK_BYTES, Layout, Order
from pmarray.errors import DamagedError, ForeignDataError

__all__ = ["MAX_HEADER_BYTES", "Header", "parse_header", "write_header"]

_MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 64 * 1024
"""A header longer than this is not read (NumPy's own limit is 10,000 bytes)."""


class Header(NamedTuple):
    """What a ``.npy`` header says."""

    shape: tuple[int, ...]
    dtype: DType
    order: Order
    data_offset: int
    """Byte of the file at which the data begin."""


def write_header(layout: Layout, dtype: DType, *, ndim: int, nbytes: int = BLOCK_BYTES) -> bytes:
    """Return a header of exactly `nbytes` bytes that describes the array, padding included.

    Raises
    ------
    ValueError
        The description does not fit `nbytes`.
    """
    descr = encode_dtype(dtype)
    if dtype.kind == "V" and isinstance(descr, str) and not descr.startswith("|V"):
        descr = f"|V{dtype.itemsize}"  # bfloat16 and its kin: .npy has no name for them
    shape = layout.stored_shape if ndim else ()
    text = repr({"descr": descr, "fortran_order": layout.order == "col", "shape": shape})
    # As NumPy does: version 3 is for field names that Latin-1 does not have, and only for them.
    latin = all(ord(character) < 256 for character in text)
    encoded = text.encode("latin1" if latin else "utf8")
    version, width = (b"\x01\x00", 2) if latin else (b"\x03\x00", 4)
    room = nbytes - 8 - width
    if len(encoded) + 1 > room or room > 0xFFFF:
        raise ValueError(f"a header of {len(encoded) + 9 + width} bytes does not fit {nbytes}")
    return _MAGIC + version + room.to_bytes(width, "little") + encoded.ljust(room - 1) + b"\n"


def _header_bytes(data: bytes) -> int:
    """Where the items begin, of versions that may have a long header; else 0."""
    return 12 + int.from_bytes(data[8:12], "little") if data[6:7] in (b"\2", b"\3") else 0


def parse_header(data: bytes, where: str) -> Header:
    """Parse the first bytes of a file; at least `MAX_HEADER_BYTES` of them, or all there are.

    Raises
    ------
    ForeignDataError
        Not a ``.npy`` file, or one of Python objects.
    DamagedError
        A ``.npy`` file with a header that makes no sense.
    """
    if data[:6] != _MAGIC:
        raise ForeignDataError(f"{where} is not a .npy file (its first bytes are {data[:6]!r})")
    if (length := _header_bytes(data)) > MAX_HEADER_BYTES == len(data):
        raise ForeignDataError(
            f"the header of {where} has {length} bytes, and more than {MAX_HEADER_BYTES} are not "
            "read: copy the array with NumPy (np.load(path, max_header_size=...)) to one whose "
            "dtype is shorter to describe"
        )
    try:
        version = np.lib.format.read_magic(io.BytesIO(data))
        width = 2 if version[0] == 1 else 4
        start = 8 + width
        stop = start + int.from_bytes(data[8:start], "little")
        if version[0] not in (1, 2, 3) or stop > len(data):
            raise ValueError(f"version {version}, header of {stop} bytes")
        text = data[start:stop].decode("utf8" if version[0] == 3 else "latin1")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # random bytes can look like "1if"
            warnings.simplefilter("ignore", DeprecationWarning)
            fields = ast.literal_eval(text)
            dtype = np.lib.format.descr_to_dtype(fields["descr"])
        shape, fortran_order = fields["shape"], fields["fortran_order"]
        if not isinstance(shape, tuple):
            raise ValueError(f"shape {shape!r}")
        if not isinstance(fortran_order, bool):
            raise ValueError(f"fortran_order {fortran_order!r}")
        if dtype.itemsize == 0 or dtype.subdtype is not None:
            raise ValueError(f"descr {fields['descr']!r}")
        check_extents(shape, dtype.itemsize)
        order: Order = "col" if fortran_order else "row"
    except Exception as error:
        # Whatever the parser and NumPy make of arbitrary bytes: RecursionError, IndexError, ...
        raise DamagedError(f"the header of {where} cannot be read: {error}") from error
    if dtype.hasobject:
        raise ForeignDataError(
            f"{where} holds pickled Python objects; pmarray never unpickles: convert it with "
            "numpy.load(..., allow_pickle=True) if you trust it"
        )
    return Header(shape, dtype, order, stop)

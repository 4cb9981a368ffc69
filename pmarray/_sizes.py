"""Byte counts as people write them: parsed once, at the edge."""

from __future__ import annotations

import operator
import re

__all__ = ["format_bytes", "parse_bytes"]

_UNITS: dict[str, int] = {
    "": 1,
    "b": 1,
    **{f"{prefix}b": 1000 ** (i + 1) for i, prefix in enumerate("kmgt")},
    **{f"{prefix}ib": 1024 ** (i + 1) for i, prefix in enumerate("kmgt")},
}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?i?b?)\s*", re.IGNORECASE)


def parse_bytes(value: int | str) -> int:
    """Return the number of bytes that `value` names.

    >>> parse_bytes("256 MiB"), parse_bytes("1.5 kB"), parse_bytes(4096)
    (268435456, 1500, 4096)
    >>> parse_bytes("many")
    Traceback (most recent call last):
        ...
    ValueError: not a number of bytes: 'many' (examples: 0, 1048576, "256 MiB", "1.5 GB")
    """
    if isinstance(value, str):
        match = _PATTERN.fullmatch(value)
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is not None and unit is not None:
            whole, _, fraction = match[1].partition(".")  # a float has 53 bits only
            return int(whole + fraction) * unit // int(10 ** len(fraction))
    elif (
        not isinstance(value, bool)
        and hasattr(value, "__index__")
        and (found := operator.index(value)) >= 0
    ):
        return found
    raise ValueError(
        f'not a number of bytes: {value!r} (examples: 0, 1048576, "256 MiB", "1.5 GB")'
    )


def format_bytes(nbytes: float) -> str:
    """Return `nbytes` with a binary unit, three significant digits.

    >>> format_bytes(6_712_852_480), format_bytes(17)
    ('6.25 GiB', '17 B')
    """
    if nbytes < 1023.5:
        return f"{nbytes:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        nbytes /= 1024
        if nbytes < 999.5:  # what rounds to 1000 would be shown as 1e+03
            return f"{nbytes:.3g} {unit}"
    nbytes /= 1024
    return f"{nbytes:.3g} TiB" if nbytes < 999.5 else f"{nbytes:.0f} TiB"

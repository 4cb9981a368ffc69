"""Limits of the process that a user may change, `pmarray.config`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pmarray._available import available_memory_bytes
from pmarray._sizes import format_bytes, parse_bytes
from pmarray.errors import BudgetError

__all__ = ["MOST_REQUESTS", "Config", "config"]

MOST_REQUESTS = 32
"""Each takes a thread while it is under way."""


class Config:
    """How much operations on whole arrays may take, besides the caches of the groups.

    There is one, `pmarray.config`, for all threads of the process.

    Examples
    --------
    >>> import pmarray
    >>> with pmarray.config.set(work_memory="1 MiB"):
    ...     pmarray.config.work_memory
    1048576
    """

    __slots__ = ("_max_result", "_read_ahead", "_read_requests", "_request_bytes", "_work_memory")

    def __init__(self) -> None:
        self._work_memory = 64 << 20
        self._max_result: int | None = None
        self._read_ahead = 32 << 20
        self._read_requests = 8
        self._request_bytes = 1 << 20

    @property
    def work_memory(self) -> int:
        """Bytes that a streamed operation may hold at once; 64 MiB unless set.

        Takes a number, or a text such as ``"256 MiB"``. Operands that are in memory already, and
        results that have to be, are not counted.
        """
        return self._work_memory

    @work_memory.setter
    def work_memory(self, value: int | str) -> None:
        nbytes = parse_bytes(value)
        if not nbytes:
            raise ValueError("work_memory must be more than 0")
        self._work_memory = nbytes

    @property
    def max_result(self) -> int | None:
        """Bytes of the largest result that is made in memory unasked; None: what is available."""
        return self._max_result

    @max_result.setter
    def max_result(self, value: int | str | None) -> None:
        self._max_result = None if value is None else parse_bytes(value)

    @property
    def available_memory(self) -> int:
        """Bytes that this process may still use, as the system says now.

        That is what nobody uses, and what the page cache would give back; in a control group, as
        containers and batch systems make them, what is left of its limit. It cannot be set.
        """
        return available_memory_bytes()

    @property
    def read_ahead(self) -> int:
        """Bytes of a local file that are asked for before they are read; 32 MiB unless set.

        So many bytes are on their way from the device while earlier ones are worked on. They are in
        the kernel's cache, and in nobody's memory. A faster device, or one far away, may want more;
        0 asks for nothing.
        """
        return self._read_ahead

    @read_ahead.setter
    def read_ahead(self, value: int | str) -> None:
        self._read_ahead = parse_bytes(value)

    @property
    def read_requests(self) -> int:
        """Requests to local files that are under way at a time, for all streams; 8 unless set.

        From 1 to 32. `pmarray doctor` measures which number suits a device, and which size.
        """
        return self._read_requests

    @read_requests.setter
    def read_requests(self, value: int) -> None:
        if not 1 <= value <= MOST_REQUESTS:
            raise ValueError(f"read_requests must be from 1 to {MOST_REQUESTS}")
        self._read_requests = int(value)

    @property
    def request_bytes(self) -> int:
        """The most that such a request asks for; 1 MiB unless set."""
        return self._request_bytes

    @request_bytes.setter
    def request_bytes(self, value: int | str) -> None:
        nbytes = parse_bytes(value)
        if not nbytes:
            raise ValueError("request_bytes must be more than 0")
        self._request_bytes = nbytes

    def __setattr__(self, name: str, value: object) -> None:
        # The class has no place for another name; the message says which there are.
        try:
            super().__setattr__(name, value)
        except AttributeError:
            raise AttributeError(f"pmarray.config has no {name!r}: set {_NAMES}") from None

    @contextmanager
    def set(self, **limits: int | str | None) -> Iterator[None]:
        """Change limits for a ``with`` block.

        Raises
        ------
        TypeError
            There is no such limit.
        """
        for name in limits:
            if name not in _LIMITS:
                raise TypeError(f"there is no limit {name!r}: set {_NAMES}")
        before = {name: getattr(self, name) for name in limits}
        try:
            for name, value in limits.items():
                setattr(self, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(self, name, value)

    def check_result(self, nbytes: int, instead: str) -> None:
        """Raise unless a result of `nbytes` may be made in memory.

        Raises
        ------
        BudgetError
            It may not; the message names the size and what to do `instead`.
        """
        if self._max_result is None and nbytes <= _UNCHECKED_BYTES:
            return  # asking the system what is free costs more than most results
        limit = available_memory_bytes() if self._max_result is None else self._max_result
        if nbytes > limit:
            allowed = "are free" if self._max_result is None else "are allowed by max_result"
            raise BudgetError(
                f"the result would take {format_bytes(nbytes)} of memory, {format_bytes(limit)} "
                f"{allowed}: {instead}"
            )


_UNCHECKED_BYTES = 64 << 20
_LIMITS = ("work_memory", "max_result", "read_ahead", "read_requests", "request_bytes")
_NAMES = "work_memory, max_result, read_ahead, read_requests or request_bytes"

config = Config()

"""A descriptor that closes itself."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from pmarray._system.descriptor import Descriptor


@pytest.fixture
def fd() -> Iterator[int]:
    reading, writing = os.pipe()
    yield reading
    os.close(reading)
    os.close(writing)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_it_is_closed_when_nobody_has_it_and_nothing_warns(fd: int) -> None:
    descriptor = Descriptor.duplicate(fd)
    number = descriptor.fileno()
    assert number != fd
    assert is_open(number)
    del descriptor  # a warning would be an error, as "unraisable"
    assert not is_open(number)
    assert is_open(fd)


def test_it_is_closed_in_a_circle_too(fd: int) -> None:
    holder: list[object] = [Descriptor.duplicate(fd)]
    number = holder[0].fileno()  # type: ignore[attr-defined]
    holder.append(holder)
    del holder
    gc.collect()
    assert not is_open(number)


def test_it_is_closed_once(fd: int) -> None:
    descriptor = Descriptor.duplicate(fd)
    number = descriptor.fileno()
    descriptor.close()
    again = os.dup(fd)
    assert again == number  # somebody else's by now
    del descriptor
    assert is_open(again)
    os.close(again)


def test_no_finalizer_of_pythons_is_run(fd: int) -> None:
    """Its class has nothing of its own that runs when it goes."""
    assert not {"__del__", "close", "flush", "_dealloc_warn"} & vars(Descriptor).keys()

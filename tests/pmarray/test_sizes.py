"""Byte counts as people write and read them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmarray._sizes import format_bytes, parse_bytes


@given(st.integers(0, 2**70))
def test_plain_numbers_are_exact(nbytes: int) -> None:
    assert parse_bytes(nbytes) == parse_bytes(str(nbytes)) == parse_bytes(f" {nbytes} B ") == nbytes


@given(st.integers(0, 2**20), st.sampled_from(["k", "M", "G", "T"]))
def test_units(count: int, prefix: str) -> None:
    power = "kMGT".index(prefix) + 1
    assert parse_bytes(f"{count}{prefix}B") == count * 1000**power
    assert parse_bytes(f"{count} {prefix.upper()}iB") == count * 1024**power
    assert parse_bytes(f"{count}.5 {prefix.lower()}ib") == count * 1024**power + 1024**power // 2


@given(st.integers(0, 2**63))
def test_what_is_shown_is_near_what_is_meant(nbytes: int) -> None:
    shown = format_bytes(nbytes)
    assert re.fullmatch(r"[\d.]{1,7} (B|KiB|MiB|GiB|TiB)", shown)
    assert "e" not in shown
    assert parse_bytes(shown) == pytest.approx(nbytes, rel=0.006)


@pytest.mark.parametrize(
    "wrong", ["", "many", "12 apples", "-1", "1e3", "1 iB", "0x10", "nan", -1, True, "1 2 MiB"]
)
def test_refuses_what_is_no_size(wrong: Any) -> None:
    with pytest.raises(ValueError, match="not a number of bytes"):
        parse_bytes(wrong)


@pytest.mark.parametrize("wrong", [1.5, None, [1]])
def test_refuses_other_types(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        parse_bytes(wrong)

"""Which bytes of a file are in the page cache, for who owns it and for who may only read it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import pmarray
from pmarray._geometry.requests import Request
from pmarray._system.residency import all_resident, is_told, resident_share, sampled_share
from pmarray.backends.files import beside

MIB = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(8 * MIB))
    fd = os.open(path, os.O_RDWR)
    os.fdatasync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    share = resident_share(fd, 0, 8 * MIB)
    os.close(fd)
    if share:
        pytest.skip("this file system keeps files in memory")
    return path


def test_both_ways_to_ask_agree(file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    try:
        assert is_told(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # nothing is read ahead
        assert resident_share(fd, 0, 8 * MIB) == sampled_share(fd, 0, 8 * MIB) == 0
        os.pread(fd, 3 * MIB, 2 * MIB)
        for start, stop in ((2 * MIB, 5 * MIB), (3 * MIB, 3 * MIB + 1), (4 * MIB - 7, 4 * MIB)):
            assert sampled_share(fd, start, stop) == resident_share(fd, start, stop) == 1
            assert all_resident(fd, [(start, stop), (2 * MIB + 5, 3 * MIB)])
            assert not all_resident(fd, [(start, stop), (7 * MIB, 7 * MIB + 1)])
        assert not all_resident(fd, [(4 * MIB, 9 * MIB)])  # beyond its end
        for _ in range(3):  # a page that was asked for may come
            assert sampled_share(fd, 6 * MIB, 8 * MIB) < 1
            assert resident_share(fd, 6 * MIB, 8 * MIB) < 0.1
        assert 0 < sampled_share(fd, 0, 8 * MIB) < 1
        assert sampled_share(fd, 9 * MIB, 10 * MIB) == sampled_share(fd, 5, 5) == 0
    finally:
        os.close(fd)


@pytest.mark.parametrize("told", [True, False])
def test_a_scan_reads_ahead_whoever_owns_the_file(
    told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "is_told", lambda fd: told)
    if not told:  # what the system says then
        monkeypatch.setattr(beside, "resident_share", lambda *_: 1.0)
    with pmarray.open(f"memmap:{tmp_path / 'a'}", (MIB, 32), "float32", layout="col") as a:
        a[...] = np.arange(32, dtype="float32")
    (data,) = (tmp_path / "a" / "data").iterdir()
    fd = os.open(data, os.O_RDWR)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    share = resident_share(fd, 0, 128 * MIB)
    os.close(fd)
    if share:
        pytest.skip("this file system keeps files in memory")
    asked: list[int] = []
    real = beside.SideReads.read

    def read(self: beside.SideReads, request: Request, *rest: object, **how: bool) -> None:
        asked.append(request.start)
        real(self, request, *rest, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(beside.SideReads, "read", read)
    with pmarray.open(f"memmap:{tmp_path / 'a'}", mode="r") as a:
        assert (
            sum(
                float(piece.sum())
                for piece in a.read_each([np.s_[:, j : j + 1] for j in range(32)], memory="32 MiB")
            )
            == 496 * MIB
        )
    assert len(asked) > 32
    assert min(asked) < 4 * MIB  # beginning with the first column

"""What Icechunk raises reaches the caller as an error of ours, whatever is wrong."""

from __future__ import annotations

import errno
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pmarray
from pmarray.errors import DamagedError, ForeignDataError, GroupNotFoundError, StorageError

icechunk = pytest.importorskip("icechunk", reason="icechunk is not installed")


def _damages(rng: random.Random) -> dict[str, Callable[[Path], object]]:
    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 0x55
        path.write_bytes(data)

    def directory(path: Path) -> None:
        path.unlink()
        path.mkdir()

    return {
        "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "empty": lambda path: path.write_bytes(b""),
        "flip": flip,
        "gone": lambda path: path.unlink(),
        "directory": directory,
    }


@pytest.mark.parametrize("how", sorted(_damages(random.Random())))
@pytest.mark.parametrize("kind", ["chunks", "manifests", "refs", "snapshots"])
def test_damage_is_told(kind: str, how: str, tmp_path: Path) -> None:
    place = tmp_path / "group"
    url = f"icechunk:{place}"
    with pmarray.open_group(url, mode="w") as group:
        group.create("x", (400,), chunks=(100,))[...] = range(400)
    rng = random.Random(1)
    found = [path for path in (place / kind).rglob("*") if path.is_file()]
    if kind == "refs" and not found:
        found = [place / "repo"]  # of Icechunk 2, which keeps all of them in one file
    for path in found:
        _damages(rng)[how](path)
    told = 0
    for mode in ("r", "r+"):
        try:
            with pmarray.open_group(url, mode=mode) as group:
                group["x"][...]
                if mode == "r+":
                    group["x"][...] = 4
                    group["x"].append([5.0])
        except (StorageError, DamagedError, GroupNotFoundError, ForeignDataError):
            told += 1
        for use in ("history", "refresh"):
            try:
                with pmarray.open_group(url, mode="r") as group:
                    getattr(group, use)()
            except (StorageError, DamagedError, GroupNotFoundError):
                told += 1
    assert told or how == "flip"  # Icechunk has no checksums of chunks


def test_a_file_where_a_repository_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for mode in ("a", "r"):
        with pytest.raises(ForeignDataError, match="is a file"):
            pmarray.open(f"icechunk:{tmp_path}/file", (3,) if mode == "a" else None, mode=mode)


def test_files_where_a_repository_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ForeignDataError, match="name an empty directory"):
        pmarray.open(f"icechunk:{tmp_path}", (3,))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_repository_that_cannot_be_begun_says_why(tmp_path: Path) -> None:
    script = f"""
import resource
import pmarray
import pmarray.backends.zarr.icechunk
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    pmarray.open("icechunk:{tmp_path}/group", (3,))
except pmarray.errors.StorageError as error:
    print(error.errno)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{errno.EFBIG}\n", "")


def test_a_repository_whose_making_was_cut_short(tmp_path: Path) -> None:
    icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path)))
    for path in (*tmp_path.glob("refs/*/*"), *tmp_path.glob("repo"), *tmp_path.glob("config*")):
        path.unlink()
    with pytest.raises(ForeignDataError, match="cut short: delete it"):
        pmarray.open(f"icechunk:{tmp_path}", (3,))


def test_a_repository_that_goes_while_it_is_open(tmp_path: Path) -> None:
    group = pmarray.open_group(f"icechunk:{tmp_path}/group", mode="w")
    group.create("x", (40,), chunks=(10,))[...] = 1
    group.flush()
    shutil.rmtree(tmp_path / "group")
    group["x"][...] = 2
    with pytest.raises(StorageError):
        group.flush()
    with pytest.raises(StorageError):
        group.close()


def test_a_fault_in_the_core_is_an_error_like_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real one, of a repository in place of which there is a file, deep in its own code."""
    from pmarray.backends.zarr import icechunk

    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(icechunk, "exists", lambda path: False)
    with pytest.raises(StorageError, match="Icechunk refused") as raised:
        pmarray.open(f"icechunk:{tmp_path}/file", (3,))
    assert isinstance(raised.value, OSError)
    assert raised.value.errno

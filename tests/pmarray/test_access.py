"""Who may use the files of a group: kept when they are replaced, and told when it is not we."""

from __future__ import annotations

import os
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmarray
from pmarray._system.beneath import exists
from pmarray._system.files import replace_durably
from pmarray._upkeep.doctor import examine
from pmarray.errors import StorageError

ACL = "system.posix_acl_access"
NOBODY = 65534


@contextmanager
def somebody_else() -> Iterator[None]:
    """Be a user who may not do everything; who is none already, is one."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may look into, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="pmarray-access-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


def _acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _files(scheme: str, place: Path) -> list[Path]:
    if scheme == "memmap":
        return [place / "group" / "pmarray.json"]
    return [place / "group" / name for name in ("zarr.json", "x/zarr.json", "x/c/0")]


@pytest.mark.parametrize("scheme", ["memmap", "zarr"])
def test_permissions_owner_and_acl_survive_replacement(scheme: str, place: Path) -> None:
    url = f"{scheme}:{place}/group"
    with pmarray.open_group(url, mode="w") as group:
        group.create("x", (2,))[:] = 1
    files = _files(scheme, place)
    nobody = 0xFFFFFFFF
    acl = _acl((1, 6, nobody), (2, 4, 12345), (4, 4, nobody), (16, 4, nobody), (32, 0, nobody))
    before: dict[Path, Any] = {}
    for number, path in enumerate(files):
        os.chmod(path, 0o640 + number)
        if os.geteuid() == 0:
            os.chown(path, 1234, 4321)
        with_acl = True
        try:
            os.setxattr(path, ACL, acl)
        except OSError:
            with_acl = False  # a file system without
        found = path.stat()
        before[path] = (found.st_mode, found.st_uid, found.st_gid, with_acl)
    contents = {path: path.read_bytes() for path in files}
    with pmarray.open_group(url, mode="r+") as group:
        group.attrs["more"] = 1
        group["x"][:] = 2
        group["x"].append([3.0])
    for path in files:
        assert path.read_bytes() != contents[path]
        found = path.stat()
        with_acl = before[path][3]
        assert (found.st_mode, found.st_uid, found.st_gid, with_acl) == before[path], path
        if with_acl:
            assert os.getxattr(path, ACL) == acl


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of somebody else's")
def test_what_may_not_be_given_away_is_not_widened(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"old")
    os.chown(path, 1234, 4321)
    os.chmod(path, 0o664)
    os.chmod(place, 0o777)
    with somebody_else():
        replace_durably(str(path), b"new")
    found = path.stat()
    assert found.st_uid == NOBODY
    assert stat.S_IMODE(found.st_mode) == 0o604


@pytest.mark.parametrize("closed", ["data", "."])
def test_what_may_not_be_looked_at_is_not_missing(closed: str, place: Path) -> None:
    url = f"memmap:{place}/group"
    with pmarray.open_group(url, mode="w") as group:
        group.create("x", (2,))[:] = 1
        with group.transaction():
            group["x"][:] = 2
    os.chmod(place / "group" / closed, 0)
    try:
        with (
            somebody_else(),
            pytest.raises(StorageError, match="Permission denied"),
            pmarray.open_group(url, mode="r") as group,
        ):
            group["x"]
        with somebody_else(), pytest.raises(StorageError, match="Permission denied"):
            exists(f"{place}/group/{closed}/000001.npy")
    finally:
        os.chmod(place / "group" / closed, 0o755)


@pytest.mark.parametrize("scheme", ["memmap", "zarr", "icechunk"])
def test_doctor_of_what_may_be_read_alone(scheme: str, place: Path) -> None:
    if scheme == "icechunk":
        pytest.importorskip("icechunk", reason="icechunk is not installed")
    url = f"{scheme}:{place}/group"
    with pmarray.open(url, (3,)) as array:
        array[...] = 1
    os.chmod(place / "group", 0o555)
    with somebody_else():
        found = examine(url)
        assert (found.url, found.durability) == (url, "read only: this user may not write here")
        with pmarray.open(url, mode="r") as array:
            assert (array[:] == 1).all()


@pytest.mark.parametrize(
    ("mode", "says"), [(0o444, "read only: this user"), (0, "cannot be used: this user")]
)
def test_doctor_of_a_single_file(mode: int, says: str, place: Path) -> None:
    path = place / "x.npy"
    np.save(path, np.zeros(3))
    os.chmod(path, mode)
    with somebody_else():
        found = examine(str(path))
        assert found.durability.startswith(says)
        assert (found.url is None) == (mode == 0)


def test_refresh_follows_a_writer_that_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memmap:{tmp_path}/group"
    writer = pmarray.open_group(url, mode="w")
    names = ["x", "y", "z"]
    for name in names:
        writer.create(name, (2,))[:] = 1
    writer.flush()
    reader = pmarray.open_group(url, mode="r")
    held = [reader[name] for name in names]
    with writer.transaction():
        writer["x"].append([8.0])
    real = reader._session.backend.open  # type: ignore[union-attr]
    left = list(names)

    def overtaken(*arguments: Any, **options: Any) -> Any:
        if left:
            with writer.transaction():
                del writer[left.pop(0)]
        return real(*arguments, **options)

    monkeypatch.setattr(reader._session.backend, "open", overtaken)
    reader.refresh()
    assert list(reader) == list(writer)
    assert len(left) < 3
    del held
    writer.close()
    reader.close()
